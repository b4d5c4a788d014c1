"""Images in archives: layouts in tar files, and the formats of `docker save`."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, gatherResults

from blobserve.config import Limits
from blobserve.errors import (
    BlobNotFound,
    BlobserveError,
    ImageNotFound,
    RegistryBusy,
    RegistryFailed,
)
from blobserve.names.digest import Digest
from blobserve.names.platform import Platform
from blobserve.names.reference import Reference
from blobserve.oci.local.docker_archive import DockerArchive
from blobserve.oci.local.layout import Layout
from blobserve.oci.local.oci_archive import OciArchive
from blobserve.oci.manifest import Descriptor, ImageIndex, Manifest, parse
from blobserve.tar.members import MOST, Members
from blobserve.testing import InlineThreads
from tests.support import layers
from tests.support.examples import more
from tests.support.layers import (
    Directory,
    Entry,
    File,
    Link,
    Symlink,
    gnu_long,
    header,
    padded,
    pax,
    tar,
)
from tests.support.parts.archives import (
    copied_by_skopeo,
    named,
    packed,
    saved_of_old,
    saved_of_today,
    write_named_layout,
)
from tests.support.parts.images import Image, Layer, digest_of, tar_of, write_layout
from tests.support.parts.server import Server
from tests.support.source_fixtures import Sink
from tests.support.within import within

SITE = Reference.parse("registry.example/team/site:v1")
IMAGE = Image.of({"index.html": b"a page"})
OTHER = Image.of({"index.html": b"another page"})
STREAM, OTHER_STREAM = tar_of({"index.html": b"a page"}), tar_of({"index.html": b"another page"})


class CountedThreads(InlineThreads):
    """Inline threads that count their jobs."""

    count = 0

    def run(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        """See `Threads.run`."""
        self.count += 1
        return super().run(f, *args, **kwargs)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The path of the archive."""
    return tmp_path / "archive.tar"


def oci(archive: Path) -> Layout:
    """Return a source of a layout in a tar file."""
    return Layout(OciArchive(archive, InlineThreads(), Limits()), InlineThreads())


def docker(archive: Path, limits: Limits | None = None) -> Layout:
    """Return a source of a Docker archive."""
    files = DockerArchive(archive, InlineThreads(), limits or Limits())
    return Layout(files, InlineThreads())


async def blobs(source: Layout, reference: Reference = SITE) -> list[bytes]:
    """Fetch all layers of an image and check their digests; return their bytes."""
    document = await source.resolve(reference)
    assert Digest.of(document.content) == document.digest
    manifest = parse(document.content, document.media_type, Limits())
    assert isinstance(manifest, Manifest)
    found = []
    for layer in manifest.layers:
        sink = Sink()
        await source.fetch(reference.repository, layer, sink)
        assert Digest.of(sink.content) == layer.digest
        found.append(sink.content)
    return found


@within(60)
async def test_what_skopeo_writes(tmp_path: Path, archive: Path) -> None:
    """Archives of both forms by skopeo have the layers of the original image."""
    layout = write_layout(tmp_path / "layout", {"v1": IMAGE})
    copied_by_skopeo(layout, "v1", "oci-archive", archive, "v1")
    document = await oci(archive).resolve(SITE)
    assert str(document.digest) == IMAGE.digest
    assert await blobs(oci(archive)) == [IMAGE.layers[0].blob]
    copied_by_skopeo(layout, "v1", "docker-archive", archive, "localhost/site:v1")
    assert await blobs(docker(archive)) == [STREAM]
    for name in ("v2", "localhost/blog:v1"):
        copied_by_skopeo(layout, "v1", "oci-archive", archive, name)
        with pytest.raises(ImageNotFound, match=f"its source has {name}"):
            await oci(archive).resolve(SITE)
    for form, source in (("oci-archive", oci), ("docker-archive", docker)):
        copied_by_skopeo(layout, "v1", form, archive, "")
        await source(archive).resolve(SITE)


@within(10)
async def test_docker_save_of_old(archive: Path) -> None:
    """The old format of `docker save` is served, with layers that are links to others."""
    archive.write_bytes(saved_of_old({"site:v1": [STREAM, OTHER_STREAM, STREAM]}))
    assert await blobs(docker(archive)) == [STREAM, OTHER_STREAM, STREAM]


@within(10)
async def test_docker_save_of_today(tmp_path: Path, archive: Path) -> None:
    """The current format of `docker save` is served as either form."""
    layout = write_layout(tmp_path / "layout", {"v1": IMAGE})
    config, layer = digest_of(IMAGE.config), IMAGE.layers[0]
    archive.write_bytes(saved_of_today(layout, "site:v1", config, [layer.digest]))
    assert await blobs(docker(archive)) == await blobs(oci(archive)) == [layer.blob]


@within(10)
async def test_hard_links(archive: Path) -> None:
    """A layer may be a hard link to a path from the root of the archive."""
    saved = saved_of_old({"site:v1": [STREAM]}, b"{}", File(b"kept.tar", STREAM), hold=False)
    place = json.loads(saved_member(saved, b"manifest.json"))[0]["Layers"][0].encode()
    linked = saved[: -len(layers.END)] + tar([Link(place, b"./kept.tar")])
    archive.write_bytes(linked)
    assert await blobs(docker(archive)) == [STREAM]


def saved_member(content: bytes, name: bytes) -> bytes:
    """Return the content of a file in an archive."""
    part = members(content).find(name)
    assert part is not None
    return content[part.offset : part.offset + part.size]


def members(content: bytes, limits: Limits | None = None) -> Members:
    """Return the members of an archive in memory."""
    read: Callable[[int, int], bytes] = lambda at, length: content[at : at + length]  # noqa: E731
    return Members.read(read, len(content), limits or Limits())


@within(10)
@pytest.mark.parametrize(
    ("compression", "media_type"),
    [("none", "tar"), ("gzip", "tar+gzip"), ("zstd", "tar+zstd")],
)
async def test_layers_as_they_lie(
    compression: layers.Compression, media_type: str, archive: Path
) -> None:
    """A layer of a Docker archive has the digest of its bytes, compressed or not."""
    layer = Layer.of({"index.html": b"a page"}, compression)
    archive.write_bytes(saved_of_old({"site:v1": [layer.blob]}))
    document = await docker(archive).resolve(SITE)
    [described] = json.loads(document.content)["layers"]
    assert described == {
        "mediaType": f"application/vnd.oci.image.layer.v1.{media_type}",
        "digest": layer.digest,
        "size": len(layer.blob),
    }


@within(10)
async def test_made_manifests(archive: Path) -> None:
    """An archive always gives the same manifest, which can be requested by digest."""
    archive.write_bytes(saved_of_old({"site:v1": [STREAM]}))
    document = await docker(archive).resolve(SITE)
    again = docker(archive)
    assert await again.resolve(SITE.at(document.digest)) == document
    assert (await again.refresh(SITE, document.digest)).digest == document.digest
    assert await blobs(again, SITE.at(document.digest)) == [STREAM]


@within(10)
async def test_hashed_once(archive: Path) -> None:
    """The layers of an archive are hashed at the first use, and again after a change."""
    archive.write_bytes(saved_of_old({"site:v1": [STREAM]}))
    threads = CountedThreads()
    files = DockerArchive(archive, threads, Limits())
    await gatherResults([Deferred.fromCoroutine(files.ready()) for _ in range(5)])
    first = threads.count
    for _ in range(5):
        await files.ready()
    assert threads.count == first + 5
    assert first < 20
    os.utime(archive, (1, 1))
    await files.ready()
    assert threads.count > first + 6


@within(10)
async def test_the_same_layer_twice(archive: Path) -> None:
    """A repeated layer that is a link is not hashed again."""
    counts = []
    for layers_ in ([STREAM], [STREAM, STREAM]):
        archive.write_bytes(saved_of_old({"site:v1": layers_}))
        threads = CountedThreads()
        await DockerArchive(archive, threads, Limits()).ready()
        counts.append(threads.count)
    assert counts[1] == counts[0] + 1  # to read its first bytes


@within(10)
@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("registry.example/team/site:v1", "registry.example/team/site:v1"),
        ("docker.io/library/site:v1", "site:v1"),
        ("docker.io/team/site:v1", "team/site:v1"),
        ("localhost/site:v1", "localhost/site:v1"),
        ("registry.example/other/only:v2", "only:v2"),
        ("localhost:5000/site:v1", None),
        ("registry.example/other:v2", None),
    ],
)
async def test_names(asked: str, found: str | None, archive: Path) -> None:
    """An image is found by its own repository, or by the last part if only one image has it."""
    names = [
        "registry.example/team/site:v1",
        "site:v1",
        "team/site:v1",
        "localhost/site:v1",
        "only:v2",
    ]
    archive.write_bytes(saved_of_old({name: [tar_of({"x": name.encode()})] for name in names}))
    if found is None:
        with pytest.raises(ImageNotFound, match=r"its source has registry\.example/team/site:v1, "):
            await docker(archive).resolve(Reference.parse(asked))
        return
    assert await blobs(docker(archive), Reference.parse(asked)) == [tar_of({"x": found.encode()})]


@within(10)
async def test_full_names_in_a_layout(tmp_path: Path, archive: Path) -> None:
    """An image that a layout lists by a full reference, as Podman does, is found by its tag."""
    layout = write_layout(
        tmp_path / "layout",
        {"localhost/site:v1": IMAGE, "registry.example:5000/x": OTHER, "v2": OTHER},
    )
    archive.write_bytes(packed(layout))
    assert str((await oci(archive).resolve(SITE)).digest) == IMAGE.digest
    with pytest.raises(ImageNotFound):
        await oci(archive).resolve(Reference.parse("registry.example/team/site:5000"))


@within(10)
@pytest.mark.parametrize("unnamed", ["", "<none>:<none>"])
async def test_without_names(unnamed: str, archive: Path) -> None:
    """A single image without a name is served under every tag."""
    archive.write_bytes(saved_of_old({unnamed: [STREAM]}))
    source = docker(archive)
    assert await blobs(source) == [STREAM]
    assert await blobs(source, Reference.parse("localhost/other:v7")) == [STREAM]
    digest = (await source.resolve(SITE)).digest
    assert await blobs(source, SITE.at(digest)) == [STREAM]
    archive.write_bytes(saved_of_old({unnamed: [STREAM], "other:v1": [OTHER_STREAM]}))
    with pytest.raises(ImageNotFound, match=r"its source has docker\.io/library/other:v1"):
        await source.resolve(SITE)
    assert await blobs(source, SITE.at(digest)) == [STREAM]


@within(10)
async def test_one_name_for_several_platforms(archive: Path) -> None:
    """Images of a Docker archive that share a name, each with its platform, form an index."""
    streams = {"amd64": STREAM, "arm64": OTHER_STREAM}
    members: list[Entry] = []
    listed = []
    for architecture, stream in streams.items():
        config = json.dumps({"os": "linux", "architecture": architecture}).encode()
        members += [File(f"{architecture}.json".encode(), config)]
        members += [File(f"{architecture}.tar".encode(), stream)]
        paths = {"Config": f"{architecture}.json", "Layers": [f"{architecture}.tar"]}
        listed.append({"RepoTags": ["site:v1"], **paths})
    archive.write_bytes(tar([*members, File(b"manifest.json", json.dumps(listed).encode())]))
    source = docker(archive)
    document = await source.resolve(SITE)
    index = parse(document.content, document.media_type, Limits())
    assert isinstance(index, ImageIndex)
    for architecture, stream in streams.items():
        chosen, _ = index.choose(Platform("linux", architecture))
        assert await blobs(source, SITE.at(chosen.digest)) == [stream]


@within(10)
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"Layers": ["nowhere"]}, "a layer that it names is not in the archive"),
        ({"Layers": ["circle"]}, "a link in it leads back to itself"),
        ({"Layers": "l"}, "the Layers of an image are not a list of text"),
        ({"Config": None}, "an image has no Config"),
        ({"Layers": ["l"] * 257}, "an image has 257 layers, more than 256"),
    ],
)
async def test_an_incomplete_image(broken: dict[str, Any], said: str, archive: Path) -> None:
    """An incomplete image fails, and the other images of the archive are served."""
    usual = {"Config": "c", "Layers": ["l"]}
    listed = [{**usual, "RepoTags": ["blog:v1"], **broken}, {**usual, "RepoTags": ["site:v1"]}]
    for order in (listed, listed[::-1]):
        members = [File(b"c", b"{}"), File(b"l", STREAM), Symlink(b"circle", b"circle")]
        archive.write_bytes(tar([*members, File(b"manifest.json", json.dumps(order).encode())]))
        source = docker(archive)
        assert await blobs(source) == [STREAM]
        with pytest.raises(RegistryFailed, match=said):
            await source.resolve(Reference.parse("registry.example/team/blog:v1"))
        with pytest.raises(ImageNotFound, match=r"site:v1$|blog:v1$"):
            await source.resolve(Reference.parse("registry.example/team/shop:v1"))


@within(10)
@pytest.mark.parametrize("how", ["renamed", "rewritten"])
async def test_replaced(how: str, tmp_path: Path, archive: Path) -> None:
    """A replaced archive is noticed at the next request, with its new layers."""
    for form, write in ((oci, written), (docker, saved)):
        archive.write_bytes(write(tmp_path, IMAGE))
        source = form(archive)
        [blob] = await blobs(source)
        if how == "renamed":
            (tmp_path / "new").write_bytes(write(tmp_path, OTHER))
            (tmp_path / "new").rename(archive)
        else:
            archive.write_bytes(write(tmp_path, OTHER) + bytes(10240))
        [other] = await blobs(source)
        assert blob != other
        gone = Descriptor("", Digest.of(blob), len(blob))
        with pytest.raises(BlobNotFound):
            await source.fetch(SITE.repository, gone, Sink())


def written(tmp_path: Path, image: Image) -> bytes:
    """Return a tar of a layout with an image."""
    return packed(write_layout(tmp_path / image.digest, {"v1": image}))


def saved(tmp_path: Path, image: Image) -> bytes:
    """Return the same image in the format of `docker save`."""
    return saved_of_old({"team/site:v1": [image.layers[0].blob]})


@within(10)
async def test_replaced_while_it_is_read(tmp_path: Path, archive: Path) -> None:
    """A read from an archive that was replaced is an error, and never mixes bytes."""
    for form, write in ((oci, written), (docker, saved)):
        archive.write_bytes(write(tmp_path, IMAGE))
        files = form(archive)._files
        await files.ready()
        archive.write_bytes(write(tmp_path, OTHER) + bytes(10240))
        with pytest.raises(RegistryBusy):
            files.read(f"blobs/sha256/{IMAGE.layers[0].digest[7:]}", 0, 10)


def circle(name: bytes) -> bytes:
    """Return an archive of links that lead to each other."""
    return tar([Symlink(name, b"b"), Symlink(b"b", name), File(b"x", b"y")])


def old(**members: Any) -> bytes:
    """Return a Docker archive with one image of these manifest members."""
    described = {"Config": "c", "RepoTags": ["site:v1"], "Layers": ["l"], **members}
    files = [File(b"c", b"{}"), File(b"l", STREAM), File(b"empty", b"")]
    return tar([*files, File(b"manifest.json", json.dumps([described]).encode())])


@within(10)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is not a tar archive"),
        (b"no archive at all", "it is not a tar archive"),
        (gzip.compress(circle(b"a")), "it is gzip data, not a tar archive"),
        (b'{"schemaVersion": 2}' + bytes(512), "it is a JSON document, not a tar archive"),
        (circle(b"manifest.json"), "a link in it leads back to itself"),
        (
            tar([Symlink(b"manifest.json", b"../../x")]),
            "a link in it leads to a file that it does not have",
        ),
        (tar([File(b"x", b"y")])[:512], "it is cut short: the last file"),
        (tar([File(b"x", b"y")])[:1024], "it is cut short: it has no end"),
        (tar([File(b"x", b"y")])[:1100], "it is cut short: it has no end"),
        (tar([File(b"x", b"y"), b"damaged!" * 64]), "the checksum of a header is wrong"),
        (tar([pax(b"9 broken\n"), File(b"x")]), "a PAX record"),
        (tar([header(type=b"x", size=1 << 21), File(b"x")]), "it is cut short"),
        (tar([*[pax({b"path": b"y"})] * 17, File(b"x")]), "it has too many extension headers"),
        (tar([File(b"x" * 5000)]), "a name in it is longer than 4096 bytes"),
        (tar([File(b"x", b"y")]), "it has no manifest.json: docker save did not write it"),
        (tar([File(b"index.json", b"{}")]), "it has no manifest.json: it is an oci-archive"),
        (tar([File(b"manifest.json", b"{")]), "it is not strict JSON"),
        (tar([File(b"manifest.json", b"{}")]), "it is not a JSON array"),
        (tar([File(b"manifest.json", b"[7]")]), "an image in it is not a JSON object"),
        (tar([File(b"manifest.json", b" " * 5_000_000)]), "its manifest.json is too large"),
        (tar([Directory(b"manifest.json/")]), "it has no manifest.json"),
        (old(Config=None), "an image has no Config"),
        (old(Config="nowhere"), "a configuration that it names is not in the archive"),
        (old(Layers=["nowhere"]), "a layer that it names is not in the archive"),
        (old(Layers=["empty"]), "a layer that it names is not in the archive, or is empty"),
        (old(Layers=[__file__]), "a layer that it names is not in the archive"),
        (old(Layers="l"), "the Layers of an image are not a list of text"),
        (old(RepoTags=[7]), "the RepoTags of an image are not a list of text"),
        (old(Layers=["l"] * 257), "an image has 257 layers, more than 256"),
    ],
)
async def test_bad_archives(content: bytes, said: str, archive: Path) -> None:
    """A bad archive is reported with the reason and without its path."""
    archive.write_bytes(content)
    with pytest.raises(RegistryFailed, match=said) as raised:
        await docker(archive).resolve(SITE)
    assert str(archive) not in str(raised.value)
    if not {"manifest", "image"} & set(said.replace(".", " ").split()):
        with pytest.raises(RegistryFailed):
            await oci(archive).resolve(SITE)


@within(10)
async def test_no_archive(archive: Path) -> None:
    """A missing archive is an error until it is there, checked at each request."""
    source = oci(archive)
    for make in (lambda path: None, os.mkdir, os.mkfifo):
        make(archive)
        with pytest.raises(RegistryFailed, match="oci archive failed: there is no such file"):
            await source.resolve(SITE)
        if archive.exists():
            archive.rmdir() if archive.is_dir() else archive.unlink()
    archive.write_bytes(written(archive.parent, IMAGE))
    assert str((await source.resolve(SITE)).digest) == IMAGE.digest
    archive.unlink()
    archive.symlink_to(archive)
    with pytest.raises(RegistryFailed, match="it cannot be read"):
        await source.resolve(SITE)


def test_names_of_members() -> None:
    """Member names are normalized, links stay inside, and the last of equal names counts."""
    found = members(
        tar(
            [
                File(b"./a//b/../c", b"1"),
                File(b"/../d", b"22"),
                Symlink(b"x/up", b"../../../../d"),
                Symlink(b"x/root", b"/a/c"),
                Link(b"hard", b"./a/c"),
                File(b"again", b"1"),
                Symlink(b"again", b"d"),
                Symlink(b"back", b"d"),
                File(b"back", b"333"),
                Entry(b"device", b"3"),
                Directory(b"directory/"),
                File(b"l" * 200, b"4444"),
                gnu_long(b"large") + pax({b"size": b"5"}) + header(b"short") + padded(b"55555"),
            ]
        )
    )
    sizes = {
        name: part and part.size
        for name, part in (
            (name, found.find(name))
            for name in (
                *(b"a/c", b"d", b"x/up", b"x/root", b"hard", b"again", b"back"),
                *(b"device", b"directory", b"l" * 200, b"large", b"nothing"),
            )
        )
    }
    assert sizes == {
        b"a/c": 1,
        b"d": 2,
        b"x/up": 2,
        b"x/root": 1,
        b"hard": 1,
        b"again": 2,
        b"back": 3,
        b"device": None,
        b"directory": None,
        b"l" * 200: 4,
        b"large": 5,
        b"nothing": None,
    }


def test_many_members() -> None:
    """An archive with more members than the limit is refused before it is read to its end."""
    block = File(b"x").packed()
    reads = 0

    def read(at: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        return block

    with pytest.raises(Exception, match=f"it has more than {MOST} members"):
        Members.read(read, 1 << 60, Limits())
    assert reads == MOST + 1


SAVED = saved_of_old({"site:v1": [gzip.compress(STREAM, mtime=0)] * 2})


@given(st.integers(0, len(SAVED) - len(layers.END)))
@settings(max_examples=more(200))
def test_truncated_anywhere(size: int) -> None:
    """Truncation of an archive is detected before any of its files is served."""
    with pytest.raises(Exception, match=r"cut short|not a tar archive"):
        members(SAVED[:size])


@given(st.lists(st.tuples(st.integers(0, len(SAVED) - 1), st.integers(0, 255)), max_size=5))
@settings(max_examples=more(200))
def test_damaged_anywhere(tmp_path_factory: Any, damage: list[tuple[int, int]]) -> None:
    """A damaged archive raises an error of ours or gives the right digests."""
    content = bytearray(SAVED)
    for at, byte in damage:
        content[at] = byte
    archive = tmp_path_factory.getbasetemp() / "damaged.tar"
    archive.write_bytes(content)
    outcome: list[object] = []
    Deferred.fromCoroutine(blobs(docker(archive))).addBoth(outcome.append)
    [result] = outcome
    error = getattr(result, "value", None)
    assert error is None or isinstance(error, BlobserveError), error


def test_several_images_served(tmp_path: Path, serve: Callable[..., Server]) -> None:
    """Two repositories with one archive as their source have their own pages under one tag."""
    site, blog = tar_of({"index.html": b"site"}), tar_of({"index.html": b"blog"})
    (tmp_path / "a.tar").write_bytes(saved_of_old({"site:v1": [site], "blog:v1": [blog]}))
    layout = write_named_layout(
        tmp_path / "layout",
        [(IMAGE, named("v1", "docker.io/library/site:v1")), (OTHER, named("v1", "blog:v1"))],
    )
    repos = {f"a.example/{each}": {"source": "docker-archive:a.tar"} for each in ("site", "blog")}
    repos |= {f"b.example/{each}": {"source": "oci:layout"} for each in ("site", "blog", "shop")}
    server = serve({"repos": repos})
    pages = {"a": {"site": b"site", "blog": b"blog"}, "b": {"site": b"a page"}}
    pages["b"]["blog"] = b"another page"
    for host, each in pages.items():
        for name, page in each.items():
            assert server.fetch(f"/{host}.example/{name}:v1/").body == page
    assert layout.is_dir()
    missing = server.fetch("/b.example/shop:v1/")
    assert (missing.status, missing.body) == (
        404,
        b"no such image: b.example/shop:v1; its source has docker.io/library/site:v1, "
        b"docker.io/library/blog:v1\n",
    )
    assert server.fetch(f"/b.example/blog@{OTHER.digest}/").body == b"another page"


def test_served(tmp_path: Path, serve: Callable[..., Server]) -> None:
    """A server serves both kinds of archive, and soon the archives that replace them."""
    a, b = tmp_path / "a.tar", tmp_path / "b.tar"
    a.write_bytes(written(tmp_path, IMAGE))
    b.write_bytes(saved(tmp_path, IMAGE))
    repos = {
        "registry.example/a": {"source": "oci-archive:a.tar", "tagMaxAge": "0s"},
        "registry.example/site": {"source": "docker-archive:b.tar", "tagMaxAge": "0s"},
    }
    server = serve({"repos": repos})
    for name in ("a", "site"):
        assert server.fetch(f"/registry.example/{name}:v1/").body == b"a page"
    a.write_bytes(written(tmp_path, OTHER) + bytes(512))
    b.write_bytes(b"broken")
    page = hashlib.sha256(b"a page").hexdigest()
    for _ in range(100):
        if server.fetch("/registry.example/a:v1/").body == b"another page":
            break
    else:
        pytest.fail("the new archive was never noticed")
    kept = server.fetch("/registry.example/site:v1/").body
    assert hashlib.sha256(kept).hexdigest() == page
    missing = server.fetch("/registry.example/site:v2/")
    assert missing.status == 502
    assert missing.body == b"registry docker archive failed: it is not a tar archive\n"
