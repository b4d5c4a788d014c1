"""Credentials: what we say to a registry about who we are.

The files that container tools share are read at each use, so that a rotated password counts at
once; one that is suddenly malformed changes nothing. A `Keychain` blocks, and may be asked in
several threads; a `SharedKeychain` asks it in threads of its own. Knows nothing of HTTP, nor of
which credential a registry will ask for.
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
"""Some threads stay free for reading files, though every helper hangs."""

_FILE_SIZE = 1 << 20
_HUB_SERVER = "https://index.docker.io/v1/"  # the name by which helpers have always known it

_log = Logger()


class Keychain:
    """The credentials of this host, for every registry.

    :param path: the only file to ask; None asks, in this order and as container tools do,
        ``$DOCKER_CONFIG/config.json`` (unset: ``~/.docker``), ``$REGISTRY_AUTH_FILE`` (unset:
        ``$XDG_RUNTIME_DIR/containers/auth.json``) and the text of ``$DOCKER_AUTH_CONFIG``.
    :param environ: the environment, also that of credential helpers.
    :param clock: seconds, by which answers of helpers grow old.
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
        """Ask every helper anew; what the files said last goes on counting while they are bad."""
        self._helpers.forget()

    def stop(self) -> None:
        """End every helper that runs, and start none any more."""
        self._helpers.stop()

    def for_repository(self, repository: Repository) -> Credential | None:
        """Return the credential for pulling from `repository`; None to be anonymous.

        The first place that has one counts; in it, the registry's helper, then the store, then
        what is written there, each by its most specific key. Blocks while a helper runs.
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
        """Return what stands in each place, in their order. Blocks."""
        return [place.current() for place in self._places]

    def known_login(self, helper: str, server: str) -> tuple[HelperLogin | None] | None:
        """Return what `login` would return, if it would do so at once."""
        return self._helpers.remembered(helper, server)

    def login(self, helper: str, server: str) -> HelperLogin | None:
        """Return what a helper knows of `server`. Blocks while it runs."""
        return self._helpers.ask(helper, server)


class Credentials(Protocol):
    """Knows the credential for each repository."""

    async def for_repository(self, repository: Repository) -> Credential | None:
        """Return the credential for pulling from `repository`; None to be anonymous."""
        ...


class SharedKeychain:
    """A keychain that is asked in `threads`. See `Credentials`.

    A helper that hangs keeps one thread for each server, however many ask for its answer, and
    delays neither other files nor, unless many hang, other helpers.
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
    # Set but empty is as good as unset, or the working directory would be searched.
    if docker := environ.get("DOCKER_CONFIG"):
        yield Path(docker, "config.json")
    elif home := environ.get("HOME"):
        yield Path(home, ".docker", "config.json")
    if named := environ.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    elif runtime := environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "containers", "auth.json")


def _content(path: Path) -> bytes | None:
    """The bytes of a regular file; none where there is no such file, None if it is unreadable."""
    try:
        # O_NONBLOCK: a FIFO in its place would hold this thread until somebody writes.
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
    """Where credentials are written, and the last that could be made of what stands there."""

    def __init__(self, name: str, read: Callable[[], bytes | None]) -> None:
        self._name = name
        self._read = read
        self._lock = threading.Lock()
        self._content: bytes | None = b""
        self._file = AuthFile()

    def current(self) -> AuthFile:
        """What stands there now. What is wrong with it is logged, once for each change."""
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
            self._complain(f"{error}; what it said before still counts")
            return
        for problem in self._file.problems:
            self._complain(problem)

    def _complain(self, problem: str) -> None:
        _log.error("credentials in {name}: {problem}", name=self._name, problem=problem)
