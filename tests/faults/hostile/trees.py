"""Names and links: the targets of paths, as in a chroot of the layer. Rows L01 to L35 and L58."""

from __future__ import annotations

from tests.faults.hostile.case import CANARY, Case, tree
from tests.support.layers import Directory, Entry, File, Link, Symlink, header, layer, pax

D = Directory
F = File
L = Link
S = Symlink

LONG = b"/".join([b"d" * 247] * 15)
CHAIN = [S(b"c%d" % n, b"c%d" % (n + 1)) for n in range(300)]
DEEP = b"d/" * 1023 + b"x"
NAME = b"n" * 250 + b"/"

# Values that a header may hold, but that no system has as an owner.
OWNERS = (b"7777777\0", b"\xff" * 8, b"\x80" + b"\xff" * 7, b"nobody\0\0", b"-1\0\0\0\0\0\0")


def owned(name: bytes, owner: bytes) -> bytes:
    """Return the header of an empty file that belongs to this user and group."""
    block = header(name)
    block = block[:108] + owner * 2 + block[124:]
    total = sum(block[:148]) + sum(block[156:]) + 8 * 0x20
    return block[:148] + b"%06o\0 " % total + block[156:]


TREES: tuple[Case, ...] = (
    tree(
        [F(b"/etc/x", b"1"), F(b"//tmp/moo", b"2")],
        {b"etc/x": b"1", b"tmp/moo": b"2"},
        name="L01",
    ),
    tree(
        [
            F(b"../away/dot", b"1"),
            F(b"/../away/x", b"2"),
            F(b"a/../../moo", b"3"),
            F(b".."),
        ],
        {b"away/dot": b"1", b"away/x": b"2", b"moo": b"3", b"..": None},
        name="L02",
    ),
    tree(
        [F(b"./a", b"1"), F(b"b//c", b"2"), F(b"d/./e", b"3"), F(b"."), F(b"/"), F(b"")],
        {b"a": b"1", b"b/c": b"2", b"d/e": b"3", b".": None, b"": None},
        name="L03",
    ),
    tree([F(b"a/")], {b"a": None}, name="L03 a file with a slash is a directory"),
    tree(
        [D(b"etc"), S(b"localetc", b"/etc"), F(b"localetc/unbroken", b"1")],
        {b"etc/unbroken": b"1", b"localetc/unbroken": b"1"},
        name="L04",
    ),
    tree(
        [
            S(b"a", b"/dummy/../etc"),
            S(b"b", b"./a"),
            S(b"c/d", b"../b"),
            D(b"dummy"),
            F(b"etc/x", b"1"),
        ],
        {b"a/x": b"1", b"b/x": b"1", b"c/d/x": b"1"},
        name="L05",
    ),
    tree(
        [S(b"a/b/x", b"../../../../../etc/x"), F(b"etc/x", b"image's")],
        {b"a/b/x": b"image's"},
        name="L06",
    ),
    tree(
        [
            S(b"x", CANARY),
            S(b"y", CANARY.rpartition(b"/")[0]),
            S(b"z", b"../" * 20 + CANARY[1:]),
            L(b"h", CANARY),
        ],
        {b"x": None, b"y": None, b"z": None, b"h": None, b"y/case.py": None, CANARY[1:]: None},
        name="L07 links to a file of the host",
    ),
    tree(
        [S(b"a", b"b"), S(b"b", b"a"), S(b"self", b"self"), S(b"deep", b"deep/x")],
        {b"a": None, b"b/c": None, b"self": None, b"deep": None, b"deep/x/x": None},
        name="L08 loops",
    ),
    tree(
        [*CHAIN, F(b"c300", b"1")], {b"c260": b"1", b"c259": None, b"c0": None}, name="L08 chains"
    ),
    tree(
        [
            F(b"cousinparent/test", b"1"),
            D(b"cousinparent/cousin"),
            S(b"subdir/link", b"../cousinparent/cousin"),
            S(b"way", b"subdir/link/../test"),
        ],
        {b"way": b"1", b"subdir/link/../test": b"1"},
        name="L09",
    ),
    tree([F(b"notdir", b"1")], {b"notdir/child": None, b"notdir/": None}, name="L10"),
    tree(
        [
            S(b"inner/go_up", b".."),
            S(b"inner/go_up/escape", b"../away"),
            F(b"inner/go_up/escape/new", b"1"),
        ],
        {b"away/new": b"1", b"escape/new": b"1"},
        name="L11",
    ),
    tree([S(b"cur", b"."), S(b"par", b"cur/.."), F(b"par/moo", b"1")], {b"moo": b"1"}, name="L12"),
    tree([S(b"moo", b"/tmp/moo"), F(b"moo", b"1")], {b"moo": b"1"}, name="L13"),
    tree(
        [F(b"foo/a", b"1"), S(b"foo", b"/"), F(b"foo/b", b"2"), D(b"foo"), F(b"foo/c", b"3")],
        {b"foo/a": None, b"b": b"2", b"foo/b": None, b"foo/c": b"3"},
        name="L14",
    ),
    tree(
        [
            F(b"d/x", b"1"),
            F(b"e/x", b"2"),
            S(b"d", b"e"),
            S(b"l", b"e"),
            D(b"l"),
            F(b"l/y", b"3"),
        ],
        {b"d/x": b"2", b"l/x": None, b"l/y": b"3", b"e/y": None},
        name="L15",
    ),
    tree(
        [
            F(LONG + b"/x", b"1"),
            S(b"short", LONG),
            S(b"escape", b"short/" + b"../" * 14 + b".."),
            L(b"hard", b"escape/../.." + CANARY),
            F(b"escape/y", b"2"),
        ],
        {b"short/x": b"1", b"hard": None, b"y": b"2"},
        name="L16",
    ),
    tree([S(b"d", b"."), F(b"d/d", b"1"), F(b"d", b"2")], {b"d": b"2"}, name="L17"),
    tree([L(b"x", b"../outside/file")], {b"x": None}, name="L18"),
    tree(
        [
            F(b"d/f", b"1"),
            S(b"d/s", b"f"),
            L(b"l1", b"d/f"),
            L(b"l2", b"l1"),
            L(b"l3", b"d/s"),
            F(b"f", b"2"),
            F(b"d/f", b"3"),
        ],
        {b"l1": b"1", b"l2": b"1", b"l3": b"2", b"d/s": b"3"},
        name="L19",
    ),
    tree(
        [
            L(b"l2", b"l1"),
            L(b"l1", b"later/f"),
            S(b"s", b"later"),
            L(b"l3", b"s/f"),
            F(b"later/f", b"1"),
        ],
        {b"l1": b"1", b"l2": b"1", b"l3": b"1"},
        name="L20",
    ),
    tree(
        [
            D(b"d"),
            L(b"a", b"absent"),
            L(b"b", b"d"),
            F(b"self", b"1"),
            L(b"self", b"self"),
            L(b"e", b"/"),
            L(b"f", b""),
            L(b"g", b"g"),
            L(b"h", b"i"),
            L(b"i", b"h"),
            L(b"j", b"self/x"),
            S(b"loop", b"loop"),
            L(b"k", b"loop/x"),
        ],
        {b"self": b"1"} | dict.fromkeys((b"a", b"b", b"e", b"f", b"g", b"h", b"i", b"j", b"k")),
        name="L21",
    ),
    tree([F(b"bin/a", b"1"), L(b"/bin/b", b"/bin/a")], {b"bin/b": b"1"}, name="L22"),
    tree(
        [
            L(b"a", b"../away/x"),
            L(b"b", b"/../away/x"),
            S(b"up", b".."),
            L(b"c", b"up/../etc/x"),
            F(b"away/x", b"1"),
        ],
        {b"a": b"1", b"b": b"1", b"c": None},
        name="L24",
    ),
    tree(
        [
            F(b"null", b"1"),
            Entry(b"null", b"3"),
            Entry(b"disk", b"4"),
            Entry(b"fifo", b"6"),
            Entry(b"contiguous", b"7", b"body"),
            Entry(b"unknown", b"Z", b"body"),
            F(b"kept", b"2"),
            Entry(b"kept", b"Z"),
        ],
        {b"kept": b"2"} | dict.fromkeys((b"null", b"disk", b"fifo", b"contiguous", b"unknown")),
        name="L26",
    ),
    tree([F(b"a", b"1", mode=0), F(b"b", b"2", mode=0o7777)], {b"a": b"1", b"b": b"2"}, name="L27"),
    tree(
        [
            F(b"\x80\x81", b"1"),
            F("é".encode(), b"2"),
            F("e\u0301".encode(), b"3"),
            F(b"A", b"4"),
            F(b"a", b"5"),
        ],
        {
            b"\x80\x81": b"1",
            "é".encode(): b"2",
            "e\u0301".encode(): b"3",
            b"A": b"4",
            b"a": b"5",
        },
        name="L29",
    ),
    tree(
        [F(b"a\nb\r\"'?#%00\\C:", b"1"), F(b"n" * 256, b"2"), F(b"p/" * 1000 + b"q", b"3")],
        {
            b"a\nb\r\"'?#%00\\C:": b"1",
            b"n" * 256: b"2",
            b"p/" * 1000 + b"q": b"3",
            b"a\0b": None,
            b"\0": None,
        },
        name="L30",
    ),
    tree(
        [
            F(b"twice", b"1"),
            F(b"twice", b"2"),
            F(b"now-a-directory", b"3"),
            D(b"now-a-directory"),
            F(b"now-a-file/child", b"4"),
            F(b"now-a-file/deep/child", b"4"),
            F(b"now-a-file", b"5"),
            F(b"now-a-file-not", b"6"),
            D(b"again"),
            F(b"again/x", b"7"),
            D(b"again/"),
            F(b"file", b"8"),
            F(b"file/below", b"9"),
        ],
        {
            b"twice": b"2",
            b"now-a-directory": None,
            b"now-a-file": b"5",
            b"now-a-file/child": None,
            b"now-a-file/deep/child": None,
            b"now-a-file-not": b"6",
            b"again/x": b"7",
            b"file/below": b"9",
        },
        name="L32",
    ),
    tree(
        [S(b"lib", b"usr/lib"), F(b"lib/deep/x", b"1"), D(b"usr/lib")],
        {b"usr/lib/deep/x": b"1", b"lib/deep/x": b"1"},
        name="L34",
    ),
    tree([F(b"a/b", b"1"), F(b"./a//b", b"2"), D(b"c"), D(b"c/")], {b"a/b": b"2"}, name="L58"),
    tree(
        [F(b"../../out", b"1"), F(b"..", b"2"), F(b"a/..", b"3"), F(b"a/b", b"4")],
        {b"out": b"1", b"..": None, b"a": None, b"a/b": b"4"},
        name="L02 names of nothing but the way up",
    ),
    tree(
        [L(b"in", b"a/file/of/the/layer/below"), F(b"f", b"1"), L(b"l", b"f"), F(b"f", b"2")],
        {b"in": None, b"l": b"1", b"f": b"2"},
        name="L23 a link keeps what it was made for",
    ),
    tree(
        [
            L(b"link", b"../away"),
            F(b"link/hello", b"1"),
            L(b"dir/link", b"/../away/hello"),
            F(b"dir/link", b"2"),
            S(b"up", b"../away"),
            L(b"twice", b"up"),
            F(b"twice/new", b"3"),
            L(b"through", b"up/new"),
        ],
        {
            b"link/hello": b"1",
            b"dir/link": b"2",
            b"away/hello": None,
            b"away/new": b"3",
            b"through": b"3",
            b"twice/new": b"3",
        },
        name="L24 hard links out of the image",
    ),
    tree(
        [
            S(b"a", b"../away"),
            F(b"a/1", b"1"),
            S(b"b", b"/../away"),
            F(b"b/2", b"2"),
            S(b"c/d", b"../../away"),
            F(b"c/d/3", b"3"),
            S(b"e", b".."),
            S(b"f", b"e/away"),
            F(b"f/4", b"4"),
            S(b"g", b"h"),
            S(b"h", b"../../away"),
            F(b"g/5", b"5"),
            S(b"i", b"../away/."),
            F(b"i/6", b"6"),
            S(b"j", b"./../away/../away"),
            F(b"j/7", b"7"),
        ],
        {b"away/%d" % n: b"%d" % n for n in range(1, 8)},
        name="L24 symbolic links out of the image",
    ),
    tree(
        [
            e
            for letter in b"ABCDEFGHIJMNOPQRTUVWXYZabcdefhijklmnopqrstuvwyz789!~"
            for e in (Entry(b"%c" % letter, b"%c" % letter, b"body" * 200), F(b"_%c" % letter))
        ],
        {b"_Z": b"", b"_~": b"", **{b"%c" % each: None for each in b"DMNV7ZAz"}},
        name="L26 L56 L57 every type there is not",
    ),
    tree(
        [header(b"a", mode=0o7777777), header(b"b", mode=-1), F(b"c", b"3", mode=0o6755)],
        {b"a": b"", b"b": b"", b"c": b"3"},
        name="L27 modes",
    ),
    tree(
        [owned(b"%d" % n, owner) for n, owner in enumerate(OWNERS)],
        {b"%d" % n: b"" for n in range(len(OWNERS))},
        name="L28 owners",
    ),
    tree(
        [
            header(b"a", mtime=-1),
            header(b"b", mtime=2**63),
            pax({b"mtime": b"9" * 100}) + header(b"c"),
            pax({b"mtime": b"-1.5"}) + header(b"d"),
            pax({b"mtime": b"soon"}) + header(b"e"),
            header(b"f", mtime=b"not a time"),
        ],
        {b"%c" % each: b"" for each in b"abcdef"},
        name="L28 times",
    ),
    tree(
        [F(b"n" * 255, b"1"), F(NAME * 16 + b"n" * 80, b"2"), F(b"a\\b", b"3")],
        {b"n" * 255: b"1", NAME * 16 + b"n" * 80: b"2", b"a\\b": b"3", b"a/b": None, b"b": None},
        name="L30 as long as names may be",
    ),
    tree([F(DEEP, b"1")], {DEEP: b"1", DEEP[2:]: None}, name="L33 as deep as trees may be"),
    tree(
        [
            pax({b"SCHILY.xattr.user.x": b"v" * (2**20 - 100)}) + header(b"huge"),
            pax({b"SCHILY.xattr.user.y": b"a\0b", b"LIBARCHIVE.xattr.x": b"="}) + header(b"small"),
        ],
        {b"huge": b"", b"small": b""},
        name="L35",
    ),
    Case("L33 1,025 components", layer([F(b"d/" + DEEP)], "none"), {}, "nested too deep"),
    Case(
        "L33 through a link",
        layer([S(b"s", b"n" * 3000), F(b"s/" + b"m" * 3000)], "none"),
        {},
        "nested too deep",
    ),
)
