"""Links and other kinds of files planted in a blob space: no request follows them or crashes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from twisted.logger import LogEvent, eventAsText, globalLogPublisher

from blobserve.errors import SpaceUnusable
from tests.support.parts.images import Image, Layer, write_layout
from tests.support.services import Running, configured, running
from tests.support.within import within

SITE = "a.example/site"
A = Image((Layer.of({"a": b"a"}), Layer.of({"b": b"b"})))
B = Image((Layer.of({"a": b"other"}), Layer.of({"c": b"c"})))


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect the texts of all log events, with their tracebacks."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        lines.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)


def link_to_directory(path: Path, outside: Path) -> None:
    """Put a link to a directory outside in place of a path, with the same content there."""
    if path.is_dir():
        shutil.copytree(path, outside, dirs_exist_ok=True)
    _clear(path)
    path.symlink_to(outside)


def link_to_file(path: Path, outside: Path) -> None:
    """Put a link to a file outside in place of a path, with the same content there."""
    target = outside / "file"
    target.write_bytes(path.read_bytes() if path.is_file() else b"outside")
    _clear(path)
    path.symlink_to(target)


def dangling_link(path: Path, outside: Path) -> None:
    """Put a link that leads nowhere in place of a path."""
    _clear(path)
    path.symlink_to(outside / "nothing")


def directory(path: Path, outside: Path) -> None:
    """Put a directory in place of a file."""
    _clear(path)
    path.mkdir()


def file(path: Path, outside: Path) -> None:
    """Put a file in place of a directory."""
    _clear(path)
    path.write_bytes(b"planted")


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


DIRECTORIES = (
    "blobs", "blobs/sha256", "trees", "trees/sha256", "manifests", "manifests/sha256", "ingest",
    "blobs/sha256/{blob}",
)  # fmt: skip
FILES = (
    "blobs/sha256/{blob}/content", "blobs/sha256/{blob}/index", "blobs/sha256/{blob}/codings",
    "trees/sha256/{tree}", "manifests/sha256/{manifest}",
)  # fmt: skip
PLANTED = [
    *((place, how) for place in DIRECTORIES for how in (link_to_directory, dangling_link, file)),
    *((place, how) for place in FILES for how in (link_to_file, dangling_link, directory)),
]


def snapshot(outside: Path) -> dict[str, bytes]:
    """Return the files in a directory."""
    return {
        str(path.relative_to(outside)): path.read_bytes() if path.is_file() else b""
        for path in sorted(outside.rglob("*"))
    }


def place_of(location: Path, place: str) -> Path:
    """Return a path in the blob space; `place` names a stored digest by its kind."""
    names = {
        "blob": A.layers[0].digest.partition(":")[2],
        "tree": next((location / "trees" / "sha256").iterdir()).name,
        "manifest": A.digest.partition(":")[2],
    }
    return location / place.format(**names)


def problems(lines: list[str], path: Path) -> list[str]:
    """Return the lines that report a planted path; none of all lines may have a traceback."""
    assert not [line for line in lines if "Traceback" in line]
    return [line for line in lines if "remove it" in line]


def is_reported(place: str, found: list[int]) -> bool:
    """Return whether a place must be reported. A manifest that is not stored is fetched again."""
    return 503 in found or place in ("manifests", "manifests/sha256")


async def statuses(server: Running) -> list[int]:
    """Return the statuses of files of both images, and check the bodies of those that are 200."""
    found = []
    for tag, name, body in (("a", "a", b"a"), ("a", "b", b"b"), ("b", "a", b"other")):
        answer = await server.fetch(f"{SITE}:{tag}/{name}")
        assert answer.status != 200 or answer.body == body
        found.append(answer.status)
    return found


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "restarted"])
@pytest.mark.parametrize(("place", "how"), PLANTED)
@within(30)
async def test_planted_files(
    tmp_path: Path, place: str, how: Callable[[Path, Path], None], is_running: bool
) -> None:
    """Each request is right or 503; nothing outside changes; one line says what to remove."""
    layout, location, outside = tmp_path / "layout", tmp_path / "space", tmp_path / "outside"
    write_layout(layout, {"a": A, "b": B})
    outside.mkdir()
    rules = {"source": f"oci:{layout}", "layers": "all", "tagMaxAge": "1h"}
    config = configured(location, {"repos": {SITE: rules}})
    with logged() as lines:
        async with running(config) as server:
            assert (await server.fetch(f"{SITE}:a/a")).status == 200
            path = place_of(location, place)
            if is_running:
                for blob in server.service._space.blobs.lru:
                    blob.close()
                how(path, outside)
                before = snapshot(outside)
                found = await statuses(server)
                assert set(found) <= {200, 503}
                reported = problems(lines, path)
                assert bool(reported) == is_reported(place, found), lines
                assert len(reported) <= 1
                if reported:
                    assert str(path.relative_to(location)) in reported[0]
                    _clear(path)
                    if "sha256" not in place:
                        path.mkdir()
                    assert await statuses(server) == [200, 200, 200]
        if not is_running:
            how(path, outside)
            before = snapshot(outside)
            if "/" not in place:
                with pytest.raises(SpaceUnusable, match=f"{place} is a link or a file: remove it"):
                    async with running(config):
                        pass
            else:
                async with running(config) as server:
                    found = await statuses(server)
                    assert set(found) <= {200, 503}
                    assert bool(problems(lines, path)) == is_reported(place, found), lines
    assert snapshot(outside) == before
    assert not [line for line in lines if "Traceback" in line]
