"""A cold pull against `gzip -dc | tar x`: time to READY and to durable, and the server's memory.

Run in the checkout as ``python -m benchmarks.cold_pull [ROUNDS]``, with the test extra and
docker-registry installed. Both sides take turns on the same layer, so that the ratios hold on a
machine whose absolute figures do not.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.rig.images import Image
from tests.rig.parts import own_directory
from tests.rig.registry import DockerRegistry
from tests.rig.server import Server

FILES, UNPACKED, INCOMPRESSIBLE = 4_300, 308_000_000, 0.07


def web_client() -> dict[str, bytes]:
    """Some 4,300 files of 300 MB, gzip ratio 4.5: scripts, and a share that will not compress."""
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
    """Seconds until `gzip -dc | tar x` has ended, and until what it wrote is on disk."""
    directory.mkdir()
    begun = time.perf_counter()
    subprocess.run(f"gzip -dc {blob} | tar x -C {directory}", shell=True, check=True)
    ended = time.perf_counter() - begun
    subprocess.run(["sync", "-f", directory], check=True)
    durable = time.perf_counter() - begun
    shutil.rmtree(directory)
    return ended, durable


def pulled(directory: Path, registry: DockerRegistry, name: str) -> tuple[float, float, int]:
    """Seconds until a cold server answers for the image, and until it is durable; peak bytes."""
    directory.mkdir()
    repository = f"{registry.host}/{name.partition(':')[0]}"
    server = Server(directory, {"timeout": "10m", "repos": {repository: {}}})
    server.start()
    try:
        begun = time.perf_counter()
        answer = server.fetch(f"/{registry.host}/{name}/ide/0/part-0.js", "HEAD")
        ready = time.perf_counter() - begun
        if answer.status != 200:
            raise SystemExit(f"the server answered {answer.status}, see {server.output}")
        while not is_durable(server.space, directory / "peek"):
            time.sleep(0.005)
        durable = time.perf_counter() - begun
        return ready, durable, server.peak_memory()
    finally:
        server.stop()
        shutil.rmtree(directory)


def is_durable(space: Path, copy: Path) -> bool:
    """Whether the blob space has marked its blob as durable, as a copy of its state says.

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
    """One line of the table; the ratio is the median of those of the pairs."""
    line = f"{name:34}{statistics.median(seconds):8.2f}{min(seconds):8.2f}{max(seconds):8.2f}"
    if against is not None:
        ratio = statistics.median(a / b for a, b in zip(seconds, against, strict=True))
        line += f"{ratio:8.2f}"
    return line


def main(rounds: int) -> None:
    """Print the table."""
    image = Image.of(web_client())
    [layer] = image.layers
    with own_directory() as home:
        registry = DockerRegistry(home)
        registry.start()
        try:
            registry.push(image, "bench/site:v1")
            blob = registry.blob_file(layer.digest)
            sides = []
            for _ in range(rounds):
                os.sync()
                pipeline = unpacked(blob, home / "unpacked")
                os.sync()
                sides.append((*pipeline, *pulled(home / "server", registry, "bench/site:v1")))
        finally:
            registry.stop()
    ended, on_disk, ready, durable, memory = (list(each) for each in zip(*sides, strict=True))
    print(f"layer: {len(layer.blob) / 1e6:.0f} MB, {FILES} files; {rounds} rounds in turn, seconds")
    print(f"{'':34}{'median':>8}{'least':>8}{'most':>8}{'ratio':>8}")
    print(row("gzip -dc | tar x", ended))
    print(row("blobserve, cold pull to READY", ready, ended))
    print(row("gzip -dc | tar x, then sync", on_disk))
    print(row("blobserve, cold pull to durable", durable, on_disk))
    print(f"the server's peak memory: {max(memory) / 1e6:.0f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
