"""Measure cold starts: ``python -m benchmarks.cold``.

Run it in the checkout, with the test extra installed. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.cold import writers
from benchmarks.cold.bench import Bench, Sizes
from benchmarks.cold.cases import CASES
from benchmarks.cold.table import Figure, heading
from tests.support.parts.programs import own_directory

_ALL = {**CASES, "indexed": writers.indexed}


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller layers, within four minutes")
    parser.add_argument("--case", nargs="+", choices=_ALL, help="these cases only")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    sizes = Sizes.of(options.quick)
    print(_circumstances(sizes), heading(), sep="\n", flush=True)
    with own_directory() as home:
        bench = Bench(home, sizes)
        try:
            for name in options.case or _ALL:
                for line in _ALL[name](bench):
                    print(line.line if isinstance(line, Figure) else line, flush=True)
        finally:
            bench.stop()


def _circumstances(sizes: Sizes) -> str:
    processor = next(
        (
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    quick = "; QUICK: sizes are not those of the targets" if sizes.is_quick else ""
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {len(os.sched_getaffinity(0))} cores {processor}, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}; "
        f"large layers of {sizes.large / 1e6:,.0f} MB{quick}"
    )


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main(sys.argv[1:])
