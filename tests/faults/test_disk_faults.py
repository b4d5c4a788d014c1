"""Real disks that are full, read-only, out of inodes or removed, and missing descriptors."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import attrs
import pytest

from blobserve.config import MIB
from tests.faults.test_crash_points import points, wrong
from tests.support.parts.images import Image, write_layout
from tests.support.parts.mounted import Mounted
from tests.support.parts.server import Server

__all__ = ["points"]

SITE = "a.example/site"


def noise(seed: int, size: int) -> dict[str, bytes]:
    """Return a random file of `size` bytes, and a small one."""
    return {"a": random.Random(seed).randbytes(size), "small": b"%d" % seed}


FILES = {
    "hot": noise(1, MIB),
    "two": noise(2, 3 * MIB),
    "three": noise(3, 3 * MIB),
    "huge": noise(4, 20 * MIB),
    "entries": {f"{n:05}": b"" for n in range(3000)},
}


def configured(tmp_path: Path, **own: object) -> dict[str, Any]:
    """Return a configuration that serves all the images, without codings."""
    layout = write_layout(
        tmp_path / "layout", {tag: Image.of(files) for tag, files in FILES.items()}
    )
    rules = {"source": f"oci:{layout}", "codings": []}
    return {"repos": {SITE: rules}, "timeout": "30s", **own}


def is_served(server: Server, tag: str) -> bool:
    """Return whether an image is served, and check its content."""
    names = ["a", "small"] if "a" in FILES[tag] else ["00007"]
    answers = [(server.fetch(f"/{SITE}:{tag}/{name}"), FILES[tag][name]) for name in names]
    assert all(answer.body == content for answer, content in answers if answer.status == 200)
    return all(answer.status == 200 for answer, _ in answers)


def status(server: Server, tag: str) -> int:
    """Return the status of a request for an image."""
    return server.fetch(f"/{SITE}:{tag}/small").status


@pytest.fixture
def mounted(tmp_path: Path, running: Any) -> Callable[..., Mounted]:
    """Return a function that starts a server on a file system of its own."""
    return lambda options: running(Mounted(tmp_path, configured(tmp_path), options))


def answered(server: Server, tag: str) -> int:
    """Return the status of an answer, when some connections may find no descriptor."""
    for _ in range(20):
        with suppress(OSError, HTTPException):
            return status(server, tag)
    raise AssertionError("no connection was answered")


def leftovers(server: Mounted) -> list[str]:
    """List the ingest directory."""
    return os.listdir(server.inside / "ingest")


def test_f07_a_full_disk(mounted: Callable[..., Mounted]) -> None:
    """On a full disk old images are evicted for a new one; one too large gets a 507."""
    server = mounted("size=6m")
    assert is_served(server, "two")
    assert is_served(server, "three")
    assert status(server, "huge") == 507
    assert leftovers(server) == []
    assert server.free() > 2 * MIB
    assert is_served(server, "hot")


def test_f08_no_inodes(mounted: Callable[..., Mounted]) -> None:
    """On a file system without free inodes old images are evicted for a new one."""
    server = mounted("size=64m,nr_inodes=24")
    for _ in range(3):
        for tag in ("hot", "two", "three", "entries"):
            assert is_served(server, tag)
    assert leftovers(server) == []


def test_f17_a_disk_that_somebody_fills(mounted: Callable[..., Mounted]) -> None:
    """While others fill the disk cached images are served; pulls work when there is space."""
    server = mounted("size=16m")
    assert is_served(server, "hot")
    filler = server.fill()
    assert server.free() == 0
    assert is_served(server, "hot")
    assert status(server, "huge") == 507
    assert leftovers(server) == []
    filler.unlink()
    for tag in ("hot", "two", "three"):
        assert is_served(server, tag)


def test_f10_a_disk_that_becomes_read_only(points: Any) -> None:
    """On a disk that became read-only cached images are served, and a pull fails as DiskFailed."""
    pull = points("pull")
    mkdir = next(each for each in pull.calls if each.name == "mkdir")
    said = pull.said(attrs.evolve(mkdir, number=f"{mkdir.number}+"), "EROFS")
    assert said == {"first": "DiskFailed", "serving": "", "again": "DiskFailed", "hot": ""}


def test_f11_a_blob_space_that_is_moved_away(tmp_path: Path, serve: Callable[..., Server]) -> None:
    """Without its directory a server serves open images; all works when the directory is back."""
    server = serve(configured(tmp_path))
    assert is_served(server, "hot")
    # After a restart everything is durable, and nothing must still be synced.
    server.stop()
    server.start()
    assert is_served(server, "hot")
    server.space.rename(tmp_path / "elsewhere")
    assert is_served(server, "hot")
    assert status(server, "two") == 503
    (tmp_path / "elsewhere").rename(server.space)
    assert is_served(server, "two")
    assert is_served(server, "hot")


def test_f09_no_descriptors(tmp_path: Path, serve: Callable[..., Server]) -> None:
    """Without free descriptors open images are served; with descriptors pulls work again."""
    server = serve(configured(tmp_path))
    assert is_served(server, "hot")
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    most = len(os.listdir(f"/proc/{server.pid}/fd"))
    for number in range(most, most + 5):
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (number, limits[1]))
        # A number that is just enough for a connection is too small for a layer.
        with suppress(OSError), closing(HTTPConnection("127.0.0.1", server.port, timeout=2)) as it:
            it.request("GET", f"/{SITE}:hot/small")
            if it.getresponse().read() == FILES["hot"]["small"]:
                break
    # The image layout cannot be read now, which counts as a failure of the registry.
    assert answered(server, "two") in (502, 503)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
    assert is_served(server, "two")
    assert is_served(server, "hot")


def _index_writes(name: str, points: Any) -> list[tuple[Any, str]]:
    found = [each for each in points(name).calls if each.name == "pwrite64"]
    return [(each, "ENOSPC") for each in found if "/index>" in each.arguments]


def test_f07_an_index_that_meets_a_full_disk(points: Any) -> None:
    """If the index meets a full disk, old images are evicted and the layer is pulled again."""
    trials = _index_writes("pull", points)
    assert len(trials) > 2
    assert wrong(trials, points("pull").failed) == {}
    said = [points("pull").said(*trial) for trial in trials]
    assert {each["first"] for each in said} == {""}


def test_f07_a_full_disk_and_nothing_to_go(points: Any) -> None:
    """If the index meets a full disk and nothing can be evicted, the pull fails as DiskFull."""
    said = [points("alone").said(*trial) for trial in _index_writes("alone", points)]
    assert {each["first"] for each in said} == {"DiskFull"}
