"""Measure what a site costs: ``python -m benchmarks.sites``.

A hot file of 2 KB is served by path, by a site, by a site with as many hosting rules as an image
may have, and by one of 1,000 sites. The servers take turns. A ratio is CPU time per request divided
by that of the server in front of it in the table. Run it in the checkout, with the test extra
installed, on an otherwise idle machine. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.warm.cases import CASES, REPOSITORY, ROOT, Cell, files, requests
from benchmarks.warm.load import Sample, saturate
from benchmarks.warm.process import found, pinned
from benchmarks.warm.servers import Peer
from tests.support.parts.images import Image, write_layout
from tests.support.parts.server import Server

HOST = "app.example.com"
MOST_STATIC, MOST_DYNAMIC, MOST_BLOCKS = 2000, 100, 100
SITES = 1000

BY_PATH, SITE, RULES, MANY = "by path", "site", "site with rules", f"one of {SITES:,} sites"
RATIOS = ((SITE, BY_PATH, 1.05), (RULES, SITE, 1.15), (MANY, SITE, 1.05))
"""Each server, the one that it is compared with, and the ratio that is promised."""


def main() -> None:
    """Measure and print the table, or exit with a message."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sites", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each server (9)")
    parser.add_argument("--seconds", type=int, default=2, help="of one turn (2)")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or not found("wrk"):
        sys.exit("needs wrk, and two cores: one for the server, one for the load")
    with tempfile.TemporaryDirectory(prefix="blobserve-sites-") as name, ExitStack() as stack:
        home = Path(name)
        stack.enter_context(pinned(cores[0]))
        with pinned(cores[-1]):
            peers = {label: _started(label, home, stack) for label in (BY_PATH, SITE, RULES, MANY)}
        asked = {label: _request(label, peer, home) for label, peer in peers.items()}
        samples: dict[str, list[Sample]] = {label: [] for label in peers}
        for number in range(options.rounds + 1):
            for label, peer in peers.items():
                sample = saturate(peer, asked[label], 32, options.seconds, None)
                if number:  # The first round warms up.
                    samples[label].append(sample)
    for label, row in samples.items():
        cost = median(1e6 / each.per_cpu_second for each in row)
        print(f"{label:20} {cost:6.1f} us of CPU per request")
    for label, other, most in RATIOS:
        pairs = zip(samples[label], samples[other], strict=True)
        ratio = median(theirs.per_cpu_second / ours.per_cpu_second for ours, theirs in pairs)
        print(f"{label} / {other}: {ratio:.3f} (promised: at most {most})")


def _started(label: str, home: Path, stack: ExitStack) -> Peer:
    directory = home / label.replace(" ", "-")
    directory.mkdir()
    content = {"2k.png": files()["2k.png"], **(_rules() if label == RULES else {})}
    layout = write_layout(directory / "layout", {"v1": Image.of(content, "none")})
    rules: dict[str, object] = {"source": f"oci:{layout}", "tagMaxAge": "24h"}
    sites: dict[str, object] = {}
    if label != BY_PATH:
        sites = {HOST: {"image": f"{REPOSITORY}:v1"}}
    if label == MANY:
        sites |= {f"s{number}.example.com": f"{REPOSITORY}:v1" for number in range(1, SITES)}
    config: Mapping[str, Any] = {
        "repos": {REPOSITORY: {**rules, "prePull": ["v1"]}},
        **({"sites": sites} if sites else {}),
    }
    log = directory / "access.log"
    server = Server(directory, config, {"accessLog": {"format": "text", "file": str(log)}})
    server.start()
    stack.callback(server.stop)
    return Peer(label, log, server)


def _request(label: str, peer: Peer, home: Path) -> Path:
    """Write the request to a file, the same for all servers but for host and path."""
    [request] = requests(Cell(CASES["hot"]), peer.host, {})
    if label != BY_PATH:
        request = request.replace(f"GET {ROOT}/".encode(), b"GET /", 1)
        request = request.replace(f"Host: {peer.host}".encode(), f"Host: {HOST}".encode(), 1)
    file = home / f"{label}.requests"
    file.write_bytes(request)
    return file


def _rules() -> dict[str, bytes]:
    """Return rule files of the largest size; two blocks match the measured file."""
    static = [f"/old/{number} /new/{number} 301" for number in range(MOST_STATIC)]
    dynamic = [f"/blog/{number}/:post /posts/:post" for number in range(MOST_DYNAMIC)]
    blocks = [f"/area/{number}/*\n  X-Area: {number}" for number in range(MOST_BLOCKS - 2)]
    blocks += ["/*\n  X-Frame-Options: DENY", "/*.png\n  X-Kind: image"]
    return {
        "_redirects": "\n".join([*static, *dynamic, ""]).encode(),
        "_headers": "\n".join([*blocks, ""]).encode(),
    }


if __name__ == "__main__":
    main()
