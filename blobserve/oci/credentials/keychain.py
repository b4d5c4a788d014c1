"""The credentials for each registry, from files and helpers.

The files of container tools are read at each use, so a rotated password takes effect at once. If a
file becomes malformed, its last valid content is used. A `Keychain` blocks, and is safe to call
from several threads. A `SharedKeychain` calls one in a pool of threads.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from twisted.internet.defer import Deferred, DeferredSemaphore, succeed
from twisted.logger import Logger

from blobserve.concurrency.threads import SharedCalls, Threads
from blobserve.names.reference import DOCKER_HUB, Repository
from blobserve.oci.credentials.docker_config import AuthFile, Credential
from blobserve.oci.credentials.helpers import CredentialHelpers, HelperLogin

__all__ = ["Credential", "Credentials", "Keychain", "SharedKeychain"]

CREDENTIAL_THREADS = 8
_HELPERS_AT_ONCE = CREDENTIAL_THREADS - 2
"""The limit of running helpers; the other threads stay free to read files."""

_FILE_SIZE = 1 << 20
_HUB_SERVER = "https://index.docker.io/v1/"  # The name of Docker Hub for helpers.

_log = Logger()


class Keychain:
    """The credentials of this host, for every registry.

    :param path: the only file to read. None stands for the places of container tools, in order:
        ``$DOCKER_CONFIG/config.json`` (unset: ``~/.docker``), ``$REGISTRY_AUTH_FILE`` (unset:
        ``$XDG_RUNTIME_DIR/containers/auth.json``) and the text of ``$DOCKER_AUTH_CONFIG``.
    :param environ: the environment, also of credential helpers.
    :param clock: a clock in seconds, by which answers of helpers expire.
    """

    def __init__(
        self,
        path: Path | None,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        files = [path] if path is not None else _usual_files(environ)
        self._places = [_ConfigFile(str(file), partial(_content, file)) for file in files]
        inline = environ.get("DOCKER_AUTH_CONFIG")
        if path is None and inline is not None:
            self._places.append(_ConfigFile("$DOCKER_AUTH_CONFIG", inline.encode))
        self._helpers = CredentialHelpers(environ, clock)

    def forget_answers(self) -> None:
        """Drop cached answers of helpers. The last valid content of files stays."""
        self._helpers.forget()

    def stop(self) -> None:
        """Kill all running helpers, and start no more."""
        self._helpers.stop()

    def for_repository(self, repository: Repository) -> Credential | None:
        """Return the credential for pulling from `repository`; None to be anonymous.

        The first place that has one counts. The order within a place is: the helper of the
        registry, the default store, the file itself; each by its most specific key. Blocks while a
        helper runs.
        """
        for file in self.files():
            for name in file.helpers(repository):
                login = self.login(name, server_of(repository))
                if login is not None:
                    return Credential.of_login(login.username, login.secret)
            credential = file.credential(repository)
            if credential is not None:
                return credential
        return None

    def files(self) -> list[AuthFile]:
        """Return the content of all places, in order. Blocks."""
        return [place.current() for place in self._places]

    def known_login(self, helper: str, server: str) -> tuple[HelperLogin | None] | None:
        """Return the cached result of `login`, in a tuple; None if `login` would run the helper."""
        return self._helpers.remembered(helper, server)

    def login(self, helper: str, server: str) -> HelperLogin | None:
        """Return the login that a helper has for `server`. Blocks while it runs."""
        return self._helpers.ask(helper, server)


class Credentials(Protocol):
    """A source of credentials for repositories."""

    async def for_repository(self, repository: Repository) -> Credential | None:
        """Return the credential for pulling from `repository`; None to be anonymous."""
        ...


class SharedKeychain:
    """A keychain that runs in `threads`. See `Credentials`.

    Callers share one run of a helper for a server. A hanging helper occupies only one thread, and
    does not delay the reading of files. It delays other helpers only if many hang.
    """

    def __init__(self, keychain: Keychain, threads: Threads) -> None:
        self._keychain = keychain
        self._threads = threads
        self._asking = SharedCalls[tuple[str, str], HelperLogin | None]()
        self._permits = DeferredSemaphore(_HELPERS_AT_ONCE)

    def forget_answers(self) -> None:
        """See `Keychain.forget_answers`."""
        self._keychain.forget_answers()

    def stop(self) -> None:
        """See `Keychain.stop`."""
        self._keychain.stop()

    async def for_repository(self, repository: Repository) -> Credential | None:
        """See `Keychain.for_repository`."""
        for file in await self._threads.run(self._keychain.files):
            for name in file.helpers(repository):
                login = await self._login(name, server_of(repository))
                if login is not None:
                    return Credential.of_login(login.username, login.secret)
            credential = file.credential(repository)
            if credential is not None:
                return credential
        return None

    def _login(self, helper: str, server: str) -> Deferred[HelperLogin | None]:
        known = self._keychain.known_login(helper, server)
        if known is not None:
            return succeed(known[0])

        def ask() -> Deferred[HelperLogin | None]:
            return self._permits.run(self._threads.run, self._keychain.login, helper, server)

        return self._asking.wait((helper, server), ask)


def server_of(repository: Repository) -> str:
    """Return the name by which helpers know the registry of a repository."""
    return _HUB_SERVER if repository.registry == DOCKER_HUB else repository.registry


def _usual_files(environ: Mapping[str, str]) -> Iterator[Path]:
    # An empty variable counts as unset, or the working directory would be searched.
    if docker := environ.get("DOCKER_CONFIG"):
        yield Path(docker, "config.json")
    elif home := environ.get("HOME"):
        yield Path(home, ".docker", "config.json")
    if named := environ.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    elif runtime := environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "containers", "auth.json")


def _content(path: Path) -> bytes | None:
    """Return the content of a regular file, empty if there is none; None if it is unreadable."""
    try:
        # O_NONBLOCK: without it, a FIFO would block this thread until another process writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return b""
            return file.read() if status.st_size <= _FILE_SIZE else None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return b""
    except OSError:
        return None


class _ConfigFile:
    """One place with credentials, and its last valid content."""

    def __init__(self, name: str, read: Callable[[], bytes | None]) -> None:
        self._name = name
        self._read = read
        self._lock = threading.Lock()
        self._content: bytes | None = b""
        self._file = AuthFile()

    def current(self) -> AuthFile:
        """Return the current content. Problems are logged once for each change."""
        with self._lock:
            content = self._read()
            if content != self._content:
                self._content = content
                self._change(content)
            return self._file

    def _change(self, content: bytes | None) -> None:
        try:
            if content is None:
                raise ValueError("it cannot be read, or is too large")
            self._file = AuthFile.parse(content)
        except ValueError as error:
            self._complain(f"{error}; the last valid content is still used")
            return
        for problem in self._file.problems:
            self._complain(problem)

    def _complain(self, problem: str) -> None:
        _log.error("credentials in {name}: {problem}", name=self._name, problem=problem)
