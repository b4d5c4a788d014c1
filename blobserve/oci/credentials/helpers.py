"""Credential helpers: programs named ``docker-credential-<name>`` that know passwords.

Blocking, and safe to call from several threads. A helper is a program of somebody else: it is
never found by a path, never gets a shell, and is bounded in time and in what it may say.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, cast

import attrs
from twisted.logger import Logger

from blobserve.oci.strict_json import parse_object

RUNS_WITHIN = 10.0
KEEP_ANSWER = 3600.0
KEEP_FAILURE = 5.0

_ANSWER_SIZE = 128 * 1024
_NAME = re.compile(r"[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]+)*")

_log = Logger()


@attrs.frozen
class HelperLogin:
    """What a helper answered: a user, and a password or a token."""

    username: str
    secret: str = attrs.field(repr=False)


@attrs.define
class _CachedAnswer:
    """The last answer of one helper for one server; whoever holds `lock` may ask anew."""

    lock: threading.Lock = attrs.field(factory=threading.Lock)
    login: HelperLogin | None = None
    until: float = float("-inf")


class CredentialHelpers:
    """Asks helpers, one process at a time for each server, and remembers what they say.

    :param environ: the environment of the helpers; its PATH is where they are found.
    :param clock: seconds, by which answers grow old.
    :param runs_within: real seconds that a helper has for its answer.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        runs_within: float = RUNS_WITHIN,
    ) -> None:
        self._environ = environ
        self._clock = clock
        self._runs_within = runs_within
        self._lock = threading.Lock()
        self._remembered: dict[tuple[str, str], _CachedAnswer] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False

    def ask(self, name: str, server: str) -> HelperLogin | None:
        """What the helper `name` knows of `server`; None when it knows nothing, or fails.

        An answer is remembered for an hour, its absence for five seconds.
        """
        with self._lock:
            remembered = self._remembered.setdefault((name, server), _CachedAnswer())
        with remembered.lock:
            if self._clock() >= remembered.until:
                remembered.login = login = self._run(name, server)
                keep = KEEP_FAILURE if login is None else KEEP_ANSWER
                remembered.until = self._clock() + keep
            return remembered.login

    def remembered(self, name: str, server: str) -> tuple[HelperLogin | None] | None:
        """Return the answer that `ask` would give without running the helper; None if it would."""
        found = self._remembered.get((name, server))
        return (found.login,) if found is not None and self._clock() < found.until else None

    def forget(self) -> None:
        """Ask every helper anew."""
        with self._lock:
            self._remembered = {}

    def stop(self) -> None:
        """End every helper that runs, and start none any more. Does not wait for their end."""
        with self._lock:
            self._is_stopped = True
            for process in self._processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def _run(self, name: str, server: str) -> HelperLogin | None:
        try:
            return _login(self._output(self._program(name), server))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            if not self._is_stopped:
                # Its class alone: the text may quote what the helper printed.
                _log.warn(
                    "credential helper {name} gave nothing for {server}: {kind}",
                    name=name,
                    server=server,
                    kind=type(error).__name__,
                )
            return None

    def _program(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a helper's name is no path")
        found = shutil.which(f"docker-credential-{name}", path=self._environ.get("PATH", ""))
        if found is None:
            raise FileNotFoundError(name)
        return found

    def _output(self, program: str, server: str) -> bytes:
        """Everything that ``program get`` prints for `server`.

        :raises subprocess.SubprocessError: when it takes too long, or says itself that it failed.
        :raises ValueError: when it says too much.
        """
        with self._started(program) as process:
            try:
                _tell(cast("IO[bytes]", process.stdin), server)
                output = _hear(process, cast("IO[bytes]", process.stdout), self._runs_within)
            except BaseException:
                # Not yet waited for, so the group is still its own; its children go with it.
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                with self._lock:
                    self._processes.discard(process)
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, program)
        return output

    def _started(self, program: str) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_stopped:
                raise subprocess.SubprocessError
            process = subprocess.Popen(
                [program, "get"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=dict(self._environ),
                start_new_session=True,
            )
            self._processes.add(process)
            return process


def _login(output: bytes) -> HelperLogin:
    """Read what a helper printed.

    :raises ValueError: when that is no login.
    """
    answer = parse_object(output)
    username, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str) or not secret:
        raise ValueError("no user or no secret")
    return HelperLogin(username, secret)


def _tell(stdin: IO[bytes], server: str) -> None:
    with contextlib.suppress(BrokenPipeError), stdin:
        stdin.write(server.encode())


def _hear(process: subprocess.Popen[bytes], stdout: IO[bytes], runs_within: float) -> bytes:
    deadline = time.monotonic() + runs_within
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while len(output) <= _ANSWER_SIZE:
            if not selector.select(max(0, deadline - time.monotonic())):
                raise subprocess.TimeoutExpired(process.args, runs_within)
            chunk = os.read(stdout.fileno(), 65536)
            output += chunk
            if not chunk:
                process.wait(max(0, deadline - time.monotonic()))
                return output
    raise ValueError("too much output")
