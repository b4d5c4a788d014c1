"""Measure warm serving: ``python -m benchmarks.warm``.

Run it in the checkout, with the test extra installed. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from benchmarks.warm import servers, table
from benchmarks.warm.cases import CASES, QUICK, ROOT, Cell, files, plan
from benchmarks.warm.check import Wrong
from benchmarks.warm.process import found, peak_memory, pinned
from benchmarks.warm.rounds import Bench
from benchmarks.warm.servers import PACKAGES, SERVERS, Files, Peer
from tests.support.parts.images import Image, write_layout

_PACER = Path(__file__).with_name("pacer.go")


def main(arguments: Sequence[str]) -> None:
    """Measure and print, or exit with a message."""
    options = _options(arguments)
    if options.before is not None:
        servers.add_build(options.before.resolve())
    names = _available([*options.servers, servers.BEFORE])
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("needs two cores: one for the server, one for the load")
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(prefix="blobserve-warm-") as name, ExitStack() as stack:
        home = Path(name)
        content = files()
        cells = plan(options.case, is_quick=options.quick)
        stack.enter_context(pinned(cores[0]))
        with pinned(cores[-1]):
            peers = list(_started(names, cells, home, _written(content, home), stack))
        pacer = servers.built(_PACER, home) if found("go") else None
        bench = Bench(home, content, options.rounds, options.seconds, pacer)
        _say(*_circumstances(options, names, cores), table.heading())
        for cell in cells:
            _say(*table.block(bench.measure(cell, _in(cell, peers))))
        _say(*table.memory({_title(peer): peak_memory(peer.running.pid) for peer in peers}))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.warm", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer cases, in two minutes")
    parser.add_argument("--case", nargs="+", choices=CASES, help="these cases only")
    parser.add_argument(
        "--servers", nargs="+", choices=SERVERS, default=list(SERVERS), help="these servers only"
    )
    parser.add_argument("--before", type=Path, help="a checkout of another build, to compare with")
    parser.add_argument("--rounds", type=int, help="turns of each server in a cell (3)")
    parser.add_argument("--seconds", type=int, help="of one turn (2)")
    options = parser.parse_args(arguments)
    options.case = options.case or (QUICK if options.quick else list(CASES))
    options.rounds = options.rounds or (2 if options.quick else 3)
    options.seconds = options.seconds or (1 if options.quick else 2)
    return options


def _available(names: Iterable[str]) -> list[str]:
    """Return the installed servers of `names`, in the order of the table; print the others."""
    missing = [name for name in ("wrk", *SERVERS) if not servers.is_installed(name)]
    for name in missing:
        print(f"{name} is not installed: apt-get install {PACKAGES[name]}", file=sys.stderr)
    if "wrk" in missing:
        sys.exit(1)
    if "go" in missing:
        print("without go, latency at a fixed rate is not measured", file=sys.stderr)
    return [name for name in SERVERS if name in names and name not in missing]


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _written(content: dict[str, bytes], home: Path) -> Files:
    tree, below = home / "tree", home / "tree" / ROOT[1:]
    for path, each in content.items():
        (below / path).parent.mkdir(parents=True, exist_ok=True)
        (below / path).write_bytes(each)
    subprocess.run(["gzip", "--keep", below / "app.js"], check=True)
    return Files(tree, write_layout(home / "layout", {"v1": Image.of(content, "none")}))


def _started(
    names: Sequence[str], cells: Sequence[Cell], home: Path, served: Files, stack: ExitStack
) -> Iterable[Peer]:
    """Start each server with and without an access log, if a cell needs it."""
    for name in names:
        for logs in (True, False):
            if any(cell.logs == logs for cell in cells) or name == "go":
                peer = servers.start(name, home, served, logs=logs)
                stack.callback(peer.running.stop)
                yield peer


def _in(cell: Cell, peers: Sequence[Peer]) -> list[Peer]:
    """Return the servers of a cell; Go without a log is always one, as the fastest server."""
    return [
        peer for peer in peers if (peer.log is not None) == cell.logs or peer.label == "go, no log"
    ]


def _title(peer: Peer) -> str:
    return peer.name if peer.log else f"{peer.name}, no log"


def _circumstances(
    options: argparse.Namespace, names: Sequence[str], cores: Sequence[int]
) -> list[str]:
    model = [
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return [
        f"{time.strftime('%Y-%m-%d %H:%M')}, {len(cores)} cores {(model or ['?'])[0]}, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        ", ".join(_versions(names)),
        f"servers on core {cores[-1]}, load on core {cores[0]}; "
        f"{options.rounds} rounds of {options.seconds} s in turn",
    ]


def _versions(names: Sequence[str]) -> Iterable[str]:
    asked = {"nginx": "-v", "caddy": "version", "go": "version", "wrk": "-v"}
    for name in (*names, "wrk"):
        if name in asked:
            told = subprocess.run(
                [found(name) or "", asked[name]],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            first = told.stdout.splitlines()[0]
            yield first if name in first else f"{name} {first}"


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (Wrong, pytest.fail.Exception) as error:
        sys.exit(str(error))
