"""Whiteouts in the first layer, which hide nothing and are not served. Rows W02 to W14.

`tests.traps.cases_merged` has the cases in which one layer hides an entry of another.
"""

from __future__ import annotations

from tests.faults.hostile.case import CANARY, Case, tree
from tests.support.layers import Directory, Entry, File, Link, Symlink

D = Directory
F = File
L = Link
S = Symlink

WHITEOUTS: tuple[Case, ...] = (
    tree(
        [F(b"x", b"1"), F(b".wh.x"), F(b"d/.wh.y"), F(b"d/y", b"2"), F(b"d/.wh..wh..opq")],
        {b"x": b"1", b"d/y": b"2", b".wh.x": None, b"d/.wh..wh..opq": None},
        name="W02 W03 W10 W13",
    ),
    tree(
        [
            F(b"etc/x", b"1"),
            F(b".wh."),
            F(b"etc/.wh."),
            F(b".wh.."),
            F(b"etc/.wh.."),
            F(b".wh..."),
        ],
        {b"etc/x": b"1", b".wh.": None, b"etc/.wh..": None},
        name="W05",
    ),
    tree(
        [F(b"etc/file", b"1"), F(b".wh.etc/file"), F(b"dne/../.wh.etc"), D(b".wh.etc")],
        {b"etc/file": b"1", b".wh.etc/file": None, b".wh.etc": None},
        name="W07 W08 W12",
    ),
    tree(
        [F(b".wh..wh.aufs"), F(b".wh..wh.plnk/1.2", b"x"), L(b"l", b".wh..wh.plnk/1.2")],
        {b".wh..wh.aufs": None, b".wh..wh.plnk/1.2": None, b"l": None},
        name="W09",
    ),
    tree(
        [
            S(b"target-link", b"target"),
            F(b"target", b"1"),
            F(b"tree/a/b", b"2"),
            F(b".wh.target-link"),
            F(b".wh.tree"),
            F(b"tree/.wh.a"),
        ],
        {b"target": b"1", b"target-link": b"1", b"tree/a/b": b"2"},
        name="W01 in the same layer",
    ),
    tree(
        [F(b".wh.x"), F(b"x", b"1"), F(b"d/.wh..wh..opq"), F(b"d/y", b"2"), F(b"d/e/z", b"3")],
        {b"x": b"1", b"d/y": b"2", b"d/e/z": b"3"},
        name="W02 W03 the whiteout first",
    ),
    tree(
        [
            F(b".wh..wh..opq"),
            F(b"dne/.wh..wh..opq"),
            F(b"file", b"1"),
            F(b"file/.wh..wh..opq"),
            S(b"link", b"dir"),
            F(b"dir/x", b"2"),
            F(b"link/.wh..wh..opq"),
            S(b"loop", b"loop"),
            F(b"loop/.wh..wh..opq"),
        ],
        {b"file": b"1", b"dir/x": b"2", b"link/x": b"2", b"dne": None, b"dne/.wh..wh..opq": None},
        name="W04",
    ),
    tree(
        [F(b"a", b"1"), F(b"d/b", b"2"), F(b"d/.wh..."), F(b"d/.wh.."), F(b"d/.wh."), F(b".wh./x")],
        {b"a": b"1", b"d/b": b"2", b".wh./x": None, b"d/.wh...": None},
        name="W05 below a directory",
    ),
    tree(
        [F(b"etc/whitedout", b"1"), S(b"localetc", b"/etc"), F(b"localetc/.wh.whitedout")],
        {b"etc/whitedout": b"1", b"localetc/whitedout": b"1", b"etc/.wh.whitedout": None},
        name="W06 in the same layer",
    ),
    tree(
        [S(b"dead", b"nowhere"), F(b"dead/.wh.x"), F(b"dne/../.wh.etc"), F(b"etc", b"1")],
        {b"etc": b"1", b"dead": None, b"nowhere": None, b"dne": None},
        name="W08 a dead link",
    ),
    tree(
        [
            Entry(b".wh.body", b"0", b"b" * 5000),
            S(b".wh.link", CANARY),
            L(b".wh.hard", b"body"),
            Entry(b".wh.fifo", b"6"),
            L(b"to-it", b".wh.body"),
            S(b"points", b".wh.body"),
            F(b"body", b"1"),
            F(b"x.wh.y", b"2"),
            F(b".WH.z", b"3"),
            F(b".wh", b"4"),
        ],
        {
            b"body": b"1",
            b"x.wh.y": b"2",
            b".WH.z": b"3",
            b".wh": b"4",
            **dict.fromkeys((b".wh.body", b".wh.link", b".wh.hard", b"to-it", b"points")),
        },
        name="W12 of every kind",
    ),
    tree(
        [
            e
            for n in range(10_000)
            for e in (F(b"d/.wh.%d" % n), F(b"o/" * (n % 300) + b".wh..wh..opq"))
        ]
        + [F(b"d/7", b"1")],
        {b"d/7": b"1", b"d/.wh.7": None, b"o/.wh..wh..opq": None},
        name="W14",
    ),
)
