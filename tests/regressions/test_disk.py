"""Defects of the original server on its disk, with a test for each row.

Each test is named after the number of its row. `tests.regressions.test_http` and
`tests.regressions.test_pulls` have the other rows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread

from blobserve.names.digest import Digest
from blobserve.store.disk.metadata_db import MOST_REFERENCES, MetadataDb, remembered
from blobserve.testing import make_image
from tests.support.layers import Compression, Directory, Entry, File, Link, Symlink, layer
from tests.support.parts.images import Image, Layer, write_layout
from tests.support.parts.server import Server
from tests.support.scripted_registry import NOTHING, listening
from tests.support.services import Door, allowing, configured, running
from tests.support.within import within

OWN = b"of the image"
SECRET = "a-secret-of-the-host"
MIB = 1 << 20


# --- D3 -------------------------------------------------------------------------------------------


def links_to(number: int, target: bytes) -> list[Entry]:
    """Return every kind of link to a file of the host, by its absolute path."""
    name, climbing = b"to%d-" % number, b"../" * 12 + target[1:]
    directory, _, leaf = target.rpartition(b"/")
    return [
        Symlink(name + b"absolute", target),
        Symlink(name + b"climbing", climbing),
        Symlink(name + b"below/deep/climbing", climbing),
        Symlink(name + b"chain", name + b"link"),
        Symlink(name + b"link", name + b"absolute"),
        Symlink(name + b"directory", directory),
        Symlink(name + b"through", name + b"directory/" + leaf),
        Link(name + b"hard", target),
        Link(name + b"hard-climbing", climbing),
        Link(name + b"hard-relative", target[1:]),
        Link(name + b"hard-to-link", name + b"absolute"),
        Link(name + b"hard-through", name + b"directory/" + leaf),
    ]


def test_d03_links_stay_inside_the_image(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link of any kind resolves inside the image and never reads or changes a host's file."""
    monkeypatch.setenv("SECRET", SECRET)
    login, host = tmp_path / "auth.json", tmp_path / "host"
    auth = {"username": "reader", "password": SECRET}
    login.write_text(json.dumps({"auths": {"registry.example": auth}}))
    host.mkdir()
    outside = [b"/etc/hostname", b"/proc/self/environ", b"/proc/self/fd/0", b"/dev/zero"]
    outside += [os.fsencode(tmp_path / name) for name in ("auth.json", "blobserve.yaml")]
    outside += [os.fsencode(tmp_path / "space" / name) for name in ("VERSION", "state")]
    entries = [
        Directory(b"etc/"),
        File(b"etc/passwd", OWN),
        *links_to(0, b"/etc/passwd"),
        *(link for n, path in enumerate(outside, 1) for link in links_to(n, path)),
        Symlink(b"root", b"/"),
        Symlink(b"up", b"../../../../../.."),
        Symlink(b"loop", b"loop"),
        Symlink(b"one", b"two"),
        Symlink(b"two", b"one"),
        Symlink(b"written", os.fsencode(host)),
        File(b"written/through", b"escaped"),
        File(b"../" * 12 + os.fsencode(host)[1:] + b"/climbed", b"escaped"),
        File(os.fsencode(host) + b"/absolute", b"escaped"),
        Link(b"hard-absent", b"absent"),
    ]
    image = Image((Layer.of_tar(layer(entries, "none")),))
    layout = write_layout(tmp_path / "layout", {"v1": image})
    config = {"repos": {"a.example/site": {"source": f"oci:{layout}"}}, "timeout": "30s"}
    server = serve(config, {"dockerAuth": str(login)})

    def ask(path: bytes) -> tuple[int, bytes]:
        answer = server.fetch(f"/a.example/site:v1/{quote(path)}")
        assert SECRET.encode() not in answer.body
        return answer.status, answer.body

    paths = [entry.name for entry in entries if entry.type in (b"1", b"2")]
    inside = [path for path in paths if path.startswith(b"to0-") and path != b"to0-directory"]
    inside += [
        b"root/etc/passwd",
        b"up/etc/passwd",
        b"up/root/up/etc/passwd",
        b"to0-directory/passwd",
    ]
    assert {path: ask(path) for path in inside} == dict.fromkeys(inside, (200, OWN))
    beyond = [path for path in paths if not path.startswith((b"to0-", b"written"))]
    beyond += [through + path for path in outside for through in (b"root", b"up", b"..", b"")]
    beyond += [
        b"to%d-directory/" % n + path.rpartition(b"/")[2] for n, path in enumerate(outside, 1)
    ]
    served = {path: status for path in beyond if (status := ask(path)[0]) not in (301, 404)}
    assert served == {}
    assert not list(host.iterdir())


# --- D12 ------------------------------------------------------------------------------------------


@within(60)
async def test_d12_responses_are_not_gathered_in_memory(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    """A file of 128 MiB that is read slowly takes a few MiB of the server's memory."""
    size = 128 * MIB
    layout = write_layout(tmp_path / "layout", {"v1": Image.of({"a": bytes(size)})})
    config = {"repos": {"a.example/site": {"source": f"oci:{layout}"}}, "timeout": "30s"}
    server = await deferToThread(serve, config)
    door = Door(server.port)
    assert (await door.fetch("a.example/site:v1/a", "HEAD")).status == 200
    before = server.peak_memory()
    readers = [await door.begin("/a.example/site:v1/a") for _ in range(4)]
    for reader in readers:
        reader.transport.pauseProducing()
    # When other requests are answered, the server has read ahead as far as it will.
    for _ in range(20):
        assert (await door.fetch("a.example/site:v1/a", "HEAD")).status == 200
    for reader in readers:
        reader.transport.resumeProducing()
        await reader.some(4 * MIB)
        reader.transport.abortConnection()
        await reader.all()
    assert server.peak_memory() - before < 16 * MIB


@within(30)
async def test_d12_timeouts_are_counted(tmp_path: Path) -> None:
    """A request that timed out is counted in the metrics with its status."""
    async with listening() as registry:
        registry.always("manifests", lambda asked, usual: NOTHING)
        config = {**allowing(registry.host), "timeout": "100ms"}
        async with running(configured(tmp_path, config)) as server:
            answer = await server.fetch(f"{registry.host}/team/site:v1/")
            assert (answer.status, answer.body) == (503, b"timeout")
            counted = {"method": "get", "code": "503"}
            assert server.counted("http_server_requests_total", **counted) == 1
            name = "http_server_requests_duration_seconds_sum"
            assert 0.1 <= server.counted(name, **counted) < 10


def written(server: Server) -> int:
    """Return the number of bytes that the process has written to files so far."""
    counts = Path(f"/proc/{server.pid}/io").read_text()
    return int(re.search(r"wchar: (\d+)", counts)[1])  # type: ignore[index]


def test_d12_a_request_writes_nothing(tmp_path: Path, serve: Callable[..., Server]) -> None:
    """Serving a cached image writes and creates no file of the blob space."""
    layout = write_layout(tmp_path / "layout", {"v1": Image.of({"a": b"content"})})
    config = {"repos": {"a.example/site": {"source": f"oci:{layout}"}}, "timeout": "30s"}
    server = serve(config, {"accessLog": {"format": "off"}})

    def fetch() -> None:
        assert server.fetch("/a.example/site:v1/a").body == b"content"

    def found() -> dict[Path, tuple[int, int]]:
        stats = {path: path.stat() for path in server.space.rglob("*")}
        return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}

    fetch()
    server.stop()  # so that pending metadata is written
    server.start()
    fetch()
    before, files = written(server), found()
    for _ in range(200):
        fetch()
    assert written(server) - before < 200
    assert found() == files


# --- D13 ------------------------------------------------------------------------------------------


def on_disk(directory: Path) -> int:
    """Return the bytes that everything below `directory` takes."""
    size = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                size += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return size


@within(60)
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_d13_a_bomb_stays_within_the_bound(tmp_path: Path, compression: Compression) -> None:
    """A layer that grows a thousandfold is refused before it takes more than the quota."""
    bound = 4 * MIB
    bomb = Image.of({f"{n}": bytes(MIB) for n in range(256)}, compression)
    assert len(bomb.layers[0].blob) < 300_000
    tags = {"bomb": bomb, "small": Image.of({"a": b"content"})}
    layout = write_layout(tmp_path / "layout", tags)
    rules = {"repos": {"a.example/site": {"source": f"oci:{layout}"}}, "timeout": "30s"}
    config = configured(tmp_path / "space", {**rules, "blobSpace": {"maxSizeBytes": bound}})
    sizes: list[int] = []
    watching = LoopingCall(lambda: sizes.append(on_disk(tmp_path / "space")))
    async with running(config) as server:
        watching.start(0.002)
        assert (await server.fetch("a.example/site:bomb/0")).status == 507
        watching.stop()
        assert not list((tmp_path / "space" / "ingest").iterdir())
        assert (await server.fetch("a.example/site:small/a")).body == b"content"
    assert MIB < max(sizes) <= bound


# --- D18 ------------------------------------------------------------------------------------------


@within(30)
async def test_d18_references_outlive_the_process(tmp_path: Path) -> None:
    """The digest of a tag is known after a restart without a request to the registry."""
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image({"a": b"content"}))
        config = configured(tmp_path, allowing(registry.host, {"contentLocation": True}))
        async with running(config) as server:
            exact = (await server.fetch(f"{site}/a")).headers["content-location"]
        asked = len(registry.requests)
        async with running(config) as server:
            answer = await server.fetch(f"{site}/a")
            assert (answer.body, answer.headers["content-location"]) == (b"content", exact)
        assert len(registry.requests) == asked


@within(30)
async def test_d18_references_are_bounded(tmp_path: Path) -> None:
    """The last used ten thousand references are remembered, and older ones are dropped."""
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image({"a": b"content"}))
        config = configured(tmp_path, allowing(registry.host))
        async with running(config):
            pass  # the start makes the state file
        others = [f"registry.example/other/site:v{n}" for n in range(MOST_REFERENCES)]
        state = MetadataDb(tmp_path / "state")
        state.open()
        state.change(*(remembered(each, Digest.of(b"x"), n) for n, each in enumerate(others)))
        state.close()
        async with running(config) as server:
            assert (await server.fetch(f"{site}/a")).status == 200
            assert (await server.fetch(f"{registry.host}/team/none:v1/")).status == 404
        state.open()
        kept = [reference for reference, _, _ in state.references()]
        state.close()
        assert len(kept) == MOST_REFERENCES
        assert others[0] not in kept
        assert {str(site), others[-1]} <= set(kept)
        assert not [each for each in kept if "none" in each]
