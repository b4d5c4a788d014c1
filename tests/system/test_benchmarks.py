"""The benchmarks: their requests, their check of answers, and their figures."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from benchmarks import push_to_live
from benchmarks.cold import layers
from benchmarks.cold.bench import MB, Sizes
from benchmarks.cold.bench import Bench as ColdBench
from benchmarks.cold.cases import CASES as COLD_CASES
from benchmarks.cold.link import RATE, ROUND_TRIP
from benchmarks.cold.table import Figure
from benchmarks.warm import table
from benchmarks.warm.cases import CASES, ROOT, Case, Cell, plan, requests
from benchmarks.warm.check import Answer, Wrong, ask, check
from benchmarks.warm.load import Latency, Sample
from benchmarks.warm.process import cpu_seconds, peak_memory, pinned, waited_seconds
from benchmarks.warm.rounds import Measured
from benchmarks.warm.servers import Files, Peer, start
from blobserve.web.http.request_head import HeadCheck
from tests.support.parts.programs import own_directory

CONTENT = {"2k.png": bytes(2_048), "64k.png": bytes(range(256)) * 256}
HOST = "127.0.0.1:10000"


@pytest.mark.parametrize("cell", plan(list(CASES), is_quick=False), ids=str)
def test_every_request_has_a_head_that_blobserve_takes(cell: Cell) -> None:
    """Every request is one whole head, with a browser's 13 fields or with Host alone."""
    one = attrs.evolve(cell, case=attrs.evolve(cell.case, paths=cell.case.paths[:1]))
    *_, request = requests(one, HOST, {})
    head, end, rest = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    seen = HeadCheck()
    for line in [*lines, b""]:
        seen.line(line)
    fields = {"browser": 13, "bare": 1}[cell.head] + (cell.case.status == 206)
    assert (len(lines) - 1, end, rest) == (fields, b"\r\n\r\n", b"")


def test_every_head_of_the_heads_differs() -> None:
    """The case of different heads requests one file with a different head each time."""
    asked = requests(Cell(CASES["heads"]), HOST, {})
    assert len(set(asked)) == len(asked) == CASES["heads"].heads
    assert len({request.split(b"\r\n")[0] for request in asked}) == 1


def test_full_run_has_every_case_from_1_to_256_connections() -> None:
    """A full run covers every case, both heads, with and without a log, and three loads."""
    cells = plan(list(CASES), is_quick=False)
    assert {cell.case.name for cell in cells} == set(CASES)
    assert {(cell.logs, cell.head) for cell in cells} >= {(True, "browser"), (False, "bare")}
    assert {cell.connections for cell in cells} == {1, 32, 256}


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Peer]:
    """Twisted's own server, which supports no ranges."""
    below = tmp_path / "tree" / ROOT[1:]
    below.mkdir(parents=True)
    for name, content in CONTENT.items():
        (below / name).write_bytes(content)
    peer = start("twisted", tmp_path, Files(tmp_path / "tree", tmp_path), logs=True)
    yield peer
    peer.running.stop()


def asked_of(peer: Peer, case: Case, conditions: dict[str, str] | None = None) -> Sequence[bytes]:
    """Return the requests of `case` for `peer`."""
    return requests(Cell(case), peer.host, conditions or {})


def test_right_answers_pass(bare: Peer) -> None:
    """A server with correct answers passes the check, with 200 and with 304."""
    whole = asked_of(bare, CASES["hot"])
    check(bare.running.port, CASES["hot"], whole, CONTENT)
    again = asked_of(bare, CASES["304"], ask(bare.running.port, whole[0]).conditions)
    check(bare.running.port, CASES["304"], again, CONTENT)


@pytest.mark.parametrize("name", ["206", "304"])
def test_wrong_statuses_do_not_pass(bare: Peer, name: str) -> None:
    """A server that sends the whole file instead of a 206 or 304 fails the check."""
    with pytest.raises(Wrong, match="answered 200"):
        check(bare.running.port, CASES[name], asked_of(bare, CASES[name]), CONTENT)


def test_wrong_bytes_do_not_pass(bare: Peer) -> None:
    """A server that sends the right length with one wrong byte fails the check."""
    expected = {**CONTENT, "2k.png": bytes(2_047) + b"!"}
    with pytest.raises(Wrong, match="wrong 2048 bytes"):
        check(bare.running.port, CASES["hot"], asked_of(bare, CASES["hot"]), expected)


def test_missing_log_lines_are_seen(bare: Peer) -> None:
    """A server that logs too few lines is detected."""
    check(bare.running.port, CASES["hot"], asked_of(bare, CASES["hot"]), CONTENT)
    assert bare.has_logged(1)
    assert not bare.has_logged(10_000)


def test_a_date_asks_where_there_is_no_tag() -> None:
    """The conditional request uses If-Modified-Since if the server sends no ETag."""
    answer = Answer(200, {"last-modified": "Sun, 13 Sep 2020 12:26:40 GMT"}, b"")
    assert answer.conditions == {"If-Modified-Since": "Sun, 13 Sep 2020 12:26:40 GMT"}


def test_cpu_time_and_memory_of_children_count() -> None:
    """The CPU time and memory of child processes count for a server."""
    spin = "import time\nkept = bytearray(64_000_000)\nwhile time.process_time() < 0.3: pass\n"
    child = f"{spin}print('spun', flush=True)\ninput()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", parent], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"spun\n"
        # The kernel counts whole ticks; without the child the sum would be near zero.
        assert cpu_seconds(process.pid) >= 0.25
        assert peak_memory(process.pid) >= 64_000_000
        process.communicate(b"\n")


def test_what_is_started_while_pinned_stays_on_its_core() -> None:
    """A process that is started on one core may use that core alone."""
    before = os.sched_getaffinity(0)
    core = max(before)
    with pinned(core):
        told = subprocess.run(
            [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"],
            stdout=subprocess.PIPE,
            check=True,
        )
    assert told.stdout.split() == [b"%d" % core]
    assert os.sched_getaffinity(0) == before


def samples(*cpus: float) -> list[Sample]:
    """Return rounds of 100 requests in one second with 2,000,000 bytes and these CPU times."""
    return [Sample(100, 1, 2_000_000, cpu) for cpu in cpus]


def test_ratios_are_of_the_same_round() -> None:
    """A ratio is the median of the ratios of the rounds, not the ratio of the medians."""
    assert table.ratio([1, 2, 9], [1, 4, 3]) == 1.0


def test_a_row_holds_cost_and_ratios() -> None:
    """A row has the rate, the cost per request and per GB, and the ratios to blobserve."""
    measured = Measured(
        Cell(CASES["64k"]),
        {"blobserve": samples(0.5, 0.5, 0.5), "go": samples(0.25, 0.25, 1.0)},
        rate=70,
        latencies={"blobserve": [Latency(100, 900)] * 3, "go": [Latency(50, 300)] * 3},
    )
    title, ours, its = table.block(measured)
    assert title.endswith("32 connections; p50, p99 at 70/s")
    assert " ".join(ours.split()) == "blobserve 100 50% 200 5,000.0 250.000 20,000 100 900"
    assert " ".join(its.split()) == "go 100 25% 400 2,500.0 125.000 20,000 0.50 50 300 3.00"


def test_latencies_of_a_busy_machine_are_in_doubt() -> None:
    """A latency is marked if other processes took much of the server's core in most rounds."""
    quiet, busy = Latency(100, 900, lost=0.01), Latency(50, 300, lost=0.1)
    measured = Measured(
        Cell(CASES["hot"]),
        {"blobserve": samples(0.5), "go": samples(0.25)},
        rate=70,
        latencies={"blobserve": [quiet, busy, quiet], "go": [quiet, busy, busy]},
    )
    _, ours, its = table.block(measured)
    assert ours.split()[-2:] == ["100", "900"]
    assert its.split()[-3:-1] == ["50?", "300?"]


def test_waiting_for_a_core_is_seen() -> None:
    """Time in which a runnable process waited for its core is counted."""
    spin = "import time\nwhile time.process_time() < 0.5: pass\nprint('spun', flush=True)\ninput()"
    pipe = subprocess.PIPE
    with pinned(max(os.sched_getaffinity(0))), ExitStack() as stack:
        pair = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", spin], stdin=pipe, stdout=pipe)
            )
            for _ in range(2)
        ]
        for each in pair:
            assert each.stdout is not None
            assert each.stdout.readline() == b"spun\n"
        waited = sum(waited_seconds(each.pid) for each in pair)
        for each in pair:
            each.communicate(b"\n")
    assert waited >= 0.3


def test_a_server_that_cannot_hold_the_rate_has_no_latency() -> None:
    """A server that cannot sustain the fixed rate has dashes in its row."""
    measured = Measured(
        Cell(CASES["hot"]),
        {"blobserve": samples(0.5), "twisted": samples(1.0)},
        rate=70,
        latencies={"blobserve": [Latency(100, 900)]},
    )
    assert table.block(measured)[2].split()[-2:] == ["-", "-"]


@pytest.fixture(scope="module")
def cold() -> Iterator[ColdBench]:
    """The benchmark of cold starts, with small layers."""
    with own_directory() as home:
        bench = ColdBench(home, Sizes(True, 2 * MB, 20_000, 500, 2, 1))
        yield bench
        bench.stop()


@pytest.mark.parametrize("case", ["upgrade", "entries", "ten"])
def test_every_figure_of_a_cold_start_has_a_target(cold: ColdBench, case: str) -> None:
    """A case runs against a real registry and gives a target for each figure."""
    figures = list(COLD_CASES[case](cold))
    assert figures
    for figure in figures:
        assert isinstance(figure, Figure)
        assert figure.most is not None
        assert figure.value >= 0


def test_what_is_not_here_is_said(cold: ColdBench) -> None:
    """The benchmark detects rules that the server under test does not support."""
    assert cold.takes({"workdir": "/srv"})
    assert not cold.takes({"nothing": "of the kind"})


def test_slow_link_is_slow(cold: ColdBench) -> None:
    """The slow link has at least its stated round trip and at most its stated rate."""
    trip, rate = COLD_CASES["link"](cold)
    assert isinstance(trip, Figure)
    assert isinstance(rate, Figure)
    assert trip.value >= ROUND_TRIP * 1e3
    assert 0 < rate.value <= 1.02 * RATE * 8 / 1e6


@pytest.mark.parametrize("level", [0, 1])
def test_layers_of_the_benchmark_are_tar_archives(tmp_path: Path, level: int) -> None:
    """Generated layers are valid gzip and tar, hold their files, and are reproducible."""
    make = [
        layers.gzipped(tmp_path / name, layers.large(50_000, 1_000), level) for name in ("a", "b")
    ]
    assert make[0].read_bytes() == make[1].read_bytes()
    whole = layers.variant(make[0], tmp_path / "c", 7)
    with tarfile.open(fileobj=io.BytesIO(whole.read_bytes()), mode="r:gz") as archive:
        names = archive.getnames()
    assert names == ["number-7", *map(layers.name_of, range(50))]


def test_a_figure_beyond_its_target_is_told() -> None:
    """The table marks each figure as within its target, limit included, or beyond it."""
    assert "NOT MET" in Figure("case", 0.51, 0.5).line
    assert Figure("case", 0.5, 0.5).line.endswith("met")
    assert "met" not in Figure("case", 0.5).line.lower()


def test_a_push_is_measured_until_it_is_live() -> None:
    """A round pushes a new layer, and has the time of the push and that of the cold pull."""
    with own_directory() as home, push_to_live.parts(home) as (registry, live, cold):
        registry.put(push_to_live.application(0, 50_000), "bench/site:live")
        for server in (live, cold):
            push_to_live.fetched(server, f"/{registry.host}/bench/site:live/number")
        for number in (1, 2):
            found = push_to_live.measured(registry, live, cold, number, 50_000)
            assert 0 < found.live < 60
            assert 0 < found.cold < 60
