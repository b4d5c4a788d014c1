"""Artifacts: plain files with titles, in the form of `oras push`."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.config import Limits
from blobserve.errors import BadImage
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.oci.manifest import Descriptor, Manifest, parse
from blobserve.oci.source import Document
from blobserve.store.extract.single_file import TarWrapper
from blobserve.tar.reader import TarReader
from blobserve.testing import MadeImage
from tests.support.examples import more
from tests.support.layers import Compression
from tests.support.parts.artifacts import Artifact, Piece
from tests.support.parts.images import Image, Layer, digest_of
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Server
from tests.support.sites import REPOSITORY, TAG, Serving, packed, serving
from tests.support.within import within

FILES = {
    "index.html": b"<p>page",
    "assets/app.js": b"x" * 70_000,
    "./assets//deep/x.txt": b"deep",
    "empty.css": b"",
    "n" * 150 + ".txt": b"long",
    "größe.txt": b"utf-8",
}
SERVED = {
    "index.html": b"<p>page",
    "": b"<p>page",
    "assets/app.js": b"x" * 70_000,
    "assets/deep/x.txt": b"deep",
    "empty.css": b"",
    "n" * 150 + ".txt": b"long",
    "gr%C3%B6%C3%9Fe.txt": b"utf-8",
}


def push(site: Serving, artifact: Artifact, reference: str = TAG) -> None:
    """Push an artifact to the registry in memory."""
    document = Document(Digest.parse(artifact.digest), artifact.media_type, artifact.manifest)
    blobs = {Digest.parse(digest_of(blob)): blob for blob in artifact.blobs}
    site.source.push(Reference.parse(reference), MadeImage((document,), (), blobs))


async def body(site: Serving, path: str, reference: str = TAG) -> bytes:
    """Return the content of a file that must exist."""
    answer = await site.fetch(f"/{reference}/{path}")
    assert answer.status == 200, answer
    return answer.body


def read(artifact: Artifact, limits: Limits | None = None) -> Manifest:
    """Parse the manifest of an artifact."""
    manifest = parse(artifact.manifest, artifact.media_type, limits or Limits())
    assert isinstance(manifest, Manifest)
    return manifest


def test_a_real_registry(
    docker_registry: DockerRegistry, serve: Callable[..., Server], tmp_path: Path
) -> None:
    """All files of an artifact are served under their titles, also after a crash."""
    artifact: Any = Artifact.of(FILES)
    docker_registry.put(artifact, "team/site:v1")
    repository = f"{docker_registry.host}/team/site"
    server = serve({"repos": {repository: {}}})
    for path, content in SERVED.items():
        answer = server.fetch(f"/{repository}:v1/{path}")
        assert (answer.status, answer.body) == (200, content)
    missing = server.fetch(f"/{repository}:v1/none.txt")
    assert (missing.status, missing.body) == (404, b"no such file: /none.txt\n")
    assert server.fetch(f"/{repository}@{artifact.digest}/index.html").body == b"<p>page"
    # Nothing is marked as durable, so that all is read again and verified.
    server.stop()
    with closing(sqlite3.connect(server.space / "state")) as state, state:
        state.execute("UPDATE blobs SET durable = 0")
    docker_registry.stop()
    server.start()
    for path, content in SERVED.items():
        answer = server.fetch(f"/{repository}@{artifact.digest}/{path}")
        assert (answer.status, answer.body) == (200, content)


@within(30)
async def test_one_file(tmp_path: Path) -> None:
    """An artifact of one file serves it with a type by its name and its hash, without a time."""
    async with serving(tmp_path) as site:
        push(site, Artifact.of({"docs/a.txt": b"content"}))
        answer = await site.fetch(f"/{TAG}/docs/a.txt")
        assert (answer.body, answer.headers["content-type"]) == (
            b"content",
            "text/plain; charset=utf-8",
        )
        assert "last-modified" not in answer.headers
        site.rule(listing=True)
        [listed] = json.loads(
            (await site.fetch(f"/{TAG}/docs/", headers={"Accept": "application/json"})).body
        )
        assert (listed["name"], listed["size"], listed["mtime"]) == ("a.txt", 7, None)
        assert listed["sha256"] == hashlib.sha256(b"content").hexdigest()


GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
DIRECTORY = {"dist/index.html": b"page", "dist/b.txt": b"b"}


@within(30)
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize(
    ("title", "kind", "is_packed"),
    [
        ("dist", GZIP, True),
        ("dist", "any.type+gzip", True),
        ("dist", "text/plain", True),
        ("dist", "application/vnd.oci.image.layer.v1.tar", True),
        (None, "any.type", True),
        ("dist", GZIP, False),
        ("dist.tar.gz", GZIP, False),
        ("dist", "application/vnd.oci.image.layer.v1.tar+zstd", False),
        ("dist", "application/vnd.docker.image.rootfs.diff.tar.gzip", False),
        (None, GZIP, False),
        (None, "application/vnd.oci.image.layer.v1.tar", False),
        (None, "application/vnd.cncf.flux.content.v1.tar+gzip", False),
        (None, "application/vnd.cncf.helm.chart.content.v1.tar+gzip", False),
        (None, "application/vnd.example.content.tar", False),
        (None, "application/vnd.example.content.tar+zstd", False),
        (None, "application/vnd.example.content.tar.gzip", False),
    ],
)
async def test_directories(
    title: str | None, kind: str, is_packed: bool, compression: Compression, tmp_path: Path
) -> None:
    """A packed directory is served as its files, in each way that writers mark it."""
    directory = Layer.of(DIRECTORY, compression)
    nothing = Piece(b"{}", None, "application/vnd.cncf.helm.chart.provenance.v1.prov")
    async with serving(tmp_path) as site:
        push(site, Artifact((Piece(directory.blob, title, kind, is_packed), nothing)))
        assert await body(site, "dist/") == b"page"
        assert await body(site, "dist/b.txt") == b"b"
        assert (await site.fetch(f"/{TAG}/dist.tar.gz")).status == 404


@within(30)
@pytest.mark.parametrize(
    ("kind", "unpack"),
    [
        ("application/vnd.oci.image.layer.v1.tar", None),
        ("application/vnd.cncf.flux.content.v1.tar+gzip", None),
        ("application/x-tar", None),
        ("application/gzip", None),
        (GZIP, "false"),
    ],
)
async def test_archives_as_files(kind: str, unpack: str | None, tmp_path: Path) -> None:
    """A titled archive that is not marked as a directory is served as one file."""
    blob = Layer.of(DIRECTORY).blob
    async with serving(tmp_path) as site:
        piece = Piece(blob, "dist.tar.gz", kind, unpack=unpack)
        push(site, Artifact((piece, Piece(b"file", "file.txt"))))
        assert await body(site, "dist.tar.gz") == blob
        assert await body(site, "file.txt") == b"file"
        assert (await site.fetch(f"/{TAG}/dist/b.txt")).status == 404


@within(30)
async def test_files_and_directories(tmp_path: Path) -> None:
    """The files and directories of an artifact are served together."""
    docs, media = ({f"{each}/a.txt": each.encode()} for each in ("docs", "media"))
    pieces = (
        Piece(Layer.of(docs).blob, "docs", "any.type", is_packed=True),
        Piece(b"file", "file.txt"),
        Piece(Layer.of(media).blob, None, "application/vnd.example.tar+gzip"),
        Piece(b"no archive", None),
    )
    async with serving(tmp_path) as site:
        push(site, Artifact(pieces))
        assert await body(site, "docs/a.txt") == b"docs"
        assert await body(site, "media/a.txt") == b"media"
        assert await body(site, "file.txt") == b"file"


@within(30)
async def test_several_archives(tmp_path: Path) -> None:
    """All archives of an artifact are served, unlike the layers of an image."""
    docs, media = (Layer.of({f"{each}.txt": each.encode()}) for each in ("docs", "media"))
    pieces = tuple(Piece(each.blob, None, GZIP) for each in (docs, media))
    async with serving(tmp_path) as site:
        push(site, Artifact(pieces, "application/vnd.example.config.v1+json"))
        assert await body(site, "docs.txt") == b"docs"
        assert await body(site, "media.txt") == b"media"


@within(30)
async def test_the_same_bytes(tmp_path: Path) -> None:
    """The same bytes may be two files of an artifact and the layer of an image."""
    layer = Layer.of({"inner.txt": b"inner"}, "none")
    other = "registry.example/team/image:v1"
    for number, order in enumerate(((0, 1), (1, 0))):
        async with serving(tmp_path / str(number)) as site:
            site.rule(other.partition(":")[0])
            for which in order:
                if which:
                    image = packed(Image((layer,)))
                    site.source.push(Reference.parse(other), image)
                    assert await body(site, "inner.txt", other) == b"inner"
                else:
                    push(site, Artifact.of({"a.tar": layer.blob, "sub/b.tar": layer.blob}))
                    assert await body(site, "a.tar") == layer.blob
                    assert await body(site, "sub/b.tar") == layer.blob
            assert await body(site, "inner.txt", other) == b"inner"
            assert (await site.fetch(f"/{TAG}/inner.txt")).status == 404


@within(30)
async def test_without_titles(tmp_path: Path) -> None:
    """A layer without a title is left out, and an artifact without any title is an error."""
    async with serving(tmp_path) as site:
        kind = "application/vnd.example"
        push(site, Artifact((Piece(b"{}", None, kind), Piece(b"file", "file.txt", kind))))
        assert await body(site, "file.txt") == b"file"
        other = f"{REPOSITORY}:v2"
        push(site, Artifact((Piece(b"{}", None, kind),)), other)
        answer = await site.fetch(f"/{other}/x")
        assert answer.status == 502
        assert b"it is an artifact without titles" in answer.body


@within(30)
async def test_wrong_bytes(tmp_path: Path) -> None:
    """A file that does not match its digest is not served."""
    async with serving(tmp_path) as site:
        artifact = Artifact.of({"file.txt": b"0123456789"})
        push(site, artifact)
        site.source.corrupt(Digest.of(b"0123456789"), 5)
        answer = await site.fetch(f"/{TAG}/file.txt")
        assert (answer.status, b"wrong content" in answer.body) == (502, True)


@within(30)
async def test_a_policy_of_layers(tmp_path: Path) -> None:
    """A reload that changes `layers` does not affect an artifact."""
    async with serving(tmp_path) as site:
        push(site, Artifact.of({"a.txt": b"a", "b.txt": b"", "c.txt": b"c"}))
        for layers in ("first", "all", "first"):
            site.rule(layers=layers)
            assert await body(site, "b.txt") == b""
            assert await body(site, "c.txt") == b"c"
            missing = await site.fetch(f"/{TAG}/d.txt")
            assert missing.body == b"no such file: /d.txt\n"
            lease = site.store.lease_at_once(Reference.parse(TAG))
            assert lease is not None
            lease.release()
        resolved = [method for method, _ in site.source.requests if method == "resolve"]
        assert len(resolved) == 1


@within(30)
async def test_an_upgrade(tmp_path: Path) -> None:
    """An unchanged file is not pulled again with the next version of an artifact."""
    async with serving(tmp_path) as site:
        push(site, Artifact.of({"a.txt": b"same", "b.txt": b"old"}))
        assert await body(site, "b.txt") == b"old"
        push(site, Artifact.of({"a.txt": b"same", "b.txt": b"new"}), f"{REPOSITORY}:v2")
        assert await body(site, "b.txt", f"{REPOSITORY}:v2") == b"new"
        fetched = [subject for method, subject in site.source.requests if method == "fetch"]
        assert len(fetched) == 3


@pytest.mark.parametrize(
    ("titles", "said"),
    [
        ([""], "an empty title"),
        (["./"], "an empty title"),
        (["../x"], r"contains \.\."),
        (["a/../../x"], r"contains \.\."),
        (["a\0b"], "is not text"),
        (["\ud800"], "is not text"),
        ([".wh.x"], "the name of a whiteout"),
        (["a/.wh..wh..opq"], "the name of a whiteout"),
        (["x", "./x"], "two files in it have the same title"),
        (["a/b", "a"], "is a directory in the title of another"),
        (["a", "a/b/c"], "is a directory in the title of another"),
        (["a/" * 101 + "b"], "has too many directories"),
        (["x" * 5000], "a title in it is longer than 4096 bytes"),
    ],
)
def test_bad_titles(titles: list[str], said: str) -> None:
    """Titles that leave the root, repeat or conflict make an artifact invalid."""
    pieces = tuple(Piece(b"%d" % number, title) for number, title in enumerate(titles))
    with pytest.raises(BadImage, match=said):
        read(Artifact(pieces))


@pytest.mark.parametrize(
    ("artifact", "files"),
    [
        (Artifact.of({"/x": b"1"}), ["x"]),
        (Artifact.of({"a//./b": b"1"}), ["a/b"]),
        (Artifact((Piece(b"1", "x"), Piece(b"1", "x"))), ["x"]),
        (Artifact((Piece(b"1", "x"), Piece(b"1"))), ["x"]),
        (Artifact((Piece(b"1", "x", is_packed=True), Piece(b"1", "y"))), [None, "y"]),
        (Artifact((Piece(b"1", "x", "text/plain", is_packed=True),)), [None]),
        (Artifact((Piece(b"1", "x", GZIP), Piece(b"1", "y", GZIP, unpack="no"))), [None, "y"]),
        (Artifact((Piece(b"1"), Piece(b"2", None, "text/plain"))), [None]),
    ],
)
def test_titles(artifact: Artifact, files: list[str | None]) -> None:
    """Titles are normalized like the names of tar entries; a packed directory has none."""
    found = read(artifact)
    assert found.is_artifact
    assert [layer.file for layer in found.layers] == files


def test_images_stay_images() -> None:
    """A title on the layer of an image does not make it a file."""
    kind = "application/vnd.oci.image.config.v1+json"
    found = read(attrs.evolve(Artifact.of({"x": b"1"}), config_type=kind))
    assert (found.is_artifact, found.layers[0].file) == (False, None)
    empty = attrs.evolve(Artifact.of({"x": b""}), config_type=kind)
    assert [layer.size for layer in read(empty).layers] == [0]


def test_kept_apart() -> None:
    """A file is stored separately for each path under which it is served."""
    descriptor = Descriptor("", Digest.of(b"x"), 1)
    assert descriptor.kept_as == descriptor.digest
    as_files = {attrs.evolve(descriptor, file=path).kept_as for path in ("a", "b")}
    assert len(as_files | {descriptor.digest}) == 3


paths = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


@given(paths.filter(lambda name: name not in (".", "..")), st.binary(max_size=2000), st.data())
@settings(max_examples=more(200))
def test_wrapped(name: str, content: bytes, data: st.DataObject) -> None:
    """A file of any name and content, fed in any pieces, is the one member of its archive."""
    wrapped, reader = TarWrapper(name.encode(), len(content)), TarReader(Limits())
    stream, members = b"", []
    rest = content
    while True:
        while piece := wrapped.read():
            stream += piece
            members += reader.feed(piece)
        if not rest:
            break
        size = data.draw(st.integers(1, len(rest)))
        wrapped.feed(rest[:size])
        rest = rest[size:]
    wrapped.finish()
    reader.finish()
    [member] = members
    assert (member.name, member.mtime, member.size) == (name.encode(), None, len(content))
    assert stream[member.offset : member.offset + member.size] == content
    assert member.sha256 == hashlib.sha256(content).digest()
    assert len(stream) % 512 == 0


def test_large_files() -> None:
    """The archive of a file above eight gigabytes has the right size."""
    reader = TarReader(Limits())
    wrapped = TarWrapper(b"large", 1 << 40)
    while piece := wrapped.read():
        reader.feed(piece)
    assert reader._left == 1 << 40
