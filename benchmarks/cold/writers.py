"""Lazily pulled layers, made by the reference writers of their formats (Go modules)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs

from benchmarks.cold import cases, layers
from benchmarks.cold.bench import Bench
from benchmarks.cold.layers import GZIP, ZSTD, Blob
from benchmarks.cold.table import Figure, absent

_SOURCE = Path(__file__).parents[1] / "peers" / "published.go"
_MODULES = (
    "github.com/containerd/stargz-snapshotter/estargz@v0.19.1",
    "github.com/containers/storage@v1.59.1",
)
_KINDS = {"estargz": GZIP, "chunked": ZSTD}


def indexed(bench: Bench) -> Iterator[Figure | str]:
    """Measure both kinds of layers, one after the other."""
    try:
        blobs = written(bench)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        yield absent("eStargz and zstd:chunked", f"no writer of them: {error}")
        return
    for kind, blob in blobs.items():
        yield from cases.published(bench, blob, kind)


def written(bench: Bench) -> dict[str, Blob]:
    """Make layers with the files of the large layer in both formats."""
    home = bench.home / "published"
    home.mkdir()
    shutil.copy(_SOURCE, home / "main.go")
    tar = home / "tar"
    with tar.open("wb") as file:
        file.writelines(layers.large(bench.sizes.large, bench.sizes.each))
    _go(home, "mod", "init", "published")
    _go(home, "get", *_MODULES)
    _go(home, "build", "-o", "writer", ".")
    subprocess.run([home / "writer", tar, home], check=True)
    tar.unlink()
    all_ = json.loads((home / "described.json").read_text())
    return {
        kind: attrs.evolve(layers.described(home / kind, media_type), **all_[kind])
        for kind, media_type in _KINDS.items()
    }


def _go(home: Path, *arguments: str) -> None:
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    subprocess.run(
        ["go", *arguments], cwd=home, env=environment, check=True, capture_output=True, timeout=240
    )
