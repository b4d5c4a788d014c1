"""Tar streams: the framing of entries, and the streams that are refused. Rows L25, L40 to L57."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.faults.hostile.case import Case
from tests.support.layers import (
    BLOCK,
    END,
    GNU,
    USTAR,
    V7,
    Directory,
    Entry,
    File,
    Link,
    compress,
    gnu_long,
    header,
    padded,
    pax,
    tar,
)

FILE = File(b"x", b"y" * 600).packed()
MARKER = b"this is the body of a file\n" * 30
"""Text in the place of bytes that must not be read as a header."""
AFTER = File(b"after", b"that").packed() + END

FRAMED: Mapping[str, tuple[bytes, list[bytes]]] = {
    "L48 v7": (header(b"v7", magic=V7), [b"v7"]),
    "L48 ustar prefix": (header(b"u", magic=USTAR, prefix=b"p"), [b"p/u"]),
    "L48 gnu has times there": (header(b"g", magic=GNU, prefix=b"14000000000"), [b"g"]),
    "L56 NUL is regular": (header(b"old", type=b"\0"), [b"old"]),
    "L26 unknown with body": (Entry(b"z", b"Z", b"body").packed(), [b"z"]),
    "L57 dumpdir with body": (Entry(b"d", b"D", b"dump").packed(), [b"d"]),
    "no padding at all": (b"", []),
}
"""Streams with the names of their entries; more entries may follow each."""

REFUSED: Mapping[str, tuple[bytes, str]] = {
    "L43 extension, end": (pax({b"a": b"b"}) + END, "no entry after it"),
    "L43 extension, nothing": (pax({b"a": b"b"}), "cut short"),
    "L44 claimed": (header(type=b"x", size=2**20 + 1), "too large"),
    "L44 2 GiB claimed": (header(type=b"L", size=2**31), "too large"),
    "L45": (gnu_long(b"x") * 17 + FILE, "too many extension"),
    "L47 negative base-256": (FILE + header(size=b"\xff" * 12), "negative"),
    "L47 negative octal": (FILE + header(size=b"-0000000001\0"), "not octal"),
    "L47 2^63": (FILE + header(size=2**63), "too large"),
    "L47 2^70": (FILE + header(size=2**70), "too large"),
    "L47 underscore": (FILE + header(size=b"1_000\0"), "not octal"),
    "L47 non-octal": (FILE + header(size=b"9999\0"), "not octal"),
    "L47 PAX -1": (pax({b"size": b"-1"}) + FILE, "not a number of bytes"),
    "L47 PAX 2^63": (pax({b"size": b"9" * 19}) + FILE, "not a number of bytes"),
    "L48 second header": (FILE + header(checksum=b"0000001\0"), "checksum"),
    "L48 all 0xff": (FILE + b"\xff" * BLOCK, "negative|octal|checksum"),
    "L48 first header": (header(checksum=b"0000001\0"), "not a tar archive"),
    "L49 one zero block": (FILE + bytes(BLOCK) + padded(MARKER), "followed by more data"),
    "L49 part of a block": (FILE + bytes(100), "cut short"),
    "L50 in the body": (FILE[:700], "cut short"),
    "L50 at the end of a block": (FILE[:1024], "cut short"),
    "L50 in an extension's padding": (pax({b"a": b"b"})[:600], "cut short"),
    "L51 star": (header(b"x", type=b"S"), "sparse"),
    "L51 PAX": (pax({b"GNU.sparse.major": b"1"}) + FILE, "sparse"),
    "L53": (FILE + header(b"x", size=2**40), "cut short"),
    "L03 body": (header(b"d/", size=512) + MARKER[:512], "directory has a body"),
    "L31": (pax({b"path": b"a\0b"}) + FILE, "NUL in a name"),
    "L30 name": (pax({b"path": b"n" * 4097}) + FILE, "longer than 4096"),
    "L30 link": (Link(b"l", b"n" * 4097).packed(), "longer than 4096"),
    "Z14 HTML": (b"<!DOCTYPE html>" * 99, "HTML"),
    "Z14 a little HTML": (b"<html>", "HTML"),
    "Z14 xz": (b"\xfd7zXZ\0" + bytes(600), "xz"),
    "Z14 bzip2": (b"BZh9" + bytes(600), "bzip2"),
    "Z13 gzip in gzip": (b"\x1f\x8b" + bytes(600), "gzip"),
    "L25 link with body": (
        header(b"l", type=b"1", size=512, link=b"x") + MARKER[:512],
        "checksum|octal",
    ),
    "L44 real": (pax({b"a": b"v" * 2**20}) + FILE, "too large"),
    "L44 long name": (gnu_long(b"n" * 2**20) + FILE, "too large"),
    "L45 of every kind": (
        (pax({b"a": b"b"}) + gnu_long(b"n") + gnu_long(b"l", b"K")) * 6 + FILE,
        "too many",
    ),
    "L47 PAX 2^64": (pax({b"size": b"%d" % 2**64}) + FILE, "not a number of bytes"),
    "L47 PAX plus": (pax({b"size": b"+1"}) + FILE, "not a number of bytes"),
    "L47 PAX digits": (pax({b"size": b"1" * 20}) + FILE, "not a number of bytes"),
    "L47 a space inside": (FILE + header(size=b"1 2\0"), "not octal"),
    "L48 third header": (FILE * 2 + header(checksum=b"0000001\0"), "checksum"),
    "L48 checksum no number": (FILE + header(checksum=b"\xff" * 8), "checksum"),
    "L51 GNU with extended maps": (
        header(b"x", type=b"S", size=512) + bytes(BLOCK * 3),
        "sparse",
    ),
    "L51 PAX 0.0": (
        pax({b"GNU.sparse.size": b"64424509440", b"GNU.sparse.numblocks": b"1"}) + FILE,
        "sparse",
    ),
    "L51 PAX 0.1": (pax({b"GNU.sparse.map": b"9,9,0,9"}) + FILE, "sparse"),
    "L51 PAX 1.0": (
        pax({b"GNU.sparse.major": b"1", b"GNU.sparse.realsize": b"64424509440"})
        + header(b"x", size=512)
        + padded(b"1\n99999999999\n512\n"),
        "sparse",
    ),
    "L53 base-256": (FILE + header(b"x", size=2**62), "cut short"),
    "L53 PAX": (pax({b"size": b"%d" % 2**62}) + FILE, "cut short"),
    "L33 2,049 components": (File(b"d/" * 2049).packed(), "longer than 4096"),
}
"""Streams with their error messages."""

BAD_RECORDS = (
    b"1 a=b\n",
    b"3 a=b\n",
    b"6 a=b",
    b"6 a=bX",
    b"6 a-b\n",
    b"5 =b\n",
    b" a=b\n",
    b"x a=b\n",
    b"-6 a=b\n",
    b"99 a=b\n",
    b"6 a=b\n6 a=",
    b"6 a=b\n\0",
    b"9" * 12 + b" a=b\n",
    b"9" * 12,
)
"""Bodies of PAX headers with malformed records."""


def _served() -> Iterator[Case]:
    """Return streams that are served, each followed by a file that shows that reading went on."""
    for name, (stream, _) in FRAMED.items():
        yield Case(name, stream + AFTER, {b"after": b"that"})
    size = pax({b"size": b"%d" % len(MARKER)})
    marked = {b"text": MARKER, b"after": b"that"}
    yield Case("L40", size + header(b"text") + padded(MARKER) + AFTER, marked)
    yield Case("L41", size + gnu_long(b"text") + header(b"?") + padded(MARKER) + AFTER, marked)
    for name, extensions in {
        "x, x": pax({b"path": b"no"}) + pax({b"path": b"yes"}),
        "L, L": gnu_long(b"no") + gnu_long(b"yes"),
        "K, L": gnu_long(b"no", b"K") + gnu_long(b"yes"),
        "g": pax({b"comment": b"a commit"}, b"g") + gnu_long(b"yes"),
    }.items():
        stream = extensions + header(b"name", size=1) + padded(b"1") + AFTER
        yield Case(
            f"L42 {name}", stream, {b"yes": b"1", b"no": None, b"name": None, b"after": b"that"}
        )
    whole = {b"x": b"y" * 600}
    for name, stream in {
        "a gzip of nothing": compress(b"", "gzip"),
        "one block": bytes(BLOCK),
        "zeros": bytes(50 * BLOCK),
    }.items():
        yield Case(f"L49 {name}", stream, {b"x": None})
    for name, stream in {
        "no end": FILE,
        "one block of zeros": FILE + bytes(BLOCK),
        "more after the end": FILE + END + MARKER,
        "not filled up": FILE[: BLOCK + 600],
    }.items():
        yield Case(f"L49 L50 {name}", stream, whole)
    many = [File(b"d/%d" % n) for n in range(20_000)] + [
        Directory(b"e/%d" % n) for n in range(20_000)
    ]
    yield Case("L52", tar(many), {b"d/19999": b"", b"e/19999": None, b"d/20000": None})
    yield Case("L55", tar(File(b"%0900d" % n) for n in range(2000)), {b"%0900d" % 7: b""})


STREAMS: tuple[Case, ...] = (
    *_served(),
    *(Case(name, stream, {}, problem) for name, (stream, problem) in REFUSED.items()),
    *(
        Case(f"L46 {n}", pax(body) + FILE + END, {}, "PAX record")
        for n, body in enumerate(BAD_RECORDS)
    ),
)
