"""The measurement of a cell: servers take turns, so that noise of the machine affects all of them.

The responses are checked before each turn. The fixed rate is a share of the peak of blobserve in
the same cell, and equal for all servers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import attrs

from benchmarks.warm.cases import Case, Cell, requests
from benchmarks.warm.check import Wrong, ask, check
from benchmarks.warm.load import Latency, Sample, pace, saturate
from benchmarks.warm.servers import BEFORE, Peer

SHARE = 0.7
"""The fixed rate at which latency is measured, as a share of the peak of the first server."""
_CODED_WITHIN = 5.0
"""Seconds that a server may take to make its compressed copies."""
_WARM_UP = 1


@attrs.frozen
class Measured:
    """The samples of a cell by the label of each server, one for each round.

    A server has no `latencies` if it cannot reach `rate`, or if the cell has no fixed rate.
    """

    cell: Cell
    samples: Mapping[str, Sequence[Sample]]
    rate: float | None = None
    latencies: Mapping[str, Sequence[Latency]] = attrs.field(factory=dict)


@attrs.frozen
class Bench:
    """The tools of every measurement; `pacer` is the built program, if Go is installed."""

    home: Path
    files: Mapping[str, bytes]
    rounds: int
    seconds: int
    pacer: Path | None
    _warm: set[tuple[str, bool, str]] = attrs.field(factory=set, init=False)

    def measure(self, cell: Cell, peers: Sequence[Peer]) -> Measured:
        """Measure `peers` in turn; the first one determines the fixed rate.

        :raises Wrong: when a server gives a wrong response.
        """
        turns = [self._turn(cell, peer) for peer in peers if peer.name not in cell.case.without]
        samples: dict[str, list[Sample]] = {turn.peer.label: [] for turn in turns}
        for _ in range(self.rounds):
            for turn in turns:
                samples[turn.peer.label].append(turn.saturate(self.seconds))
        if not cell.is_paced or self.pacer is None:
            return Measured(cell, samples)
        peaks = {label: median(each.rate for each in row) for label, row in samples.items()}
        rate = SHARE * next(iter(peaks.values()))
        able = [turn for turn in turns if SHARE * peaks[turn.peer.label] >= 0.9 * rate]
        latencies: dict[str, list[Latency]] = {turn.peer.label: [] for turn in able}
        for _ in range(self.rounds):
            for turn in able:
                latencies[turn.peer.label].append(turn.pace(self.pacer, self.seconds, rate))
        return Measured(cell, samples, rate, latencies)

    def _turn(self, cell: Cell, peer: Peer) -> _Turn:
        conditions = _conditions(cell, peer)
        asked = requests(cell, peer.host, conditions)
        file = self.home / f"{peer.name}.requests"
        file.write_bytes(b"".join(asked))
        turn = _Turn(cell, peer, asked, file, self.files)
        known = (peer.label, peer.log is not None, cell.case.name)
        if known not in self._warm:
            self._warm.add(known)
            turn.saturate(_WARM_UP)
            if cell.case.name == "text" and peer.name in ("blobserve", BEFORE):
                _wait_for_coding(peer, asked[0])
        return turn


@attrs.frozen
class _Turn:
    """One server in one cell."""

    cell: Cell
    peer: Peer
    asked: Sequence[bytes] = attrs.field(repr=False)
    file: Path
    files: Mapping[str, bytes] = attrs.field(repr=False)

    def saturate(self, seconds: int) -> Sample:
        """Check the responses, then measure the peak rate."""
        self._begin()
        case = self.cell.case
        size = len(self.files[case.paths[0]]) if case.is_large else None
        sample = saturate(self.peer, self.file, self.cell.connections, seconds, size)
        if not self.peer.has_logged(sample.requests):
            raise Wrong(f"{self.peer.label}: most requests are not in its access log")
        return sample

    def pace(self, pacer: Path, seconds: int, rate: float) -> Latency:
        """Check the responses, then measure latency at the fixed rate."""
        self._begin()
        return pace(pacer, self.peer, self.file, self.cell.connections, seconds, rate)

    def _begin(self) -> None:
        check(self.peer.running.port, self.cell.case, self.asked, self.files)
        self.peer.forget_log()


def _conditions(cell: Cell, peer: Peer) -> Mapping[str, str]:
    case: Case = cell.case
    if case.status != 304:
        return {}
    whole = attrs.evolve(cell, case=attrs.evolve(case, status=200))
    return ask(peer.running.port, requests(whole, peer.host, {})[0]).conditions


def _wait_for_coding(peer: Peer, request: bytes) -> None:
    give_up = time.monotonic() + _CODED_WITHIN
    while time.monotonic() < give_up:
        if "content-encoding" in ask(peer.running.port, request).headers:
            return
        time.sleep(0.1)
