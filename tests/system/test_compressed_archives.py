"""Local archives that are compressed as a whole, made by real tools and served by a real server."""

from __future__ import annotations

import gzip
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blobserve.store.extract.decompress import zstd
from tests.support.parts.archives import copied_by_skopeo, saved_of_old
from tests.support.parts.images import Image, tar_of, write_layout
from tests.support.parts.mounted import Mounted
from tests.support.parts.programs import give_away, own_directory, run
from tests.support.parts.server import Server

REPOSITORY = "registry.example/team/site"
TAG = f"{REPOSITORY}:v1"
FILES = {
    "index.html": b"<html>a page</html>",
    "noise.bin": random.Random(1).randbytes(6_000_000),
    "docs/a b.txt": b"text",
}
URLS = ("/index.html", "/noise.bin", "/docs/a%20b.txt")
SAVED = saved_of_old({"site:v1": [tar_of(FILES)]})


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of the ordinary user."""
    with own_directory() as path:
        yield path


@pytest.fixture
def serve(directory: Path) -> Iterator[Callable[..., Server]]:
    """A function that starts a server for a source."""
    servers: list[Server] = []

    def start(source: str, **own: object) -> Server:
        place = directory / f"server{len(servers)}"
        place.mkdir()
        give_away(place)
        repos = {REPOSITORY: {"source": source}}
        server = Server(place, {"repos": repos, "timeout": "30s", **own})
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


def temporary(server: Server) -> list[str]:
    """Return the unpacked archives of a server."""
    return [str(path) for path in server.space.glob("ingest/*/archive")]


@pytest.mark.parametrize("tool", ["gzip", "zstd"])
@pytest.mark.parametrize("made_by", ["podman", "skopeo docker-archive", "skopeo oci-archive"])
def test_archives_of_real_tools(
    made_by: str, tool: str, directory: Path, serve: Callable[..., Server]
) -> None:
    """An archive of podman or skopeo has the same bytes and digest, compressed by gzip or zstd."""
    layout = write_layout(directory / "layout", {"v1": Image.of(FILES)})
    archive = directory / "site.tar"
    form = "oci-archive" if made_by.endswith("oci-archive") else "docker-archive"
    if made_by == "podman":
        paths = [f"--{name}={directory}/{name}" for name in ("root", "runroot")]
        podman = ["podman", *paths, "--storage-driver=vfs"]
        name = run([*podman, "pull", "--quiet", f"oci:{layout}:v1"], directory).strip()
        run([*podman, "save", "--quiet", "--format", form, "-o", str(archive), name], directory)
    else:
        copied_by_skopeo(layout, "v1", form, archive, "localhost/site:v1")
    give_away(archive)
    give_away(directory / "layout")
    run([tool, "--keep", "--force", archive], directory)
    packed = Path(f"{archive}{'.gz' if tool == 'gzip' else '.zst'}")
    plain, compressed = serve(f"{form}:{archive}"), serve(f"{form}:{packed}")
    for url in URLS:
        expected = plain.fetch(f"/{TAG}{url}")
        assert expected.status == 200
        answer = compressed.fetch(f"/{TAG}{url}")
        assert (answer.status, answer.body) == (200, expected.body)
        assert answer.headers["ETag"] == expected.headers["ETag"]
    assert temporary(plain) == []
    assert len(temporary(compressed)) == 1


def test_the_end_of_a_server(directory: Path, serve: Callable[..., Server]) -> None:
    """The unpacked bytes are removed by a stop, and after a crash by the next start."""
    archive = directory / "site.tar.gz"
    archive.write_bytes(gzip.compress(SAVED, 1))
    server = serve(f"docker-archive:{archive}")
    assert server.fetch(f"/{TAG}/index.html").status == 200
    [first] = temporary(server)
    server.kill()
    assert temporary(server) == [first]
    server.start()
    assert first not in temporary(server)
    assert server.fetch(f"/{TAG}/noise.bin").body == FILES["noise.bin"]
    server.stop()
    assert list((server.space / "ingest").iterdir()) == []


def test_a_stop_while_an_archive_is_unpacked(directory: Path, serve: Callable[..., Server]) -> None:
    """A stop ends the unpacking at once, and removes the bytes that were unpacked so far."""
    archive = directory / "site.tar.zst"
    # 4 GB of zeros in 130 KB: the disk is not full before the stop.
    archive.write_bytes(zstd.compress(bytes(200_000_000)) * 20)
    server = serve(f"docker-archive:{archive}")
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(server.fetch, f"/{TAG}/index.html")
        until = time.monotonic() + 30
        while not any(Path(path).stat().st_size for path in temporary(server)):
            assert time.monotonic() < until
        assert server.stop() == -signal.SIGTERM
        assert waiting.result().status == 503
    assert list((server.space / "ingest").iterdir()) == []


def test_a_reload_without_the_archive(directory: Path, serve: Callable[..., Server]) -> None:
    """The unpacked bytes are removed when a reload no longer names the archive."""
    archive = directory / "site.tar.gz"
    archive.write_bytes(gzip.compress(SAVED, 1))
    server = serve(f"docker-archive:{archive}")
    assert server.fetch(f"/{TAG}/index.html").status == 200
    assert len(temporary(server)) == 1
    server.configure({"repos": {f"{REPOSITORY}/other": {}}})
    server.reload()
    until = time.monotonic() + 30
    while server.fetch(f"/{TAG}/index.html").status != 403 or temporary(server):
        assert time.monotonic() < until


def test_a_damaged_archive(directory: Path, serve: Callable[..., Server]) -> None:
    """A request for an archive that is cut short gets an error with the name of the file."""
    archive = directory / "site.tar.gz"
    archive.write_bytes(gzip.compress(SAVED, 1)[:-100])
    server = serve(f"docker-archive:{archive}")
    answer = server.fetch(f"/{TAG}/index.html")
    assert answer.status == 502
    assert b"site.tar.gz: its gzip data is cut short" in answer.body
    assert str(directory).encode() not in answer.body
    archive.write_bytes(gzip.compress(SAVED, 1))
    assert server.fetch(f"/{TAG}/index.html").body == FILES["index.html"]


def test_an_archive_for_a_larger_disk(tmp_path: Path) -> None:
    """An archive that unpacks to more than the disk has is 507, and the disk does not fill up."""
    give_away(tmp_path)
    layout = write_layout(tmp_path / "layout", {"v1": Image.of({"index.html": b"a page"})})
    archive = tmp_path / "bomb.tar.gz"
    archive.write_bytes(gzip.compress(bytes(200_000_000), 9))
    repos = {
        f"{REPOSITORY}/bomb": {"source": f"docker-archive:{archive}"},
        REPOSITORY: {"source": f"oci:{layout}"},
    }
    server = Mounted(tmp_path, {"repos": repos, "timeout": "30s"}, "size=48m")
    server.start()
    try:
        before = server.free()
        for _ in range(2):
            assert server.fetch(f"/{REPOSITORY}/bomb:v1/index.html").status == 507
        assert server.free() >= before - 1_000_000
        assert server.fetch(f"/{TAG}/index.html").body == b"a page"
    finally:
        server.stop()
    assert "Traceback" not in server.output.read_text()
