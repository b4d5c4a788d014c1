"""The table: medians of the rounds, and medians of the ratios within each round. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.warm.load import Latency, Sample
from benchmarks.warm.rounds import Measured

US = "blobserve"
"""The label of the server that the others are compared with."""

_COLUMNS = (
    ("", "<14"),
    ("req/s", ">9"),
    ("busy", ">6"),
    ("req/CPU-s", ">11"),
    ("CPU us/req", ">12"),
    ("CPU s/GB", ">10"),
    ("bytes/req", ">11"),
    ("ours/its", ">10"),
    ("p50 us", ">9"),
    ("p99 us", ">9"),
    ("ours/its", ">10"),
)
_LARGE = 10_000
"""The least bytes of a response for which the cost per GB is shown."""

_LOST = 0.02
"""The share of a core used by other processes above which latencies are doubtful."""


def heading() -> str:
    """Return the line with the names of the columns."""
    return _line([name for name, _ in _COLUMNS])


def block(measured: Measured) -> list[str]:
    """Return the lines of one cell, a title first."""
    rate = f"; p50, p99 at {measured.rate:,.0f}/s" if measured.rate else ""
    return [f"-- {measured.cell}{rate}", *(_row(measured, label) for label in measured.samples)]


def memory(peaks: Mapping[str, int]) -> list[str]:
    """Return the last lines of the table."""
    return [
        "-- peak memory, MB",
        *(f"{label:<14}{peak / 1e6:>9.1f}" for label, peak in peaks.items()),
    ]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios within each round."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def _row(measured: Measured, label: str) -> str:
    samples = measured.samples[label]
    ours = measured.samples.get(US, ())
    return _line([label, *_costs(samples), _compared(ours, samples), *_waits(measured, label)])


def _costs(samples: Sequence[Sample]) -> list[str]:
    size = median(each.sent / each.requests for each in samples)
    per_gb = median(each.cpu / each.sent for each in samples) * 1e9
    return [
        f"{median(each.rate for each in samples):,.0f}",
        f"{median(each.cpu / each.seconds for each in samples):.0%}",
        f"{median(each.per_cpu_second for each in samples):,.0f}",
        f"{median(each.cpu / each.requests for each in samples) * 1e6:,.1f}",
        f"{per_gb:.3f}" if size >= _LARGE else "",
        f"{size:,.0f}",
    ]


def _compared(ours: Sequence[Sample], theirs: Sequence[Sample]) -> str:
    if not ours or ours is theirs:
        return ""
    return f"{ratio([s.per_cpu_second for s in ours], [s.per_cpu_second for s in theirs]):.2f}"


def _waits(measured: Measured, label: str) -> list[str]:
    latencies = measured.latencies.get(label)
    if not latencies:
        return ["-" if measured.rate else ""] * 2 + [""]
    doubt = "?" if median(each.lost for each in latencies) > _LOST else ""
    return [
        f"{median(each.p50 for each in latencies):,.0f}{doubt}",
        f"{median(each.p99 for each in latencies):,.0f}{doubt}",
        _later(measured.latencies.get(US, ()), latencies),
    ]


def _later(ours: Sequence[Latency], theirs: Sequence[Latency]) -> str:
    if not ours or ours is theirs:
        return ""
    return f"{ratio([each.p99 for each in ours], [each.p99 for each in theirs]):.2f}"


def _line(cells: Sequence[str]) -> str:
    return "".join(
        f"{cell:{form}}" for cell, (_, form) in zip(cells, _COLUMNS, strict=True)
    ).rstrip()
