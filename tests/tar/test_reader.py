"""The tar reader: the streams that it reads or refuses. Rows are those of the cases."""

from __future__ import annotations

import io
import tarfile
import time
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.config import Limits
from blobserve.errors import BadLayer
from blobserve.tar.header import parse_pax
from blobserve.tar.reader import Member, TarReader
from tests.faults.hostile.streams import BAD_RECORDS, FILE, FRAMED, MARKER, REFUSED
from tests.support.layers import (
    BLOCK,
    END,
    Directory,
    Entry,
    File,
    Link,
    Symlink,
    gnu_long,
    header,
    padded,
    pax,
    record,
    tar,
)
from tests.support.slack import SLACK


def read(stream: bytes, limits: Limits = Limits(), step: int | None = None) -> list[Member]:  # noqa: B008
    reader = TarReader(limits)
    step = step or len(stream) or 1
    members = []
    for at in range(0, len(stream), step):
        members += reader.feed(stream[at : at + step])
    reader.finish()
    return members


def names(stream: bytes) -> list[bytes]:
    return [member.name for member in read(stream)]


def body(stream: bytes, member: Member) -> bytes:
    return stream[member.offset : member.offset + member.size]


ORDINARY = [
    Directory(b"a/", mtime=7),
    File(b"a/b", b"hello", mode=0o4755, mtime=1_600_000_000),
    Symlink(b"a/c", b"../x"),
    Link(b"a/d", b"a/b"),
    File(b"n" * 300, b"x" * 1000),
    Link(b"long", b"l" * 300),
    Entry(b"null", b"3"),
    File(b"empty"),
]


def test_members_as_written() -> None:
    """Entries come in order, with their fields, offset and hash."""
    stream = tar(ORDINARY)
    members = read(stream)
    assert [(m.seq, m.name, m.type, m.mode, m.mtime, m.link) for m in members] == [
        (seq, e.name, e.type, e.mode, e.mtime, e.link) for seq, e in enumerate(ORDINARY)
    ]
    for member, entry in zip(members, ORDINARY, strict=True):
        assert body(stream, member) == entry.body
        assert member.sha256 == (sha256(entry.body).digest() if entry.type == b"0" else None)


@given(st.integers(1, 3000))
def test_pieces_of_any_size(step: int) -> None:
    """The result does not depend on the size of the pieces."""
    stream = tar(ORDINARY)
    assert read(stream, step=step) == read(stream)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_another_writer(format_: int) -> None:
    """Archives of Python's tarfile are read in each of its formats."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=format_) as archive:
        for name in ("x", "d/" * 40 + "deep", "d/" * 60 + "deeper"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(name), 1_234_567_890
            archive.addfile(entry, io.BytesIO(name.encode()))
    members = read(written.getvalue())
    assert [m.name for m in members] == [b"x", b"d/" * 40 + b"deep", b"d/" * 60 + b"deeper"]
    assert {m.mtime for m in members} == {1_234_567_890}


@pytest.mark.parametrize(("stream", "expected"), FRAMED.values(), ids=FRAMED)
def test_framing(stream: bytes, expected: list[bytes]) -> None:
    """Entries of every format and type are read with the right length."""
    assert names(stream + File(b"after").packed() + END) == [*expected, b"after"]


def test_star_prefix() -> None:
    """L48: the prefix field of star ends before the times in the same field."""
    block = bytearray(header(b"s", prefix=b"p" * 131 + b"00000000000 00000000000 "))
    block[508:] = b"tar\0"
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    assert names(bytes(block) + END) == [b"p" * 131 + b"/s"]


def test_signed_checksum() -> None:
    """A checksum over signed bytes, as some old tars write it, is accepted."""
    block = header(b"\xe9t\xe9")
    plain = block[:148] + b" " * 8 + block[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in plain)
    assert names(header(b"\xe9t\xe9", checksum=b"%06o\0 " % signed) + END) == [b"\xe9t\xe9"]


@pytest.mark.parametrize(
    "extension", [header(b"text"), gnu_long(b"text") + header(b"?")], ids=["L40", "L41"]
)
def test_a_size_in_a_pax_header(extension: bytes) -> None:
    """L40, L41: a size in a PAX header is that of the file, also behind other headers."""
    stream = pax({b"size": b"%d" % len(MARKER)}) + extension + padded(MARKER) + END
    (member,) = read(stream)
    assert (member.name, body(stream, member)) == (b"text", MARKER)


@pytest.mark.parametrize(
    ("extensions", "name", "link"),
    [
        (pax({b"path": b"1"}) + pax({b"path": b"2"}), b"2", b""),
        (pax({b"path": b"1"}) + pax({b"mtime": b"2"}), b"name", b""),
        (gnu_long(b"1") + gnu_long(b"2"), b"2", b""),
        (gnu_long(b"k", b"K") + gnu_long(b"l"), b"l", b"k"),
        (pax({b"path": b"x"}) + gnu_long(b"l"), b"l", b""),
        (gnu_long(b"l") + pax({b"path": b"x"}), b"x", b""),
        (pax({b"path": b"g"}, b"g"), b"name", b""),
        (pax(record(b"path", b"1") + record(b"path", b"")), b"name", b""),
    ],
)
def test_of_several_extension_headers_the_last_counts(
    extensions: bytes, name: bytes, link: bytes
) -> None:
    """L42: the last of several equal headers counts, and global headers change nothing."""
    (member,) = read(extensions + header(b"name") + END)
    assert (member.name, member.link, member.size) == (name, link, 0)


@pytest.mark.parametrize(
    ("mtime", "records", "expected"),
    [
        (5, {}, 5),
        (-1, {}, None),
        (2**63, {}, None),
        (b"not a number", {}, None),
        (1, {b"mtime": b"1234.567890123"}, 1234),
        (1, {b"mtime": b"-5.5"}, None),
        (1, {b"mtime": b"soon"}, None),
        (1, {b"mtime": b"9" * 100}, None),
    ],
)
def test_times_that_make_no_sense_are_left_out(
    mtime: int | bytes, records: dict[bytes, bytes], expected: int | None
) -> None:
    """L28: a time that HTTP cannot express is dropped, and the layer is accepted."""
    (member,) = read(pax(records) + header(b"x", mtime=mtime) + END)
    assert member.mtime == expected


@pytest.mark.parametrize("end", [512 + 600, 1200, 1536])
def test_an_archive_without_its_end(end: int) -> None:
    """L50: the zeros after the last file may be missing, in part or whole."""
    (member,) = read(FILE[:end])
    assert member.size == 600


@pytest.mark.parametrize(("stream", "problem"), REFUSED.values(), ids=REFUSED)
def test_refused(stream: bytes, problem: str) -> None:
    """A stream that breaks a rule of the format, or a limit, is refused with the reason."""
    with pytest.raises(BadLayer, match=problem):
        read(stream)


@pytest.mark.parametrize("body", BAD_RECORDS)
def test_pax_records_that_do_not_fit(body: bytes) -> None:
    """L46: a PAX record must end at its length with a newline, and have a key."""
    with pytest.raises(BadLayer, match="PAX record"):
        parse_pax(body)


def test_pax_takes_linear_time() -> None:
    """L46: a megabyte of PAX records takes linear time."""
    records = record(b"k", b"v") * (2**20 // 6)
    before = time.process_time()
    parse_pax(records)
    assert time.process_time() - before < 5 * SLACK


@pytest.mark.parametrize("stream", [b"", bytes(BLOCK), END, bytes(50 * BLOCK)])
def test_empty_archives(stream: bytes) -> None:
    """L49: an empty stream, or one of zeros only, is an archive without entries."""
    assert read(stream) == []


@pytest.mark.parametrize("end", [b"", bytes(BLOCK), END, END + b"trailing" * 1000])
def test_ends(end: bytes) -> None:
    """L49: an archive ends with two blocks of zeros, one or none; the rest is ignored."""
    stream = FILE + end
    reader = TarReader(Limits())
    assert len(reader.feed(stream)) == 1
    reader.finish()
    assert reader.size == len(FILE) + min(len(end), len(END))


@pytest.mark.parametrize(
    ("limits", "entries", "problem"),
    [
        (Limits(entries=2), [File(b"a"), File(b"b"), File(b"c")], "more than 2 entries"),
        (Limits(names_size=5), [File(b"abc"), Link(b"d", b"abc")], "more than 5 bytes"),
        (Limits(unpacked_size=2000), [File(b"a", b"x" * 1500)], "more than 2000 bytes"),
        (Limits(unpacked_size=2**30), [header(b"a", size=2**40)], "more than 1073741824 bytes"),
    ],
)
def test_limits(limits: Limits, entries: list[Entry | bytes], problem: str) -> None:
    """L52 to L55: a layer beyond a limit is refused at the header that exceeds it."""
    with pytest.raises(BadLayer, match=problem):
        read(tar(entries), limits)


@given(st.binary(max_size=2000), st.integers(0, 5000), st.binary(min_size=1, max_size=20))
def test_arbitrary_streams(stream: bytes, at: int, patch: bytes) -> None:
    """Any stream is read or refused, and every body lies within it."""
    good = tar(ORDINARY)
    patched = good[:at] + patch + good[at + len(patch) :]
    for each in (stream, padded(stream), patched):
        try:
            members = read(each)
        except BadLayer:
            continue
        assert all(0 <= m.offset <= m.offset + m.size <= len(each) for m in members)
