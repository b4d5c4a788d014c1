"""Images in a directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import attrs
import pytest

from blobserve.config import Limits
from blobserve.errors import BadImage, BlobNotFound, ContentMismatch, ImageNotFound, RegistryFailed
from blobserve.names.digest import Digest
from blobserve.names.platform import Platform
from blobserve.names.reference import Reference
from blobserve.oci.local.directory import LayoutDirectory
from blobserve.oci.local.layout import Layout
from blobserve.oci.manifest import Descriptor, parse
from blobserve.oci.manifest import ImageIndex as ParsedIndex
from blobserve.testing import InlineThreads
from tests.support.parts.archives import named, write_named_layout
from tests.support.parts.images import Image, Index, write_layout
from tests.support.source_fixtures import Sink
from tests.support.within import within

SITE = Reference.parse("registry.example/team/site:v1")
IMAGE = Image.of({"index.html": b"a page"})
OTHER = Image.of({"index.html": b"another page"})
DIGEST = Digest.parse(IMAGE.digest)
BLOB = IMAGE.layers[0].blob
LAYER = Descriptor("", Digest.of(BLOB), len(BLOB))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A layout with one image, tagged v1."""
    return write_layout(tmp_path / "layout", {"v1": IMAGE})


def layout(directory: Path, limits: Limits | None = None) -> Layout:
    """Return a source of that directory."""
    return Layout(LayoutDirectory(directory), InlineThreads(), limits or Limits())


def blob_file(directory: Path, digest: Digest) -> Path:
    """Return the path of a blob."""
    return directory / "blobs" / digest.algorithm / digest.hex


@within(10)
async def test_any_repository(directory: Path) -> None:
    """An image with a tag and no repository in its name belongs to every repository."""
    source = layout(directory)
    for name in ("registry.example/a:v1", "localhost:5000/b/c:v1"):
        assert (await source.resolve(Reference.parse(name))).digest == DIGEST
    with pytest.raises(ImageNotFound, match=r"site:v2; its source has v1$"):
        await source.resolve(Reference.parse("registry.example/team/site:v2"))


PLATFORMS = {
    Platform("linux", architecture, variant): Image.of({"index.html": architecture.encode()})
    for architecture, variant in (("amd64", None), ("arm64", None), ("arm", "v6"))
}
SHOP = Reference.parse("registry.example/team/shop:v1")
BLOG = Reference.parse("registry.example/team/blog:v1")


@within(10)
async def test_several_repositories(directory: Path) -> None:
    """A repository never gets the image of another, by tag, digest or index."""
    nested = Image.of({"index.html": b"in an index"})
    write_named_layout(
        directory,
        [
            (IMAGE, named("v1", "docker.io/library/shop:v1")),
            (OTHER, named("v1", "docker.io/library/blog:v1")),
            (Index((nested,)), named("v2", "docker.io/library/blog:v2")),
        ],
    )
    source = layout(directory)
    own = {SHOP: [IMAGE.digest], BLOG: [OTHER.digest, nested.digest, Index((nested,)).digest]}
    for reference, digests in own.items():
        assert str((await source.resolve(reference)).digest) == digests[0]
        assert str((await source.refresh(reference, DIGEST)).digest) == digests[0]
        for digest in map(Digest.parse, chain(*own.values())):
            if str(digest) in digests:
                assert (await source.resolve(reference.at(digest))).digest == digest
            else:
                with pytest.raises(
                    ImageNotFound, match=r"its source has docker\.io/library/shop:v1"
                ):
                    await source.resolve(reference.at(digest))
    for name in ("registry.example/team/other:v1", "registry.example/team/shop:v2"):
        for asked in (source.resolve, lambda reference: source.refresh(reference, DIGEST)):
            with pytest.raises(ImageNotFound, match=r"blog:v1, docker\.io/library/blog:v2$"):
                await asked(Reference.parse(name))


@within(10)
async def test_the_only_image(directory: Path) -> None:
    """The only image of a layout, if it has no name, is served under every tag."""
    write_named_layout(directory, [(IMAGE, {})])
    for name in ("registry.example/a:v1", "localhost:5000/b/c:latest"):
        assert (await layout(directory).resolve(Reference.parse(name))).digest == DIGEST
    write_named_layout(directory, [(IMAGE, {}), (OTHER, {})])
    with pytest.raises(ImageNotFound, match="its source has 2 images without a name"):
        await layout(directory).resolve(SITE)
    assert (await layout(directory).resolve(SITE.at(DIGEST))).digest == DIGEST


@within(10)
async def test_a_tag_for_several_platforms(directory: Path) -> None:
    """Images that share a tag, each with its platform, form an index with its own digest."""
    images = [
        (each, named("v2", platform=attrs.asdict(platform))) for platform, each in PLATFORMS.items()
    ]
    write_named_layout(directory, [*images, (IMAGE, named("localhost/other:v1"))])
    reference = Reference.parse("registry.example/a:v2")
    document = await layout(directory).resolve(reference)
    assert Digest.of(document.content) == document.digest
    index = parse(document.content, document.media_type, Limits())
    assert isinstance(index, ParsedIndex)
    for platform, image in PLATFORMS.items():
        chosen, warning = index.choose(platform)
        assert (str(chosen.digest), chosen.size, warning) == (
            image.digest,
            len(image.manifest),
            None,
        )
    again = layout(directory)
    assert (await again.refresh(reference, DIGEST)).digest == document.digest
    assert await again.resolve(reference.at(document.digest)) == document


@within(10)
async def test_index(directory: Path) -> None:
    """A tag may stand for an index, and its images are found by digest alone."""
    index = Index((IMAGE, OTHER))
    write_layout(directory, {"v2": index})
    source = layout(directory)
    document = await source.resolve(Reference.parse("registry.example/a:v2"))
    assert document.media_type == index.media_type
    assert (await source.resolve(SITE.at(Digest.parse(OTHER.digest)))).content == OTHER.manifest


@within(10)
async def test_replaced(directory: Path) -> None:
    """A replaced layout is noticed at the next look-up; two images for a tag are an error."""
    source = layout(directory)
    await source.resolve(SITE)
    index = json.loads((directory / "index.json").read_bytes())
    write_layout(directory, {"v1": OTHER})
    assert str((await source.refresh(SITE, DIGEST)).digest) == OTHER.digest
    newer = json.loads((directory / "index.json").read_bytes())
    newer["manifests"] += index["manifests"]
    (directory / "index.json").write_text(json.dumps(newer))
    with pytest.raises(ImageNotFound, match=r"its source has v1 \(2 images\)"):
        await source.refresh(SITE, DIGEST)
    for each in newer["manifests"]:
        each["annotations"]["org.opencontainers.image.ref.name"] = str(SITE)
    (directory / "index.json").write_text(json.dumps(newer))
    assert (await source.refresh(SITE, DIGEST)).digest == DIGEST


@within(10)
async def test_wrong_manifest(directory: Path) -> None:
    """A manifest that does not match its digest is refused."""
    blob_file(directory, DIGEST).write_bytes(OTHER.manifest)
    with pytest.raises(ContentMismatch, match=IMAGE.digest):
        await layout(directory).resolve(SITE)


@within(10)
async def test_manifest_size(directory: Path) -> None:
    """A manifest is read up to the limit exactly."""
    size = max(len(IMAGE.manifest), (directory / "index.json").stat().st_size)
    assert (await layout(directory, Limits(manifest_size=size)).resolve(SITE)).digest == DIGEST
    blob_file(directory, DIGEST).write_bytes(bytes(size + 1))
    with pytest.raises(BadImage, match="its manifest exceeds"):
        await layout(directory, Limits(manifest_size=size)).resolve(SITE)


def _remove(index: Path) -> None:
    index.unlink()


def _make_directory(index: Path) -> None:
    index.unlink()
    index.mkdir()


def _make_fifo(index: Path) -> None:
    index.unlink()
    os.mkfifo(index)


def _write(content: bytes) -> Callable[[Path], None]:
    def write(index: Path) -> None:
        index.write_bytes(content)

    return write


@within(10)
@pytest.mark.parametrize(
    "spoil",
    [
        _remove,
        _make_directory,
        _make_fifo,
        _write(b""),
        _write(b"{"),
        _write(b"[]"),
        _write(b'{"schemaVersion": 2, "layers": []}'),
        _write(b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:../../etc/passwd"}]}'),
        _write(b" " * (5 << 20)),
    ],
)
async def test_no_index(spoil: Callable[[Path], None], directory: Path) -> None:
    """A directory that is not a layout is an error, reported without its path."""
    spoil(directory / "index.json")
    for asked in (layout(directory).resolve(SITE), layout(directory).refresh(SITE, DIGEST)):
        with pytest.raises(RegistryFailed, match="index") as raised:
            await asked
        assert str(directory) not in str(raised.value)


@within(10)
async def test_missing_manifest(directory: Path) -> None:
    """A manifest that the index lists but the layout lacks is not found."""
    blob_file(directory, DIGEST).unlink()
    with pytest.raises(ImageNotFound):
        await layout(directory).resolve(SITE)


@within(10)
async def test_no_regular_file(directory: Path) -> None:
    """A path in place of a blob that is not a regular file is not found, without a wait."""
    for make in (os.mkdir, os.mkfifo):
        path = blob_file(directory, LAYER.digest)
        path.unlink() if path.is_file() else path.rmdir()
        make(path)
        source, sink = layout(directory), Sink()
        assert not await source.holds(SITE.repository, LAYER)
        with pytest.raises((BlobNotFound, RegistryFailed)):
            await source.fetch(SITE.repository, LAYER, sink)
        assert sink.chunks == []


@within(10)
async def test_nothing_kept_open(directory: Path) -> None:
    """A layout keeps no file open after a fetch, successful or not."""
    before = len(os.listdir("/proc/self/fd"))
    source = layout(directory)
    await source.fetch(SITE.repository, LAYER, Sink())
    with pytest.raises(ContentMismatch):
        await source.fetch(SITE.repository, Descriptor("", LAYER.digest, LAYER.size + 1), Sink())
    assert len(os.listdir("/proc/self/fd")) == before
