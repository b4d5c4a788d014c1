"""Hostile layers touch nothing outside the blob space, and blobserve goes on serving."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from blobserve.config import MIB
from tests.faults.hostile import CORPUS
from tests.faults.hostile.asking import image_of
from tests.faults.hostile.case import CANARY, Case
from tests.faults.hostile.mutations import mutations
from tests.support.examples import more
from tests.support.layers import File, compress, layer, tar
from tests.support.parts.images import Image, write_layout
from tests.support.parts.server import ROOT, Response, Server
from tests.support.parts.strace import Touched, Traced
from tests.support.turn_watch import LOGGED, slow_turns

BOUND = 256 * MIB
GOOD = "/hostile.example/layers:good/a"
HELD_BY_ONE_PULL = 64 * MIB
"""A zstd window of 32 MiB, 4 MiB for SQLite, and the objects of 1 MiB of entries and nodes."""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Case]]:
    """Write an image layout of all hostile layers and some mutations; return its path and these."""
    cases = [*CORPUS, *mutations(more(200))]
    tags = {f"case-{number}": image_of(case) for number, case in enumerate(cases)}
    good = Image.of({"a": b"good"})
    return write_layout(tmp_path_factory.mktemp("layout"), {**tags, "good": good}), cases


def config(layout: Path) -> dict[str, Any]:
    """Return the configuration under `blobserve` that serves these images."""
    repos = {"hostile.example/layers": {"source": f"oci:{layout}"}}
    return {"timeout": "30s", "repos": repos, "blobSpace": {"maxSizeBytes": BOUND}}


def asked(server: Server, cases: list[Case]) -> Iterator[tuple[Case, Response]]:
    """Request a missing file in each layer, and yield the answers."""
    for number, case in enumerate(cases):
        yield case, server.fetch(f"/hostile.example/layers:case-{number}/no/such/file")


def expected(case: Case) -> set[int]:
    """Return the acceptable statuses of such a request."""
    if case.problem is not None:
        return {502}
    return {404} if case.answers else {200, 301, 404, 502}


def outside(touched: list[Touched], *inside: Path | str) -> list[Touched]:
    """Return the events at paths that are not below any of these."""
    roots = [str(path) for path in inside]
    return [
        each
        for each in touched
        if not any(each.path == root or each.path.startswith(f"{root}/") for root in roots)
    ]


def test_nothing_outside_is_touched(
    layout: tuple[Path, list[Case]], tmp_path: Path, running: Callable[[Any], Any]
) -> None:
    """The server makes, changes and reads no file outside the blob space for any layer."""
    directory, cases = layout
    # Twisted writes its list of plugins at the first look-up in a new environment.
    subprocess.run([sys.executable, "-m", "twisted", "--help"], check=True, capture_output=True)
    server: Traced = running(Traced(tmp_path, config(directory)))
    assert server.fetch(GOOD).body == b"good"
    mark = f"{directory}/blobs/sha256/{image_of(cases[0]).digest.removeprefix('sha256:')}"
    for case, answer in asked(server, cases):
        assert answer.status in expected(case), case.name
    assert server.fetch(GOOD).body == b"good"
    server.stop()
    touched = server.touched()
    changed = [each for each in touched if each.is_changed]
    assert len(changed) > 4 * len(cases)
    assert outside(changed, server.space, "/dev/null") == []
    assert not [each for each in touched if each.path == CANARY.decode()]
    begun = next(n for n, each in enumerate(touched) if each.path == mark)
    # Python reads modules at their first import, which may be late.
    python = {ROOT, sys.prefix, sys.base_prefix, *filter(None, sys.path)}
    assert outside(touched[begun:], server.space, directory, *python) == []


def test_blobserve_serves_on(
    layout: tuple[Path, list[Case]], tmp_path: Path, running: Callable[[Any], Any]
) -> None:
    """Memory stays bounded for any layer, and no reactor iteration takes 20 ms."""
    directory, cases = layout
    server: Server = running(Server(tmp_path, config(directory), **slow_turns(20)))
    assert server.fetch(GOOD).body == b"good"
    before = server.peak_memory()
    for case, answer in asked(server, cases):
        assert answer.status in expected(case), case.name
    assert server.fetch(GOOD).body == b"good"
    assert server.peak_memory() < before + HELD_BY_ONE_PULL
    assert LOGGED not in server.output.read_text()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_z16_hot_files_during_a_bomb(
    tmp_path: Path, running: Callable[[Any], Any], compression: Any
) -> None:
    """While a decompression bomb is unpacked, cached images are served."""
    bomb = layer([File(b"bomb", bytes(192 * MIB)), File(b"a", b"1")], compression)
    many = compress(tar(File(b"%d/x" % n) for n in range(30_000)), compression)
    cases = [Case("bomb", bomb, {}, None, compression), Case("many", many, {}, None, compression)]
    tags = {f"case-{number}": image_of(case) for number, case in enumerate(cases)}
    images = write_layout(tmp_path / "layout", {**tags, "good": Image.of({"a": b"good"})})
    server: Server = running(Server(tmp_path, config(images), **slow_turns(20)))
    assert server.fetch(GOOD).body == b"good"
    hot = 0
    with ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(lambda: [answer.status for _, answer in asked(server, cases)])
        while not pulling.done():
            assert server.fetch(GOOD).body == b"good"
            hot += 1
    assert pulling.result() == [404, 404]
    assert hot > 20
    assert LOGGED not in server.output.read_text()
