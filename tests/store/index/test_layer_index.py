"""The index: the format on disk, and how it is rebuilt from the content."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.config import Limits
from blobserve.errors import BadImage
from blobserve.store.index.layer_index import APPLICATION_ID, VERSION, IndexWriter
from blobserve.tar.reader import Member
from tests.support.examples import more
from tests.support.extraction import LIMITS, extract
from tests.support.layers import Directory, Entry, File, Link, Symlink, descriptor, layer

ENTRIES = [
    File(b"./a//b", b"hello", mode=0o4755, mtime=5),
    Symlink(b"\xff\xfe", b"\x80"),
    Link(b"l", b"later"),
    File(b".wh.gone"),
    Entry(b"odd", b"Z", b"body"),
    File(b"later", b"x"),
    File(b"later", b"xx"),
]


def rows(directory: Path, query: str) -> list[tuple[object, ...]]:
    """Return the rows of a query on the index in `directory`."""
    database = sqlite3.connect(f"file:{directory / 'index'}?mode=ro&immutable=1", uri=True)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def test_the_format(tmp_path: Path) -> None:
    """Version 2: every entry in stream order with its fields, and the tree of them."""
    blob = layer(ENTRIES)
    extract(tmp_path, blob)
    assert rows(tmp_path, "PRAGMA user_version") == [(VERSION,)] == [(2,)]
    assert rows(tmp_path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert rows(tmp_path, "SELECT * FROM content") == [((tmp_path / "content").stat().st_size,)]
    entries = rows(tmp_path, "SELECT seq, name, type, mode, mtime, link, size FROM entry")
    assert entries == [
        (seq, e.name, e.type, e.mode, e.mtime, e.link, len(e.body)) for seq, e in enumerate(ENTRIES)
    ]
    assert rows(tmp_path, "SELECT * FROM node ORDER BY directory, name") == [
        (b"", b"a", None),
        (b"", b"l", 6),
        (b"", b"later", 6),
        (b"", b"\xff\xfe", 1),
        (b"a", b"b", 0),
    ]
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


def test_rebuilding(tmp_path: Path) -> None:
    """An index that is lost or damaged is rebuilt from the content, equal to the first."""
    blob = layer([*ENTRIES, *(File(b"d%d/f%d" % (n % 7, n)) for n in range(5000))])
    extracted = extract(tmp_path, blob)
    before = rows(tmp_path, "SELECT * FROM entry"), rows(tmp_path, "SELECT * FROM node")
    (tmp_path / "index").write_bytes(b"damaged")
    (tmp_path / "index.new").write_bytes(b"left by a crash")
    built = IndexWriter.rebuild(tmp_path, LIMITS)
    assert built.entries == extracted.entries
    assert built.size == (tmp_path / "index").stat().st_size
    assert before == (rows(tmp_path, "SELECT * FROM entry"), rows(tmp_path, "SELECT * FROM node"))
    assert sorted(os.listdir(tmp_path)) == ["content", "index"]


@pytest.mark.parametrize("damage", [b"?" * 600, b"\0" * 600])
def test_content_that_is_damaged_makes_no_index(tmp_path: Path, damage: bytes) -> None:
    """An index is not rebuilt from damaged content, and the existing one stays."""
    extract(tmp_path, layer([File(b"a"), File(b"b", b"x" * 9999)]))
    before = (tmp_path / "index").read_bytes()
    with (tmp_path / "content").open("r+b") as content:
        content.write(damage)
    with pytest.raises(BadImage):
        IndexWriter.rebuild(tmp_path, LIMITS)
    assert (tmp_path / "index").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["content", "index"]


names = st.sampled_from([b"a", b"b", b"a/a", b"a/b", b"b/a/a", b"../b", b"."])
streams = st.lists(
    st.one_of(
        st.builds(File, names, st.binary(max_size=1500)),
        st.builds(Directory, names),
        st.builds(Symlink, names, names),
        st.builds(Link, names, names),
    ),
    max_size=15,
)


@settings(max_examples=more(60))
@given(streams, st.integers(1, 2000))
def test_the_same_index_however_the_bytes_came(entries: list[Entry], step: int) -> None:
    """The same blob in any chunks gives the same entries and the same tree."""
    blob = layer(entries)
    results = []
    for size in (step, len(blob)):
        with TemporaryDirectory() as name:
            extract(Path(name), blob, step=size)
            results.append(
                (rows(Path(name), "SELECT * FROM entry"), rows(Path(name), "SELECT * FROM node"))
            )
    assert results[0] == results[1]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[IndexWriter]:
    """An index that is being written."""
    made = IndexWriter(tmp_path / "index", Limits())
    yield made
    made.close()


def test_nothing_is_written_before_it_is_flushed(tmp_path: Path, index: IndexWriter) -> None:
    """Added entries stay in memory, and are counted, until the owner grants space."""
    start = index.bound
    seq = 0
    while not index.full:
        index.add(Member(seq, b"directory/name%d" % seq, b"0", 0, 0, b"", 0, 0, b"h" * 32))
        seq += 1
        assert (tmp_path / "index").stat().st_size == 0
    assert index.bound > start + seq * 60
    index.flush()
    assert not index.full
    assert index.finish(0).size <= index.bound


def test_many_links_to_names_that_come_later(tmp_path: Path) -> None:
    """L20: in a chain of links those near the end resolve, and the work is bounded."""
    links = [Link(b"%05d" % n, b"%05d" % (n + 1)) for n in range(3000)]
    blob = layer([*links, File(b"03000", b"x")])
    extract(tmp_path, blob, descriptor(blob))
    resolved = rows(tmp_path, "SELECT name FROM node WHERE entry = 3000 AND name >= X'3032393830'")
    assert len(resolved) == 21
