"""Tables of contents as the reference writers make them, and with every kind of lie."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.config import Limits
from blobserve.errors import BadToc, PathNotFound
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.index.layer_index import IndexWriter
from blobserve.store.index.node_table import opened
from blobserve.store.lazy.lazy_index import LazyIndex
from blobserve.store.lazy.toc.chunk import LARGEST, Chunk, extract
from blobserve.store.lazy.toc.index_builder import EntrySource, build_index
from blobserve.store.lazy.toc.json_stream import TocParser
from blobserve.store.lazy.toc.location import TocDescriptor, TocLocation
from blobserve.store.lazy.toc.search import TocSearch
from blobserve.store.lazy.toc.stream import WholeToc
from tests.support.examples import more
from tests.testdata.toc import NAMES, Layer, chunked, estargz, position, retold

USUAL = Limits()
LAYERS = {name: Layer.named(name) for name in NAMES}


def placed(layer: Layer, limits: Limits = USUAL) -> TocLocation:
    """Return the location of a layer's table."""
    promise = TocDescriptor.of(layer.descriptor, limits)
    assert promise is not None
    return promise.place or promise.found(layer.blob[-51:], layer.descriptor, limits)


def build(directory: Path, layer: Layer, limits: Limits = USUAL) -> LazyIndex:
    """Build the index of a layer from its table."""
    place = placed(layer, limits)
    return made(directory, layer, WholeToc(place, packed_of(layer, place), limits), limits)


def packed_of(layer: Layer, place: TocLocation) -> bytes:
    """Return the compressed table of a layer."""
    return layer.blob[place.start : place.start + place.length]


def glanced(directory: Path, layer: Layer, *names: bytes, limits: Limits = USUAL) -> LazyIndex:
    """Build the index of a layer from a search in its table for these names."""
    place = placed(layer, limits)
    return made(directory, layer, TocSearch(place, packed_of(layer, place), names, limits), limits)


def made(directory: Path, layer: Layer, source: EntrySource, limits: Limits = USUAL) -> LazyIndex:
    """Build the index of a layer from a source of entries."""
    granted = 0
    steps = build_index(directory, lambda: source, limits, lambda: granted)
    for lacking in steps:
        granted += lacking
    written = sum(path.stat().st_size for path in directory.iterdir())
    assert written <= granted, "no more is written than was granted"
    return LazyIndex.open(directory, layer.descriptor.digest, lambda: limits)


def chunks_of(filesystem: LazyIndex, entry: Entry) -> list[Chunk]:
    """Return all chunks of a file in order."""
    first = filesystem.chunk(entry, 0)
    return [filesystem.chunk(entry, number) for number in range(first.left + 1)]


def content_of(filesystem: LazyIndex, entry: Entry, layer: Layer) -> bytes:
    """Return the content of a file from its chunks."""
    if not entry.size:
        return b""
    chunks = chunks_of(filesystem, entry)
    return b"".join(extract(chunks, 0, layer.blob))


@pytest.mark.parametrize("name", NAMES)
def test_reference_writers(name: str, tmp_path: Path) -> None:
    """Every file of a layer is found in its table, with its bytes and its digest."""
    layer = LAYERS[name]
    filesystem = build(tmp_path, layer)
    assert len(layer.files) >= 12 - (name == "chunked.tar.zst")
    for path, content in layer.files.items():
        entry = filesystem.tree.lookup(path.encode())
        assert (entry.size, entry.sha256) == (len(content), sha256(content).digest())
        assert content_of(filesystem, entry, layer) == content
        for at in range(0, entry.size, 999):
            _, chunk = filesystem.chunk_at(entry, at)
            assert chunk.start <= at < chunk.start + chunk.size
    filesystem.close()


def rows(index: Path) -> list[tuple[object, ...]]:
    """Return all names of an index: directory, name, type, target of a link, and hash."""
    query = """
        SELECT directory, node.name, ifnull(type, X'35'),
            CASE WHEN type IN (X'31', X'32') THEN link END, sha256
        FROM node LEFT JOIN entry ON seq = entry ORDER BY directory, node.name
    """
    with closing(opened(index)) as database:
        return list(database.execute(query))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_tree(name: str, tmp_path: Path) -> None:
    """The table of a layer and the index of its tar stream have the same paths."""
    layer = LAYERS[name]
    for directory in ("published", "own"):
        (tmp_path / directory).mkdir()
    published = build(tmp_path / "published", layer)
    (tmp_path / "own" / "content").write_bytes(layer.tar)
    IndexWriter.rebuild(tmp_path / "own", USUAL)
    own = ImageFilesystem.open(tmp_path / "own", layer.descriptor.digest, lambda: USUAL)
    assert rows(tmp_path / "published/index") == rows(tmp_path / "own/index")
    for path in (b"", b"assets", b"static/app.js", b"latest.js", b"copy.js", b"docs/deep/er/"):
        one, other = published.tree.lookup(path), own.tree.lookup(path)
        assert (one.path, one.kind, one.size, one.sha256) == (
            other.path,
            other.kind,
            other.size,
            other.sha256,
        )
        assert one.mtime == other.mtime
        if one.kind is EntryKind.DIRECTORY:
            assert published.tree.names(one) == own.tree.names(other)
    with pytest.raises(PathNotFound):
        published.tree.lookup(b"fifo")
    published.close()
    own.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_glance(name: str, tmp_path: Path) -> None:
    """A search in a table finds the same entry as the whole table, and only that one."""
    layer = LAYERS[name]
    whole = build(_made(tmp_path / "whole"), layer)
    found = 0
    for number, path in enumerate(map(str.encode, layer.files)):
        one = glanced(_made(tmp_path / str(number)), layer, path)
        other = whole.tree.lookup(path)
        with suppress(PathNotFound):  # a hard link, without its target
            entry = one.tree.lookup(path)
            found += 1
            assert attrs.evolve(entry, offset=0) == attrs.evolve(other, offset=0)
            assert content_of(one, entry, layer) == layer.files[path.decode()]
            if entry.size:
                ends = zip(chunks_of(one, entry), chunks_of(whole, other), strict=True)
                assert all(0 <= mine.end - its.end < 4500 for mine, its in ends)
        with pytest.raises(PathNotFound):
            one.tree.lookup(b"last.txt" if path != b"last.txt" else b"index.html")
        one.close()
    assert found > 8
    whole.close()


def test_a_glance_at_several(tmp_path: Path) -> None:
    """A search finds each of several files with its precompressed siblings, and no others."""
    layer = LAYERS["chunked.tar.zst"]

    def change(entries: list[dict[str, Any]]) -> None:
        entries[1]["name"] = "index.html.br"

    told = retold(layer, change)
    one = glanced(tmp_path, told, b"index.html", b"last.txt", b"no/such")
    assert one.tree.lookup(b"index.html.br").size
    assert one.tree.lookup(b"last.txt").size
    for absent in (b"index.html", b"no/such", b"assets/exact.bin"):
        with pytest.raises(PathNotFound):
            one.tree.lookup(absent)
    one.close()


def test_a_glance_through_a_link(tmp_path: Path) -> None:
    """A search does not find a file in a directory that is a link."""
    layer = LAYERS["chunked.tar.zst"]

    def change(entries: list[dict[str, Any]]) -> None:
        at = entries.index(by_name(entries, "static"))
        assert entries[at]["type"] == "symlink"
        entries[1]["name"] = "static/index.html"

    told = retold(layer, change)
    whole = build(_made(tmp_path / "whole"), told)
    one = glanced(_made(tmp_path / "one"), told, b"static/index.html")
    for each in (whole, one):
        with pytest.raises(PathNotFound):
            each.tree.lookup(b"static/index.html")
        each.close()


def test_several_chunks(tmp_path: Path) -> None:
    """The test layers have files of many chunks, and members of many files."""
    current = build(_made(tmp_path / "a"), LAYERS["current.tar.gz"])
    assert len(chunks_of(current, current.tree.lookup(b"assets/large.txt"))) == 19
    inner = build(_made(tmp_path / "b"), LAYERS["inner.tar.gz"])
    assert chunks_of(inner, inner.tree.lookup(b"assets/exact.bin"))[0].skip > 0
    zeros = build(_made(tmp_path / "c"), LAYERS["chunked.tar.zst"])
    assert len(chunks_of(zeros, zeros.tree.lookup(b"assets/holes.bin"))) == 3
    assert LAYERS["legacy.tar.gz"].blob[-47:].startswith(b"\x1f\x8b")
    for each in (current, inner, zeros):
        each.close()


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_little_is_read_for_a_file(name: str, tmp_path: Path) -> None:
    """A chunk needs hardly more bytes of the layer than it has, however far the next one is."""
    layer = LAYERS[name]
    filesystem = build(tmp_path, layer)
    for path in layer.files:
        entry = filesystem.tree.lookup(path.encode())
        for chunk in chunks_of(filesystem, entry) if entry.size else []:
            assert chunk.length <= (chunk.skip + chunk.size) * 1.02 + 4096
            assert chunk.end <= len(layer.blob)
    filesystem.close()


def by_name(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the first entry of a name."""
    return next(each for each in entries if each["name"] == name)


def changing(entry: str, /, **changes: object) -> Callable[[list[dict[str, Any]]], None]:
    """Return a change of one entry."""
    return lambda entries: by_name(entries, entry).update(changes)


def _swapped(entries: list[dict[str, Any]]) -> None:
    one, other = by_name(entries, "index.html"), by_name(entries, "assets/app.js")
    one["offset"], other["offset"] = other["offset"], one["offset"]


def _chunks_swapped(entries: list[dict[str, Any]]) -> None:
    at = next(n for n, each in enumerate(entries) if each["type"] == "chunk")
    entries[at], entries[at + 1] = entries[at + 1], entries[at]


def _chunk_lost(entries: list[dict[str, Any]]) -> None:
    del entries[next(n for n, each in enumerate(entries) if each["type"] == "chunk")]


def _last_chunk_lost(entries: list[dict[str, Any]]) -> None:
    del entries[max(n for n, each in enumerate(entries) if each["type"] == "chunk")]


def _twice(entries: list[dict[str, Any]]) -> None:
    entries.append({"name": "./index.html", "type": "symlink", "linkName": "empty.txt"})


def _chunk_first(entries: list[dict[str, Any]]) -> None:
    entries.insert(0, {"name": "index.html", "type": "chunk", "offset": 1, "chunkSize": 5})


def _chunk_of_another(entries: list[dict[str, Any]]) -> None:
    next(each for each in entries if each["type"] == "chunk")["name"] = "index.html"


def _same_member(entries: list[dict[str, Any]]) -> None:
    by_name(entries, "assets/app.js")["offset"] = by_name(entries, "index.html")["offset"]


SOME = "sha256:" + "0" * 64


def _crumbs(entries: list[dict[str, Any]]) -> None:
    at = next(n for n, each in enumerate(entries) if each["name"] == "assets/exact.bin")
    entry = entries[at]
    entry.update(chunkSize=1, chunkDigest=SOME)
    crumb = {"type": "chunk", "offset": entry["offset"], "chunkSize": 1, "chunkDigest": SOME}
    crumbs = [{**crumb, "innerOffset": n, "chunkOffset": n} for n in range(1, 8192)]
    entries[at + 1 : at + 1] = crumbs


LIES: dict[str, Callable[[list[dict[str, Any]]], None]] = {
    "offset outside": changing("last.txt", offset=1 << 40),
    "offset in the index": changing("last.txt", offset=56_000, endOffset=0),
    "negative offset": changing("index.html", offset=-1),
    "no offset": changing("last.txt", offset=0),
    "overlapping": _same_member,
    "out of order": _swapped,
    "chunks out of order": _chunks_swapped,
    "a chunk is missing": _chunk_lost,
    "the last chunk is missing": _last_chunk_lost,
    "a chunk without a file": _chunk_first,
    "a chunk of another file": _chunk_of_another,
    "the first chunk is not the beginning": changing("assets/app.js", chunkOffset=5),
    "a name twice": _twice,
    "a name that climbs": changing("last.txt", name="docs/../../last.txt"),
    "no name": changing("last.txt", name=""),
    "a name that is not a text": changing("last.txt", name=7),
    "a name that is no UTF-8": changing("last.txt", name="\ud800"),
    "NUL in a name": changing("last.txt", name="a\0b"),
    "NUL in a link": changing("latest.js", linkName="a\0b"),
    "a long name": changing("last.txt", name="a" * 5000),
    "a file named like a directory": changing("last.txt", name="last/"),
    "no such type": changing("last.txt", type="door"),
    "a type that is not a text": changing("last.txt", type=["reg"]),
    "a size that is no number": changing("last.txt", size="9"),
    "a size that is a truth": changing("last.txt", size=True),
    "a size that is a fraction": changing("last.txt", size=9.0),
    "a negative size": changing("last.txt", size=-9),
    "an enormous size": changing("last.txt", size=(1 << 63) - 1),
    "a chunk larger than its file": changing("last.txt", chunkSize=10),
    "a file larger than its chunk": changing("last.txt", chunkSize=5, chunkDigest=SOME),
    "no digest": changing("last.txt", digest="", chunkDigest=""),
    "a digest of another kind": changing("last.txt", digest="sha512:" + "0" * 128),
    "a digest that is none": changing("last.txt", digest="sha256:" + "x" * 64),
    "two digests": changing(
        "last.txt", digest=SOME, chunkDigest="sha256:" + "1" * 64
    ),
    "several chunks and no digest": changing("assets/holes.bin", digest=""),
    "a file in crumbs": _crumbs,
    "a far inner offset": changing("last.txt", innerOffset=LARGEST),
    "a time that is not a text": changing("last.txt", modtime=5),
}  # fmt: skip


@pytest.mark.parametrize("name", ["current.tar.gz", "chunked.tar.zst"])
@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str, name: str, tmp_path: Path) -> None:
    """A table with an impossible statement is refused as a whole."""
    layer = retold(LAYERS[name], LIES[lie])
    with pytest.raises(BadToc):
        build(tmp_path, layer)


@pytest.mark.parametrize("name", ["current.tar.gz", "chunked.tar.zst"])
def test_retelling_alone_is_no_lie(name: str, tmp_path: Path) -> None:
    """A rewritten table without a change is accepted, so that the other tests show the change."""
    build(tmp_path, retold(LAYERS[name], lambda entries: None)).close()


@pytest.mark.parametrize(
    ("end_offset", "offset"), [(1, None), (60_000, None), (44_734, 44_720), (44_700, None)]
)
def test_where_a_file_ends(end_offset: int, offset: int | None, tmp_path: Path) -> None:
    """A file of a zstd:chunked layer ends after its start, before the next one, in the layer."""
    layer = LAYERS["chunked.tar.zst"]

    def change(entries: list[dict[str, Any]]) -> None:
        last = by_name(entries, "last.txt")
        last["endOffset"] = end_offset
        if offset is not None:
            before = by_name(entries, "docs/größe.txt")
            before["endOffset"] = offset

    with pytest.raises(BadToc):
        build(tmp_path, retold(layer, change))


@pytest.mark.parametrize("changes", [{"entries": 16}, {"names_size": 100}, {"unpacked_size": 1000}])
def test_limits(changes: dict[str, Any], tmp_path: Path) -> None:
    """The limits of layers apply to their tables of contents."""
    with pytest.raises(BadToc):
        build(tmp_path, LAYERS["chunked.tar.zst"], attrs.evolve(USUAL, **changes))


def test_deep_directories(tmp_path: Path) -> None:
    """A table may nest directories as deep as a layer, and no deeper."""
    deep = [{"name": "a/" * 1100, "type": "dir"}]
    table = json.dumps({"version": 1, "entries": deep}).encode()
    with pytest.raises(BadToc, match="deep"):
        build(tmp_path, chunked(b"\0" * 9, table))


@pytest.mark.parametrize("make", [chunked, estargz])
def test_size(make: Callable[[bytes, bytes], Layer], tmp_path: Path) -> None:
    """A table larger than the limit is refused, even if it claims a smaller size."""
    table = json.dumps({"version": 1, "entries": [], "padding": "x" * 9000}).encode()
    layer = make(b"\0" * 9, table)
    with pytest.raises(BadToc, match="larger"):
        build(tmp_path, layer, attrs.evolve(USUAL, published_index_size=8000))
    lying = {
        name: text.replace(f":{len(table)}:", ":10:") for name, text in layer.annotations.items()
    }
    with pytest.raises(BadToc, match="larger"):
        build(
            _made(tmp_path / "again"),
            attrs.evolve(layer, annotations=lying),
            attrs.evolve(USUAL, published_index_size=8000),
        )


@pytest.mark.parametrize("make", [chunked, estargz])
@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"version":1}',
        b'{"version":1,"entries":null}',
        b'{"version":1,"entries":{}}',
        b'{"version":2,"entries":[]}',
        b'{"entries":[]}',
        b'{"version":1,"version":1,"entries":[]}',
        b'{"version":1,"entries":[],"entries":[]}',
        b'{"version":1,"entries":[]',
        b'{"version":1,"entries":[]}x',
        b'{"version":1,"entries":[1]}',
        b'{"version":1,"entries":[[]]}',
        b'{"version":1,"entries":[{}{}]}',
        b'{"version":1,"entries":[{},]}',
        b'{"version":1,"entries":[,{}]}',
        b'{"version":1,"entries":[{"name":"a","name":"b","type":"dir"}]}',
        b'{"version":1,"entries":[{"name":"a","type":"dir","size":NaN}]}',
        b'{"version":1,"entries":[{"name":"a","type":"dir","size":99999999999999999999}]}',
        b'{"version":1,"entries":[{"name":"\xff","type":"dir"}]}',
        b'{"version":1,"entries":[' + b"[" * 5000 + b"]" * 5000 + b"]}",
        b'{"version":1,"entries":[{"a":' + b"[" * 5000,
        b" " * 3_000_000,
    ],
    ids=lambda table: repr(table[:60]),
)  # fmt: skip
def test_no_table(table: bytes, make: Callable[[bytes, bytes], Layer], tmp_path: Path) -> None:
    """A document that is not exactly a table of contents of version 1 is refused."""
    with pytest.raises(BadToc):
        build(tmp_path, make(b"\0" * 9, table))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_digest(name: str, tmp_path: Path) -> None:
    """A table that does not match the digest in the manifest is refused."""
    layer = LAYERS[name]
    wrong = {each: "sha256:" + "0" * 64 for each in layer.annotations if "osition" not in each}
    annotations = {**layer.annotations, **wrong}
    with pytest.raises(BadToc, match="digest"):
        build(tmp_path, attrs.evolve(layer, annotations=annotations))


@pytest.mark.parametrize("name", NAMES)
def test_damaged(name: str, tmp_path: Path) -> None:
    """A table with a damaged byte is refused, at any offset."""
    layer = LAYERS[name]
    start, length = position(layer)
    for number, at in enumerate(range(start + 10, start + length, length // 20)):
        blob = bytearray(layer.blob)
        blob[at] ^= 0x55
        with pytest.raises(BadToc):
            build(_made(tmp_path / str(number)), attrs.evolve(layer, blob=bytes(blob)))


@pytest.mark.parametrize("name", NAMES)
def test_no_digest_no_index(name: str) -> None:
    """The table of a layer without a digest in the manifest is not used."""
    layer = LAYERS[name]
    for said in ({}, {each: text for each, text in layer.annotations.items() if "osition" in each}):
        bare = attrs.evolve(layer, annotations=said)
        assert TocDescriptor.of(bare.descriptor, USUAL) is None


def test_annotations_of_older_tools() -> None:
    """The annotations of Debian 12's podman and skopeo name no table: the layer is pulled whole."""
    old = {
        "io.containers.zstd-chunked.manifest-checksum": "sha256:" + "a" * 64,
        "io.containers.zstd-chunked.manifest-position": "100:50:200:1",
    }
    layer = attrs.evolve(LAYERS[NAMES[0]], annotations=old)
    assert TocDescriptor.of(layer.descriptor, USUAL) is None


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "0" * 63, "md5:" + "0" * 32, "0" * 64])
@pytest.mark.parametrize("name", NAMES)
def test_no_digest(name: str, text: str) -> None:
    """A table with an invalid digest annotation is not used."""
    layer = LAYERS[name]
    wrong = {each: text for each in layer.annotations if "osition" not in each}
    with pytest.raises(BadToc):
        placed(attrs.evolve(layer, annotations={**layer.annotations, **wrong}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1:2:3",
        "1:2:3:2",
        "1:2:3:1:4",
        "-1:2:3:1",
        "0:20:3:1",
        "9:0:3:1",
        "44759:1:3:1x",
        "44759:99999:3267:1",
        "99999:10:3267:1",
        "9:18446744073709551615:3267:1",
        f"9:10:{65 << 20}:1",
    ],
)
def test_positions(text: str) -> None:
    """A table at an invalid position, or outside the layer, is not used."""
    layer = LAYERS["chunked.tar.zst"]
    name = "io.github.containers.zstd-chunked.manifest-position"
    with pytest.raises(BadToc):
        placed(attrs.evolve(layer, annotations={**layer.annotations, name: text}))


@pytest.mark.parametrize("offset", [0, 56_002, 1 << 40, (1 << 64) - 1])
def test_footers(offset: int) -> None:
    """A table with a footer that points outside the layer is not used."""
    layer = LAYERS["current.tar.gz"]
    start = position(layer)[0]
    blob = layer.blob.replace(b"%016xSTARGZ" % start, b"%016xSTARGZ" % offset)
    with pytest.raises(BadToc, match="outside"):
        placed(attrs.evolve(layer, blob=blob))


@pytest.mark.parametrize("at", [1, 2, 3, 11, 12, 14, 16, 18, 32, 40, 43, 50])
def test_no_footer(at: int) -> None:
    """A layer without either footer has no table."""
    layer = LAYERS["current.tar.gz"]
    blob = bytearray(layer.blob)
    blob[len(blob) - 51 + at] ^= 0x80
    with pytest.raises(BadToc):
        placed(attrs.evolve(layer, blob=bytes(blob)))


def test_another_file_than_the_index(tmp_path: Path) -> None:
    """An eStargz footer must point to a table with the right name."""
    table = b'{"version":1,"entries":[]}'
    build(_made(tmp_path / "right"), estargz(b"\0", table)).close()
    with pytest.raises(BadToc):
        build(_made(tmp_path / "wrong"), estargz(b"\0", table, "stargz.index.jso"))


def test_the_index_may_not_list_itself(tmp_path: Path) -> None:
    """A table that lists its own name is refused."""
    own = {"name": "stargz.index.json", "type": "dir"}
    with pytest.raises(BadToc, match="twice"):
        build(tmp_path, retold(LAYERS["current.tar.gz"], lambda entries: entries.append(own)))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_chunks(name: str, tmp_path: Path) -> None:
    """No byte of a chunk is returned that does not match its digest."""
    layer = LAYERS[name]
    filesystem = build(tmp_path, layer)
    entry = filesystem.tree.lookup(b"assets/app.js")
    [chunk, *_] = chunks_of(filesystem, entry)
    source = layer.blob[chunk.at : chunk.end]
    assert extract([chunk], chunk.at, source)[0] == layer.files["assets/app.js"][: chunk.size]
    for wrong in (
        chunk._replace(sha256=bytes(32)),
        chunk._replace(size=chunk.size - 1),
        chunk._replace(size=chunk.size + 100_000),
        chunk._replace(skip=chunk.skip + 1),
    ):
        with pytest.raises(BadToc):
            extract([wrong], chunk.at, source)
    for damaged in (
        b"",
        source[:3],
        source[: len(source) // 3],
        b"\0" * len(source),
        b"x" + source,
    ):
        with pytest.raises(BadToc):
            extract([chunk], chunk.at, damaged)
    filesystem.close()


def test_bombs() -> None:
    """A chunk is decompressed to its size and not beyond."""
    bomb = gzip.compress(bytes(64 << 20), 9)
    honest = Chunk(0, 5, 0, len(bomb), 0, 0, sha256(bytes(5)).digest())
    assert extract([honest], 0, bomb) == [bytes(5)]


@settings(max_examples=more(40))
@given(
    st.lists(st.integers(1, 400), min_size=1),
    st.sampled_from(["current.tar.gz", "chunked.tar.zst"]),
)
def test_pieces(sizes: list[int], name: str) -> None:
    """A table is read the same in pieces of any size."""
    table = _table(name)
    whole, parted = TocParser(), TocParser()
    entries = whole.feed(table)
    whole.finish()
    found, at = [], 0
    while at < len(table):
        for size in sizes:
            found += parted.feed(table[at : at + size])
            at += size
    parted.finish()
    assert found == entries == json.loads(table)["entries"]


def _table(name: str) -> bytes:
    changed = retold(LAYERS[name], lambda entries: None)
    start, length = position(changed)
    packed = changed.blob[start : start + length]
    if name.endswith("zst"):
        from tests.support.layers import zstd

        return zstd.decompress(packed)
    return changed.files["stargz.index.json"]


_VALUES = st.one_of(
    st.integers(-1, 70_000),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.sampled_from(
        ["", "reg", "dir", "chunk", "hardlink", "symlink", "index.html", "assets", "."]
    ),
    st.text(max_size=5),
    st.none(),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
)
_NUMBERS = ["size", "offset", "endOffset", "innerOffset", "chunkOffset", "chunkSize"]
_TEXTS = ["name", "type", "linkName", "digest", "chunkDigest", "chunkType", "modtime"]
_KEYS = st.sampled_from([*_NUMBERS, *_TEXTS])
_CHANGES = st.lists(st.tuples(st.integers(0, 60), _KEYS, _VALUES), max_size=4)
_ORDERS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=2)


@settings(max_examples=more(150))
@given(st.sampled_from(NAMES), _CHANGES, _ORDERS)
def test_mutations(
    name: str, changes: list[tuple[int, str, object]], orders: list[tuple[int, int]]
) -> None:
    """A mutated table is refused, or each of its files has its bytes or is refused."""

    def change(entries: list[dict[str, Any]]) -> None:
        for at, key, value in changes:
            entries[at % len(entries)][key] = value
        for one, other in orders:
            one, other = one % len(entries), other % len(entries)
            entries[one], entries[other] = entries[other], entries[one]

    layer = retold(LAYERS[name], change)
    with tempfile.TemporaryDirectory() as directory:
        try:
            filesystem = build(Path(directory), layer)
        except BadToc:
            return
        _walk(filesystem, filesystem.tree.lookup(b""), layer)
        filesystem.close()


def _walk(filesystem: LazyIndex, directory: Entry, layer: Layer) -> None:
    for name in filesystem.tree.names(directory):
        path = b"/".join(filter(None, [directory.path, name]))
        try:
            entry = filesystem.tree.lookup(path)
        except PathNotFound:
            continue
        if entry.kind is EntryKind.DIRECTORY:
            if entry.path == path:
                _walk(filesystem, entry, layer)
            continue
        chunks = chunks_of(filesystem, entry) if entry.size else []
        assert sum(chunk.size for chunk in chunks) == entry.size
        assert all(0 <= each.at < each.end <= len(layer.blob) for each in chunks)
        for chunk in chunks:
            try:
                [content] = extract([chunk], chunk.at, layer.blob[chunk.at : chunk.end])
            except BadToc:
                continue
            assert sha256(content).digest() == chunk.sha256


@settings(max_examples=more(100))
@given(st.binary(max_size=300).filter(lambda junk: b"]" not in junk), st.booleans())
def test_junk(junk: bytes, is_wrapped: bool) -> None:
    """Bytes that are not a table are refused at once."""
    make = estargz if is_wrapped else chunked
    with tempfile.TemporaryDirectory() as directory, pytest.raises(BadToc):
        build(Path(directory), make(b"\0" * 9, b'{"version":1,"entries":[' + junk))
