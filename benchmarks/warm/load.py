"""The two loads: the peak rate, by wrk; and a fixed rate, by `pacer.go`."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import attrs

from benchmarks.warm.check import Wrong
from benchmarks.warm.process import cpu_seconds, program, waited_seconds
from benchmarks.warm.servers import Peer

_SCRIPT = Path(__file__).with_name("replay.lua")
_PATIENCE = 60
"""Seconds that a load generator may take beyond the time of its load."""


@attrs.frozen
class Sample:
    """The requests that a server answered in a time, and their cost."""

    requests: float
    seconds: float
    sent: int
    """Bytes sent, with heads."""
    cpu: float
    """Seconds of user and system time."""

    @property
    def rate(self) -> float:
        """Return the requests per second."""
        return self.requests / self.seconds

    @property
    def per_cpu_second(self) -> float:
        """Return the requests per second of CPU time."""
        return self.requests / self.cpu


@attrs.frozen
class Latency:
    """Percentiles in microseconds, at a fixed rate."""

    p50: float
    p99: float
    lost: float = 0
    """The share of the time in which other processes used the server's core."""


def saturate(
    peer: Peer, requests: Path, connections: int, seconds: float, size: int | None
) -> Sample:
    """Send requests over `connections`, one after another on each.

    If `size` is given, responses are counted as received bytes divided by this body size.

    :raises Wrong: when a response was an error, or a connection broke.
    """
    options = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(_SCRIPT)]
    before = cpu_seconds(peer.running.pid)
    told = _run([program("wrk"), *options, f"http://{peer.host}/", "--", requests], seconds)
    cpu = cpu_seconds(peer.running.pid) - before
    if told["failed"]:
        raise Wrong(f"{peer.label}: wrk saw errors: {told['failed']}")
    count = told["bytes"] / size if size else told["requests"]
    if not count:
        raise Wrong(f"{peer.label}: answered nothing in {seconds:g} s")
    # The kernel counts CPU time in ticks.
    return Sample(count, told["seconds"], told["bytes"], max(cpu, 0.01))


def pace(
    pacer: Path, peer: Peer, requests: Path, connections: int, seconds: float, rate: float
) -> Latency:
    """Send `rate` requests a second over `connections`.

    :raises Wrong: when a response was an error or never came, or a connection broke.
    """
    options = {"connections": connections, "rate": rate, "seconds": seconds}
    arguments = [text for name, value in options.items() for text in (f"-{name}", f"{value:g}")]
    before, begun = waited_seconds(peer.running.pid), time.monotonic()
    told = _run([pacer, "-address", peer.host, "-requests", requests, *arguments], seconds)
    if told["failed"]:
        raise Wrong(f"{peer.label}: {told['failed']} requests were never answered")
    waited = waited_seconds(peer.running.pid) - before
    return Latency(told["p50"], told["p99"], waited / (time.monotonic() - begun))


def _run(arguments: list[str | Path], seconds: float) -> dict[str, Any]:
    ended = subprocess.run(
        list(map(str, arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds + _PATIENCE,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise Wrong(f"{arguments[0]} failed:\n{ended.stdout}")
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return told
