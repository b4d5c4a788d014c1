"""A cold pull against `gzip -dc | tar x`: time to READY and to durable, CPU seconds, and memory.

Run in the checkout as ``python -m benchmarks.cold_pull [ROUNDS] [--before CHECKOUT]``, with the
test extra and docker-registry installed. The sides take turns on the same layer, so that the ratios
hold on a noisy machine. ``--before`` adds another build of blobserve.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import time
from pathlib import Path

import attrs

from benchmarks.warm.process import cpu_seconds
from tests.support.parts.images import Image
from tests.support.parts.programs import own_directory
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import ROOT, Server

FILES, UNPACKED, INCOMPRESSIBLE = 4_300, 308_000_000, 0.07


def web_client() -> dict[str, bytes]:
    """Return 4,300 files of 300 MB with a gzip ratio of 4.5: scripts and random images."""
    chance = random.Random(1)
    words = [
        "".join(chance.choices("abcdefghijklmnoprstuvw", k=chance.randint(2, 9)))
        for _ in range(600)
    ]
    lines = [
        " ".join(chance.choices(words, k=chance.randint(2, 9))).encode() + b";\n"
        for _ in range(1_000)
    ]
    weights = [chance.lognormvariate(0, 1.8) for _ in range(FILES)]
    files = {}
    for number, weight in enumerate(weights):
        size = int(UNPACKED * weight / sum(weights))
        name = f"ide/{number % 113}/part-{number}"
        if chance.random() < INCOMPRESSIBLE:
            files[f"{name}.png"] = chance.randbytes(size)
        else:
            files[f"{name}.js"] = b"".join(chance.choices(lines, k=size // 37))
    return files


def unpacked(blob: Path, directory: Path) -> tuple[float, float]:
    """Return the seconds until `gzip -dc | tar x` has ended, and until its files are on disk."""
    directory.mkdir()
    begun = time.perf_counter()
    subprocess.run(f"gzip -dc {blob} | tar x -C {directory}", shell=True, check=True)
    ended = time.perf_counter() - begun
    subprocess.run(["sync", "-f", directory], check=True)
    durable = time.perf_counter() - begun
    shutil.rmtree(directory)
    return ended, durable


@attrs.frozen
class Pull:
    """The figures of a cold pull: `memory` in bytes, all others in seconds."""

    start_cpu: float
    """CPU time of a start, until the server accepts connections."""
    cpu: float
    """CPU time from the request until the image is durable."""
    ready: float
    durable: float
    memory: int


def pulled(directory: Path, registry: DockerRegistry, name: str, checkout: Path = ROOT) -> Pull:
    """Start a server with an empty blob space, and pull the image `name` by a request."""
    directory.mkdir()
    repository = f"{registry.host}/{name.partition(':')[0]}"
    repos = {"timeout": "10m", "repos": {repository: {}}}
    server = Server(directory, repos, checkout=checkout)
    server.start()
    try:
        start_cpu = cpu_seconds(server.pid)
        begun = time.perf_counter()
        answer = server.fetch(f"/{registry.host}/{name}/ide/0/part-0.js", "HEAD")
        ready = time.perf_counter() - begun
        if answer.status != 200:
            raise SystemExit(f"the server answered {answer.status}, see {server.output}")
        while not is_durable(server.space, directory / "peek"):
            time.sleep(0.005)
        durable = time.perf_counter() - begun
        cpu = cpu_seconds(server.pid) - start_cpu
        return Pull(start_cpu, cpu, ready, durable, server.peak_memory())
    finally:
        server.stop()
        shutil.rmtree(directory)


def is_durable(space: Path, copy: Path) -> bool:
    """Return whether the blob is marked as durable, by a copy of the metadata database.

    The server holds the lock on the original.
    """
    copy.mkdir(exist_ok=True)
    for name in ("state", "state-wal"):
        shutil.copy(space / name, copy / name)
    database = sqlite3.connect(copy / "state")
    try:
        return database.execute("SELECT min(durable) FROM blobs").fetchone()[0] == 1
    finally:
        database.close()


def row(name: str, seconds: list[float], against: list[float] | None = None) -> str:
    """Return one line of the table; the ratio is the median of the ratios of pairs."""
    line = f"{name:34}{statistics.median(seconds):8.2f}{min(seconds):8.2f}{max(seconds):8.2f}"
    if against is not None:
        ratio = statistics.median(a / b for a, b in zip(seconds, against, strict=True))
        line += f"{ratio:8.2f}"
    return line


def main(rounds: int, before: Path | None) -> None:
    """Measure, and print the table."""
    image = Image.of(web_client())
    [layer] = image.layers
    pipelines, pulls, earlier = [], [], []
    with own_directory() as home:
        registry = DockerRegistry(home)
        registry.start()
        try:
            registry.push(image, "bench/site:v1")
            blob = registry.blob_file(layer.digest)
            for _ in range(rounds):
                os.sync()
                pipelines.append(unpacked(blob, home / "unpacked"))
                os.sync()
                pulls.append(pulled(home / "server", registry, "bench/site:v1"))
                if before is not None:
                    os.sync()
                    earlier.append(pulled(home / "server", registry, "bench/site:v1", before))
        finally:
            registry.stop()
    ended, on_disk = (list(each) for each in zip(*pipelines, strict=True))
    print(f"layer: {len(layer.blob) / 1e6:.0f} MB, {FILES} files; {rounds} rounds in turn, seconds")
    print(f"{'':34}{'median':>8}{'least':>8}{'most':>8}{'ratio':>8}")
    print(row("gzip -dc | tar x", ended))
    print(row("blobserve, cold pull to READY", [each.ready for each in pulls], ended))
    print(row("gzip -dc | tar x, then sync", on_disk))
    print(row("blobserve, cold pull to durable", [each.durable for each in pulls], on_disk))
    for title, figure in (
        ("CPU of a start", lambda each: each.start_cpu),
        ("CPU of a cold pull", lambda each: each.cpu),
    ):
        former = [figure(each) for each in earlier]
        print(row(title, [figure(each) for each in pulls], former or None))
        if former:
            print(row(f"{title}, build before", former))
    print(f"the server's peak memory: {max(each.memory for each in pulls) / 1e6:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_pull")
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--before", type=Path, help="a checkout of another build, to compare with")
    options = parser.parse_args()
    main(options.rounds, options.before and options.before.resolve())
