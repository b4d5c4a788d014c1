"""The tools of every case: a registry, a slow link to it, servers, and layers by name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from benchmarks.cold.client import ask
from benchmarks.cold.layers import Blob, described, entry, gzipped
from benchmarks.cold.link import Link
from benchmarks.cold.origin import Origin
from tests.support.parts.programs import free_port
from tests.support.parts.server import ROOT, Server

REPOSITORY = "bench/site"
MB = 1_000_000


@attrs.frozen
class Sizes:
    """The sizes of the layers; those of a quick run are smaller, so its figures say less."""

    is_quick: bool
    large: int
    each: int
    """The bytes of each file in a large layer."""
    entries: int
    pulls: int
    rounds: int

    @classmethod
    def of(cls, is_quick: bool) -> Sizes:
        """Return the sizes of the targets, or those of a run of four minutes."""
        if is_quick:
            return cls(True, 64 * MB, 100_000, 100_000, 10, 3)
        return cls(False, 1000 * MB, 100_000, 1_000_000, 10, 5)


class Bench:
    """The registry and the link, started; `stop` ends them."""

    def __init__(self, home: Path, sizes: Sizes) -> None:
        self.home = home
        self.sizes = sizes
        self.origin = Origin(home)
        self.origin.start()
        self.link = Link(_made(home / "link"), self.origin.port)
        self.link.start()
        self._layers: dict[str, Blob] = {}
        self._servers = 0

    def stop(self) -> None:
        """End the registry and the link."""
        self.link.stop()
        self.origin.stop()

    def layer(self, name: str, make: Callable[[Path], Path], media_type: str = "") -> Blob:
        """Return the layer of this name; it is made once."""
        if name not in self._layers:
            kind = {"media_type": media_type} if media_type else {}
            self._layers[name] = described(make(self.home / f"{name}.layer"), **kind)
        return self._layers[name]

    def host(self, is_slow: bool) -> str:
        """Return the address of the registry, directly or over the slow link."""
        return self.link.host if is_slow else self.origin.host

    @contextmanager
    def server(
        self,
        rules: Mapping[str, object] | None = None,
        is_slow: bool = False,
        **how: Any,
    ) -> Iterator[Server]:
        """Start a server with an empty blob space, and let it pull a tiny image.

        `how` are further arguments of `Server`.
        """
        self._servers += 1
        directory = _made(self.home / f"server-{self._servers}")
        host = self.host(is_slow)
        repos = {f"{host}/{REPOSITORY}": rules or {}, f"{host}/{REPOSITORY}/tiny": {}}
        self.metrics = free_port()
        server = Server(
            directory,
            {"timeout": "10m", "repos": repos},
            {"prometheusAddr": f"127.0.0.1:{self.metrics}"},
            **how,
        )
        server.start()
        try:
            self._warm(server, host)
            yield server
        finally:
            server.stop()
            subprocess.run(["rm", "-rf", directory], check=True)

    def takes(self, rules: Mapping[str, object]) -> bool:
        """Return whether a server accepts these rules for a repository."""
        directory = _made(self.home / "check")
        server = Server(directory, {"repos": {f"{self.origin.host}/{REPOSITORY}": rules}})
        check = [sys.executable, "-m", "twisted", "blobserve", "--config", server.config, "--check"]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        return not subprocess.run(
            check, cwd=directory, env=environment, capture_output=True, check=False
        ).returncode

    def metric(self, name: str) -> float | None:
        """Return a metric of the newest server, summed over its labels; None if it has none."""
        text = ask(self.metrics, "/metrics").body.decode()
        if f"# TYPE {name} " not in text:
            return None
        lines = [line for line in text.splitlines() if re.match(rf"{name}[ {{]", line)]
        return sum(float(line.split()[-1]) for line in lines)

    def _warm(self, server: Server, host: str) -> None:
        tiny = self.layer("tiny", lambda path: gzipped(path, [entry(b"a", b"a"), bytes(1024)]))
        self.origin.publish(f"{REPOSITORY}/tiny", "v1", [tiny])
        answer = ask(server.port, f"/{host}/{REPOSITORY}/tiny:v1/a")
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {answer.body!r}, see {server.output.read_text()}")


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory
