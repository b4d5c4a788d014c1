"""Credential helpers: programs named ``docker-credential-<name>`` that give passwords.

Functions block, and are safe to call from several threads. A helper is foreign code: its name is
never a path, it runs without a shell, and its time and output are limited.
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
    """The answer of a helper: a user, and a password or a token."""

    username: str
    secret: str = attrs.field(repr=False)


@attrs.define
class _CachedAnswer:
    """The last answer of one helper for one server. Hold `lock` to ask again."""

    lock: threading.Lock = attrs.field(factory=threading.Lock)
    login: HelperLogin | None = None
    until: float = float("-inf")


class CredentialHelpers:
    """A cache of the answers of helpers, with at most one process for each helper and server.

    :param environ: the environment of the helpers; its PATH is searched for them.
    :param clock: a clock in seconds, by which answers expire.
    :param runs_within: the timeout of a helper, in real seconds.
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
        """Return the login that the helper `name` has for `server`; None if it has none or fails.

        A login is cached for an hour, a failure for five seconds.
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
        """Return the cached answer of `ask`, in a tuple; None if `ask` would run the helper."""
        found = self._remembered.get((name, server))
        return (found.login,) if found is not None and self._clock() < found.until else None

    def forget(self) -> None:
        """Drop all cached answers."""
        with self._lock:
            self._remembered = {}

    def stop(self) -> None:
        """Kill all running helpers, without waiting for their end, and start no more."""
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
                # Only the class of the error: its text may quote output of the helper.
                _log.warn(
                    "credential helper {name} failed for {server}: {kind}",
                    name=name,
                    server=server,
                    kind=type(error).__name__,
                )
            return None

    def _program(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("the name of a helper is not a path")
        found = shutil.which(f"docker-credential-{name}", path=self._environ.get("PATH", ""))
        if found is None:
            raise FileNotFoundError(name)
        return found

    def _output(self, program: str, server: str) -> bytes:
        """Return the output of ``program get`` for `server`.

        :raises subprocess.SubprocessError: when it times out, or exits with an error.
        :raises ValueError: when its output is too long.
        """
        with self._started(program) as process:
            try:
                _send(cast("IO[bytes]", process.stdin), server)
                output = _receive(process, cast("IO[bytes]", process.stdout), self._runs_within)
            except BaseException:
                # Before the wait, so the group ID is still its own. Children are killed too.
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
    """Read the output of a helper.

    :raises ValueError: when it is not a login.
    """
    answer = parse_object(output)
    username, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str) or not secret:
        raise ValueError("no user or no secret")
    return HelperLogin(username, secret)


def _send(stdin: IO[bytes], server: str) -> None:
    with contextlib.suppress(BrokenPipeError), stdin:
        stdin.write(server.encode())


def _receive(process: subprocess.Popen[bytes], stdout: IO[bytes], runs_within: float) -> bytes:
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
