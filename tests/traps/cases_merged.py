"""Rows W01 to W14, L15, L23 and L34: images of several layers, and their merged trees.

Each case has a name, the entries of every layer, the lowest first, and the bytes of the file at
each path; None where no file may be served.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from tests.support.layers import Directory, Entry, File, Link, Symlink

D = Directory
F = File
L = Link
S = Symlink
OPAQUE = b".wh..wh..opq"


@attrs.frozen
class Merged:
    """An image of several layers, and its expected tree."""

    name: str
    """The row in the list of cases, and the subject."""
    layers: tuple[tuple[Entry | bytes, ...], ...] = attrs.field(repr=False)
    answers: Mapping[bytes, bytes | None] = attrs.field(repr=False)


def merged(
    name: str, *layers: Iterable[Entry | bytes], answers: Mapping[bytes, bytes | None]
) -> Merged:
    """Return a case."""
    return Merged(name, tuple(map(tuple, layers)), answers)


def nothing(*paths: bytes) -> dict[bytes, bytes | None]:
    """Return answers that serve no file at these paths."""
    return dict.fromkeys(paths)


_LOWER = (F(b"d/a", b"a"), F(b"d/b/c", b"c"), F(b"d/b/e/f", b"f"), F(b"k", b"k"))

_OPAQUES = [
    merged(
        f"W03 {name}, the marker {place}",
        _LOWER,
        entries if place == "last" else reversed(entries),
        answers={b"k": b"k", **answers},
    )
    for name, entries, answers in [
        (
            "one level",
            [F(b"d/n", b"n"), F(b"d/" + OPAQUE)],
            {b"d/n": b"n", **nothing(b"d/a", b"d/b", b"d/b/c", b"d/b/e/f")},
        ),
        ("no upper", [F(b"d/" + OPAQUE)], nothing(b"d/a", b"d/b", b"d/b/e/f")),
        (
            "two levels",
            [F(b"d/b/n", b"n"), F(b"d/b/" + OPAQUE)],
            {b"d/a": b"a", b"d/b/n": b"n", **nothing(b"d/b/c", b"d/b/e/f")},
        ),
        (
            "multi-level",
            [F(b"d/b/n", b"n"), F(b"d/b/" + OPAQUE), F(b"d/" + OPAQUE)],
            {b"d/b/n": b"n", **nothing(b"d/a", b"d/b/c", b"d/b/e")},
        ),
        (
            "missing ancestor",
            [F(b"x/y/n", b"n"), F(b"x/y/" + OPAQUE)],
            {b"x/y/n": b"n", b"d/a": b"a"},
        ),
        (
            "with a whiteout",
            [F(b"d/b/e/.wh.f"), F(b"d/b/" + OPAQUE), F(b"d/b/n", b"n")],
            {b"d/a": b"a", b"d/b/n": b"n", **nothing(b"d/b/c", b"d/b/e", b"d/b/e/f")},
        ),
        (
            "with a directory's whiteout",
            [F(b"d/.wh.b"), F(b"d/" + OPAQUE), F(b"d/b/n", b"n")],
            {b"d/b/n": b"n", **nothing(b"d/a", b"d/b/c", b"d/b/e/f")},
        ),
        (
            "a name that is there again",
            [F(b"d/a", b"new"), F(b"d/b/c", b"new"), F(b"d/" + OPAQUE)],
            {b"d/a": b"new", b"d/b/c": b"new", **nothing(b"d/b/e/f")},
        ),
    ]
    for place in ("first", "last")
]

_TARGETS = (F(b"d/a", b"a"), F(b"d/e/c", b"c"), S(b"d/s", b"e/c"), S(b"l", b"d/e"), F(b"k", b"k"))

_HIDDEN_AFTERWARDS = [
    merged(f"L23 {name}", _TARGETS, entries, answers={b"k": b"k", **answers})
    for name, entries, answers in [
        (
            "hidden afterwards by its own layer",
            [L(b"h", b"k"), L(b"b", b"d/a"), F(b"d/.wh.a")],
            {b"b": b"a", b"h": b"k", b"d/a": None, b"d/e/c": b"c"},
        ),
        (
            "hidden afterwards, with its directory",
            [L(b"b", b"/d/e/c"), L(b"b2", b"./d/a"), F(b".wh.d"), F(b"d/n", b"n")],
            {b"b": b"c", b"b2": b"a", b"d/n": b"n", **nothing(b"d/a", b"d/e", b"d/e/c")},
        ),
        (
            "hidden afterwards by an opaque whiteout",
            [L(b"d/b", b"d/a"), L(b"b", b"d/e/c"), F(b"d/" + OPAQUE)],
            {b"d/b": b"a", b"b": b"c", **nothing(b"d/a", b"d/e", b"d/e/c")},
        ),
        (
            "hidden afterwards with all there was",
            [L(b"b", b"d/e/c"), F(b"k", b"k"), F(OPAQUE)],
            {b"b": b"c", **nothing(b"d", b"d/a", b"l")},
        ),
        (
            "hidden afterwards, a link to a link",
            [L(b"b", b"d/a"), L(b"b2", b"b"), F(b"d/.wh.a"), L(b"b3", b"b2")],
            {b"b": b"a", b"b2": b"a", b"b3": b"a", b"d/a": None},
        ),
        (
            "hidden afterwards, and there again",
            [L(b"b", b"d/a"), F(b"d/a", b"new"), L(b"b2", b"d/a"), F(b"d/.wh.a")],
            {b"b": b"a", b"b2": b"new", b"d/a": b"new"},
        ),
        (
            "hidden afterwards, then there again",
            [L(b"b", b"d/a"), F(b"d/.wh.a"), F(b"d/a", b"new"), L(b"b2", b"d/a")],
            {b"b": b"a", b"b2": b"new", b"d/a": b"new"},
        ),
        (
            "hidden afterwards, each by a whiteout of its own",
            [
                L(b"b", b"d/a"),
                F(b"d/.wh.a"),
                L(b"b2", b"d/e/c"),
                F(b"d/e/.wh.c"),
                L(b"b3", b"d/s"),
                F(b".wh.d"),
                L(b"b4", b"b3"),
            ],
            {b"b": b"a", b"b2": b"c", **nothing(b"b3", b"b4", b"d/a", b"d/e/c", b"d")},
        ),
        (
            "hidden afterwards, through a link that is too",
            [L(b"b", b"l/c"), F(b".wh.l"), F(b"d/.wh.e")],
            {b"b": b"c", **nothing(b"l", b"l/c", b"d/e", b"d/s")},
        ),
        (
            "hidden afterwards, through a link of its own layer",
            [S(b"way", b"d/e"), L(b"b", b"way/c"), F(b"d/e/.wh.c")],
            {b"b": b"c", **nothing(b"way/c", b"d/e/c")},
        ),
        (
            "hidden afterwards, a symbolic link",
            [L(b"d/b", b"d/s"), F(b"d/.wh.s")],
            {b"d/b": b"c", b"d/s": None, b"d/e/c": b"c"},
        ),
        (
            "hidden afterwards, in a directory that comes again",
            [D(b"d"), D(b"d/e"), L(b"d/e/b", b"d/e/c"), F(b"d/.wh.e"), F(b"d/" + OPAQUE)],
            {b"d/e/b": b"c", **nothing(b"d/a", b"d/e/c")},
        ),
        (
            "hidden afterwards, its own name hidden as well",
            [L(b"d/a", b"d/e/c"), F(b"d/.wh.a"), F(b"d/e/.wh.c")],
            {b"d/a": b"c", b"d/e/c": None},
        ),
        (
            "hidden before",
            [F(b"d/.wh.a"), L(b"b", b"d/a")],
            nothing(b"b", b"d/a"),
        ),
        (
            "hidden before, with its directory",
            [F(b".wh.d"), L(b"b", b"d/a"), L(b"b2", b"d/e/c")],
            nothing(b"b", b"b2", b"d/a"),
        ),
        (
            "hidden before, and once more",
            [F(b"d/" + OPAQUE), L(b"b", b"d/a"), F(b"d/.wh.a"), F(b".wh.d")],
            nothing(b"b", b"d", b"d/a"),
        ),
        (
            "hidden before, by a file in place of its directory",
            [F(b"d", b"file"), L(b"b", b"d/a"), L(b"b2", b"d/e/c"), F(b".wh.d")],
            {b"d": b"file", **nothing(b"b", b"b2")},
        ),
        (
            "hidden before, by a file in place of a directory further up",
            [L(b"h", b"k"), F(b"d/e", b"file"), L(b"b", b"d/e/c"), F(b".wh.d")],
            {b"h": b"k", b"d/e": b"file", b"b": None},
        ),
    ]
]

MERGED: tuple[Merged, ...] = (
    merged(
        "W01 a file, a tree, a link",
        [F(b"x", b"1"), F(b"t/a/b", b"2"), F(b"target", b"3"), S(b"link", b"target")],
        [F(b".wh.x"), F(b".wh.t"), F(b".wh.link")],
        answers={b"target": b"3", **nothing(b"x", b"t", b"t/a", b"t/a/b", b"link")},
    ),
    merged(
        "W01 what begins alike stays",
        [F(b"a/x", b"1"), F(b"a-b/x", b"2"), F(b"a0", b"3"), F(b"a.", b"4")],
        [F(b".wh.a")],
        answers={b"a/x": None, b"a-b/x": b"2", b"a0": b"3", b"a.": b"4"},
    ),
    *(
        merged(
            f"W02 the whiteout {place}",
            [F(b"x", b"old"), F(b"d/y", b"old"), F(b"d/z", b"old")],
            entries if place == "last" else reversed(entries),
            answers={b"x": b"new", b"d/y": b"new", b"d/z": None},
        )
        for place, entries in [
            ("first", [F(b"x", b"new"), F(b"d/y", b"new"), F(b".wh.d"), F(b".wh.x")]),
            ("last", [F(b"x", b"new"), F(b"d/y", b"new"), F(b".wh.d"), F(b".wh.x")]),
        ]
    ),
    *_OPAQUES,
    merged(
        "W04 where there is no directory",
        [F(b"file", b"1"), F(b"dir/x", b"2"), S(b"link", b"dir"), S(b"loop", b"loop")],
        [F(b"dne/" + OPAQUE), F(b"file/" + OPAQUE), F(b"loop/" + OPAQUE), S(b"dead", b"no")],
        [F(b"dead/" + OPAQUE), F(b"link/" + OPAQUE)],
        answers={b"file": b"1", **nothing(b"dne", b"dir/x", b"link/x", b"loop", b"dead", b"no")},
    ),
    merged(
        "W04 the root",
        [F(b"a", b"1"), F(b"d/x", b"2")],
        [F(b"n", b"3"), F(OPAQUE)],
        answers={b"n": b"3", **nothing(b"a", b"d", b"d/x")},
    ),
    merged(
        "W05",
        [F(b"a", b"1"), F(b"etc/x", b"2")],
        [
            *map(F, (b".wh.", b".wh..", b".wh...", b"etc/.wh.", b"etc/.wh..", b"etc/.wh...")),
            *map(F, (b".wh./", b".wh...//", b"/.wh..", b"./.wh.", b"etc/../.wh...")),
        ],
        answers={b"a": b"1", b"etc/x": b"2"},
    ),
    merged(
        "W06",
        [F(b"etc/whitedout", b"1"), F(b"etc/stays", b"2"), S(b"localetc", b"/etc")],
        [F(b"localetc/.wh.whitedout")],
        answers={b"etc/whitedout": None, b"localetc/stays": b"2", b"etc/stays": b"2"},
    ),
    merged(
        "W06 a link of the layer itself",
        [F(b"etc/x", b"1"), F(b"real/x", b"2"), S(b"l", b"etc")],
        [S(b"l", b"real"), F(b"l/.wh.x")],
        answers={b"etc/x": None, b"real/x": b"2", b"l/x": b"2"},
    ),
    merged(
        "W07",
        [F(b"etc/somefile", b"1")],
        [F(b".wh.etc/somefile", b"2"), F(b".wh.etc/.wh.somefile"), F(b".wh.etc/" + OPAQUE)],
        answers={b"etc/somefile": b"1", b".wh.etc/somefile": None, b".wh.etc": None},
    ),
    merged(
        "W08",
        [F(b"etc", b"1"), F(b"a/b", b"2"), S(b"dead", b"nowhere")],
        [F(b"dne/../.wh.etc"), F(b"dead/.wh.x"), F(b"../../a/.wh.b"), F(b"a/c", b"3")],
        answers={**nothing(b"etc", b"dead", b"nowhere", b"dne", b"a/b"), b"a/c": b"3"},
    ),
    merged(
        "W09",
        [F(b"aufs", b"1"), F(b"plnk", b"2"), F(b"orph", b"3")],
        [F(b".wh..wh.aufs"), F(b".wh..wh.plnk/1.2", b"x"), D(b".wh..wh.orph")],
        answers={b"aufs": b"1", b"plnk": b"2", b"orph": b"3", b".wh..wh.plnk/1.2": None},
    ),
    merged(
        "W10",
        [F(b"foo", b"1"), F(b"d/x", b"2")],
        [F(b".wh.foo", b"body"), F(b"d/" + OPAQUE, b"body"), D(b"d")],
        answers=nothing(b".wh.foo", b"foo", b"d/" + OPAQUE, b"d/x"),
    ),
    merged(
        "W11 hidden and there again",
        [F(b"x", b"1"), F(b"d/a", b"1"), F(b"d/b", b"1")],
        [F(b".wh.x"), F(b".wh.d")],
        [F(b"x", b"3"), F(b"d/a", b"3")],
        answers={b"x": b"3", b"d/a": b"3", b"d/b": None},
    ),
    merged(
        "W11 a child of a hidden parent",
        [F(b"d/a", b"1"), D(b"d/s"), F(b"d/s/b", b"1")],
        [F(b".wh.d"), D(b"d"), F(b"d/n", b"2")],
        [F(b"d/.wh.n"), F(b"d/s/c", b"3")],
        [F(b"d/s/.wh.c"), F(b"d/s/.wh.b"), F(b"d/a", b"4")],
        answers={b"d/a": b"4", **nothing(b"d/n", b"d/s/b", b"d/s/c")},
    ),
    merged(
        "W12",
        [F(n, b"1") for n in (b"body", b"link", b"hard", b"fifo", b"device", b"dir/x")],
        [
            Entry(b".wh.body", b"0", b"b" * 5000),
            S(b".wh.link", b"hard"),
            L(b".wh.hard", b"body"),
            Entry(b".wh.fifo", b"6"),
            Entry(b".wh.device", b"3"),
            D(b".wh.dir/"),
        ],
        answers=nothing(b"body", b"link", b"hard", b"fifo", b"device", b"dir", b"dir/x"),
    ),
    merged(
        "W13",
        [F(b".wh.x"), F(b"x", b"1"), F(b"d/y", b"2"), F(b"d/" + OPAQUE), F(OPAQUE)],
        [F(b"z", b"3")],
        answers={b"x": b"1", b"d/y": b"2", b"z": b"3"},
    ),
    merged(
        "W14 many",
        [F(b"d/%d/x" % n, b"1") for n in range(3000)] + [F(b"k", b"2")],
        [F(b"d/.wh.%d" % n) for n in range(3000)] + [F(b"d/7/y", b"3")],
        answers={b"k": b"2", b"d/7/y": b"3", **nothing(b"d/7/x", b"d/8")},
    ),
    merged(
        "W14 at every level",
        [F(b"o/" * 300 + b"x", b"1"), F(b"k", b"2")],
        [F(b"o/" * n + OPAQUE) for n in range(1, 300)] + [F(b"o/o/y", b"3")],
        answers={b"k": b"2", b"o/o/y": b"3", **nothing(b"o/o/o", b"o/" * 300 + b"x")},
    ),
    merged(
        "L15 a link over a directory",
        [F(b"d/x", b"1"), F(b"e/y", b"2"), F(b"r/d/x", b"3")],
        [S(b"d", b"e"), S(b"r/d", b"../e")],
        answers={b"d/y": b"2", b"r/d/y": b"2", **nothing(b"d/x", b"r/d/x")},
    ),
    merged(
        "L15 a directory over a link",
        [F(b"e/y", b"1"), S(b"d", b"e"), L(b"h", b"d")],
        [D(b"d"), F(b"d/x", b"2")],
        answers={b"d/x": b"2", b"e/y": b"1", b"h/y": b"1", **nothing(b"d/y", b"e/x")},
    ),
    merged(
        "L15 through a link",
        [F(b"e/y", b"1"), S(b"d", b"/e")],
        [F(b"d/x", b"2")],
        answers={b"d/x": b"2", b"e/x": b"2", b"e/y": b"1"},
    ),
    merged(
        "L15 a file over a directory, a directory over a file",
        [F(b"d/x", b"1"), F(b"f", b"2")],
        [F(b"d", b"3"), D(b"f"), F(b"f/y", b"4")],
        answers={b"d": b"3", b"f/y": b"4", **nothing(b"d/x", b"f")},
    ),
    merged(
        "L23 hidden",
        [F(b"target", b"1")],
        [L(b"h", b"target")],
        [F(b".wh.target")],
        answers={b"h": b"1", b"target": None},
    ),
    *_HIDDEN_AFTERWARDS,
    merged(
        "L23 replaced",
        [F(b"d/target", b"1")],
        [L(b"h", b"/d/target"), S(b"s", b"d/target")],
        [F(b"d/target", b"2"), L(b"h2", b"d/target"), L(b"h3", b"h")],
        answers={b"h": b"1", b"h2": b"2", b"h3": b"1", b"s": b"2", b"d/target": b"2"},
    ),
    merged(
        "L23 to what comes later, and to what never came",
        [L(b"dead", b"late"), F(b"a", b"1")],
        [L(b"h", b"late"), F(b"late", b"2")],
        answers={b"h": b"2", b"late": b"2", b"dead": None},
    ),
    merged(
        "L34",
        [D(b"real"), S(b"link", b"real")],
        [F(b"link/a/b", b"2"), F(b"new/c/d", b"3")],
        answers={b"real/a/b": b"2", b"link/a/b": b"2", b"new/c/d": b"3"},
    ),
    merged(
        "L34 below a file",
        [F(b"file", b"1")],
        [F(b"file/e", b"2")],
        answers={b"file": None, b"file/e": b"2"},
    ),
)
