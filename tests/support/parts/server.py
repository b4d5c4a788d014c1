"""blobserve as its users start it: `twist blobserve --config F`, as a process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from tests.support.parts.programs import answers, end, free_port, wait_until

ROOT = Path(__file__).resolve().parents[3]
"""The checkout under test."""

_TWIST = ("-m", "twisted")


@attrs.frozen
class Response:
    """An answer with the complete body as received."""

    status: int
    headers: http.client.HTTPMessage = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)


class Server:
    """A blobserve process on a free port of 127.0.0.1, with its blob space in `directory`.

    `config` is the configuration under the key ``blobserve``, without the address and the location
    of the blob space. `top` has the keys beside it.
    """

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, object],
        top: Mapping[str, object] | None = None,
        under: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        twist: Sequence[str] = _TWIST,
        checkout: Path = ROOT,
    ) -> None:
        """Write the configuration; `start` starts the process.

        :param under: a command that runs the server and hands its process over; see `strace -D`.
        :param environment: variables that its process has besides those of this one.
        :param twist: arguments by which Python runs `twist`, or a program in its place.
        :param checkout: the tree with the server's code.
        """
        self.directory = directory
        self._checkout = checkout
        self._under = under
        self._environment = environment
        self._twist = twist
        self.port = free_port()
        self.output = directory / "output"
        """The output of every run: the log and the access log."""
        self.space = directory / "space"
        self.config = directory / "blobserve.yaml"
        self.configure(config, top)
        self._process: subprocess.Popen[bytes] | None = None

    def configure(
        self, config: Mapping[str, object], top: Mapping[str, object] | None = None
    ) -> None:
        """Write the configuration file; a running server reads it at `reload`."""
        listen = f"tcp:{self.port}:interface=127.0.0.1:backlog=1024"
        space = {"location": str(self.space), **config.get("blobSpace", {})}  # type: ignore[dict-item]
        own = {**config, "listen": listen, "blobSpace": space}
        # JSON is YAML; a brace as the first character would select the original format.
        self.config.write_text("# of a test\n" + json.dumps({"blobserve": own, **(top or {})}))

    @property
    def url(self) -> str:
        """Its URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, again with the same blob space."""
        path = os.pathsep.join([str(self._checkout), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._under, sys.executable, *self._twist, "blobserve", "--config", self.config],
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": path, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        wait_until(lambda: answers(self.port), self._process, self.output)

    def stop(self) -> int:
        """Stop it by SIGTERM; return its exit code."""
        process, self._process = self._process, None
        return 0 if process is None else end(process)

    def kill(self) -> None:
        """Kill it by SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def reload(self) -> None:
        """Tell it to reload its configuration, which takes a moment."""
        os.kill(self.pid, signal.SIGHUP)

    def peak_memory(self) -> int:
        """Return the peak memory of the process in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    def fetch(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send one request on its own connection; block for a minute at most."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, target, headers=dict(headers or {}))
            answer = connection.getresponse()
            return Response(answer.status, answer.headers, answer.read())
        finally:
            connection.close()
