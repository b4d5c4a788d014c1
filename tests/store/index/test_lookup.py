"""The served tree, by the rows of the cases: the targets of paths, all inside the layer."""

from __future__ import annotations

import ctypes
import io
import os
import stat
import struct
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.config import Limits
from blobserve.errors import BadImage, BlobDamaged, PathNotFound
from blobserve.names.digest import Digest
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.index.resolve import TooManyLinks, join, walk
from blobserve.tar.header import DIRECTORY, REGULAR, SYMLINK, split
from tests.faults.hostile.trees import CHAIN
from tests.support.examples import more
from tests.support.extraction import LIMITS, contents, extract, serve
from tests.support.layers import Directory, File, Link, Symlink, layer
from tests.support.layers import Entry as Written
from tests.support.slack import SLACK

D = Directory
F = File
S = Symlink
L = Link

Serve = Callable[..., ImageFilesystem]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that extracts entries as a layer and opens it until the test ends."""
    opened: list[ImageFilesystem] = []

    def open_layer(*entries: Written | bytes, limits: Limits = LIMITS) -> ImageFilesystem:
        opened.append(serve(tmp_path, layer(entries, "none"), limits=limits))
        return opened[-1]

    yield open_layer
    for filesystem in opened:
        filesystem.close()


def content(filesystem: ImageFilesystem, path: bytes) -> bytes | None:
    """Return the bytes at a path, None if no file is there."""
    try:
        entry = filesystem.lookup(path)
    except PathNotFound:
        return None
    return filesystem.file(entry).read(0, entry.size) if entry.kind is EntryKind.FILE else None


def test_entries(served: Serve) -> None:
    """An entry has its canonical path, its kind, the hash of its bytes and its time, if any."""
    filesystem = served(
        F(b"d/f", b"hello", mtime=5), S(b"l", b"d"), F(b"old", mtime=-5), D(b"t", mtime=7)
    )
    found = filesystem.lookup(b"l//f")
    digest = bytes.fromhex(Digest.of(b"hello").hex)
    assert found == Entry(b"d/f", EntryKind.FILE, found.offset, 5, digest, 5, is_text=1)
    assert filesystem.lookup(b"old").mtime is None
    assert filesystem.lookup(b"l") == filesystem.lookup(b"d/") == Entry(b"d", EntryKind.DIRECTORY)
    assert filesystem.lookup(b"t") == Entry(b"t", EntryKind.DIRECTORY, mtime=7)
    assert filesystem.lookup(b"") == Entry(b"", EntryKind.DIRECTORY)
    assert filesystem.names(filesystem.lookup(b"")) == [b"d", b"l", b"old", b"t"]


def test_reading(served: Serve) -> None:
    """A read returns bytes of the file alone; a cached read returns the same or nothing."""
    filesystem = served(F(b"a", b"before"), F(b"b", bytes(range(200))), F(b"c", b"after"))
    entry = filesystem.lookup(b"b")
    assert filesystem.file(entry).read(190, 100) == bytes(range(190, 200))
    assert filesystem.file(entry).read(200, 5) == filesystem.file(entry).read_cached(200, 5) == b""
    assert filesystem.file(entry).read_cached(10, 5) in (None, bytes(range(10, 15)))
    assert os.pread(filesystem.file(entry).descriptor, 3, entry.offset) == b"\0\1\2"


def test_a_link_farm_is_not_followed_out(served: Serve, tmp_path: Path) -> None:
    """D3: a layer full of links to the host's files gives no byte of them."""
    secret = tmp_path.parent / "secret"
    secret.write_bytes(b"the host's")
    targets = [str(secret).encode(), b"/etc/passwd", b"/proc/self/environ", b"/dev/zero"]
    climbs = [b"../" * n + target.lstrip(b"/") for target in targets for n in (1, 2, 10)]
    entries = []
    for n, target in enumerate(targets + climbs):
        entries += [S(b"s%d" % n, target), L(b"h%d" % n, target), L(b"hs%d" % n, b"s%d" % n)]
        entries += [S(b"dir%d" % n, os.path.dirname(target)), S(b"two%d" % n, b"s%d" % n)]
    filesystem = served(S(b"root", b"/"), S(b"up", b".."), *entries)
    names = filesystem.names(filesystem.lookup(b""))
    assert len(names) == len(entries) + 2
    paths = [*names, *(b"root/" + t[1:] for t in targets), *(b"up/up" + t for t in targets)]
    assert {content(filesystem, path) for path in paths} == {None}


@pytest.mark.parametrize(
    ("entries", "limits", "problem"),
    [
        pytest.param([F(b"d/" * 1024 + b"x")], LIMITS, "too deep", id="L33"),
        pytest.param([F(b"a/b/c"), F(b"d/e/f")], Limits(entries=3), "too much space", id="implied"),
        pytest.param(
            [S(b"s0", b"n" * 3000), F(b"s0/" + b"m" * 3000)], LIMITS, "too deep", id="through links"
        ),
        pytest.param(
            [S(b"s", b"n" * 3000), *(F(b"s/%d" % n) for n in range(200))],
            Limits(names_size=500_000),
            "too much space",
            id="L55 through links",
        ),
        pytest.param(
            [D(b"c40"), *CHAIN[:40], *(F(b"c1/%d/x" % (n % 9)) for n in range(300))],
            Limits(entries=350),
            "tangled",
            id="steps",
        ),
        pytest.param(
            [S(b"s", b"../" * 1300), *(F(b"s/%d/x" % n) for n in range(40))],
            Limits(entries=1000),
            "tangled",
            id="L08 long links",
        ),
    ],
)
def test_trees_beyond_a_limit(
    served: Serve, entries: list[Written], limits: Limits, problem: str
) -> None:
    """L33, L55: a small layer with a tree that is huge or slow to build is refused."""
    with pytest.raises(BadImage, match=problem):
        served(*entries, limits=limits)


def test_hostile_links_cost_little(served: Serve) -> None:
    """L08: the worst links in the deepest trees are abandoned quickly."""
    deep = b"d/" * 500
    climb = (b"d/../" * 700)[:4000]
    filesystem = served(
        D(deep),
        *(S(b"l%d" % n, climb + b"/l%d" % (n + 1)) for n in range(60)),
        S(b"x", deep + b"../x"),
    )
    before = time.process_time()
    assert content(filesystem, b"l0") is content(filesystem, b"x") is None
    assert time.process_time() - before < SLACK


names = st.sampled_from([b"a", b"b", b"c", b"d"])
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)
targets = st.lists(
    st.sampled_from([b"a", b"b", b"c", b"..", b".", b""]), min_size=1, max_size=4
).map(b"/".join)
entries_of_any_kind = st.one_of(
    st.builds(File, paths, st.binary(max_size=3)),
    st.builds(Directory, paths),
    st.builds(Symlink, paths, targets),
    st.builds(Link, paths, targets),
    st.builds(Written, paths, st.sampled_from([b"3", b"6", b"Z"])),
)


@given(st.lists(entries_of_any_kind, max_size=12), st.lists(targets, max_size=8))
def test_any_entries_in_any_order(entries: list[Written], asked: list[bytes]) -> None:
    """A path in a layer of any entries gives bytes of the layer or is not found."""
    bodies = {entry.body for entry in entries}
    with TemporaryDirectory() as name:
        filesystem = serve(Path(name), layer(entries, "none"))
        for path in [*asked, *(entry.name for entry in entries)]:
            assert content(filesystem, path) in bodies | {None}
        everything = contents(filesystem)
        for path in everything:
            parent = path.rpartition(b"/")[0]
            assert not parent or everything[parent] is None
        filesystem.close()


written_by_tar = st.one_of(
    st.builds(File, paths, st.binary(max_size=3)),
    st.builds(Directory, paths),
    # For the kernel a link target that ends in a slash or a dot must be a directory.
    st.builds(Symlink, paths, targets.filter(lambda target: not target.endswith((b"/", b"/.")))),
)


def replacing_nothing(entries: list[Written]) -> list[Written]:
    """Drop entries that replace others, so that every tool extracts the rest alike."""
    made: dict[bytes, Written] = {}
    directories: set[bytes] = set()
    for entry in entries:
        parents = {entry.name.rsplit(b"/", n)[0] for n in range(1, entry.name.count(b"/") + 1)}
        above = [made[parent] for parent in parents if parent in made]
        is_new = entry.name not in made and entry.name not in directories
        is_whole = entry.link or entry.type != b"2"
        if is_new and is_whole and all(each.type == b"5" for each in above):
            made[entry.name] = entry
            directories |= parents
    return list(made.values())


def in_root(root: int, path: bytes) -> bytes | None:
    """Return the kernel's result for `path` in a chroot at `root`: a file's bytes, or None."""
    openat2, resolve_in_root = 437, 0x10
    how = struct.pack("QQQ", os.O_RDONLY, 0, resolve_in_root)
    fd = ctypes.CDLL(None).syscall(openat2, root, path, how, len(how))
    if fd < 0:
        return None
    try:
        return os.read(fd, 100) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


@settings(max_examples=more(100))
@given(st.lists(written_by_tar, max_size=12).map(replacing_nothing), st.lists(targets, max_size=9))
def test_the_same_as_tar_and_the_kernel(entries: list[Written], asked: list[bytes]) -> None:
    """A tree is the one that `tar x` makes, and paths resolve as in a chroot."""
    with TemporaryDirectory() as name:
        packed, root, blob = layer(entries, "none"), Path(name, "root"), Path(name, "blob")
        root.mkdir()
        blob.mkdir()
        subprocess.run(["tar", "x", "-P", "-C", root], input=packed, check=True)
        filesystem = serve(blob, packed)
        fd = os.open(root, os.O_RDONLY)
        for path in [*asked, *(entry.name for entry in entries)]:
            path = path.rstrip(b"/.") or b"."
            assert content(filesystem, path) == in_root(fd, path), path
        made = {os.fsencode(path.relative_to(root)) for path in root.rglob("*")}
        links = {entry.name for entry in entries if entry.type == b"2"}
        assert contents(filesystem).keys() == made - links
        os.close(fd)
        filesystem.close()


def test_the_same_as_tar_with_hard_links(tmp_path: Path) -> None:
    """An ordinary tree with every kind of link, packed by another tool, is served completely."""
    tree = tmp_path / "tree"
    (tree / "usr/lib/deep").mkdir(parents=True)
    for n in range(300):
        (tree / f"usr/lib/deep/file{n}").write_bytes(os.urandom(n * 7))
        os.link(tree / f"usr/lib/deep/file{n}", tree / f"usr/hard{n}")
    (tree / "lib").symlink_to("usr/lib")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(tree, ".")
    blob = tmp_path / "blob"
    blob.mkdir()
    filesystem = serve(blob, packed.getvalue())
    for n in range(300):
        body = (tree / f"usr/hard{n}").read_bytes()
        assert content(filesystem, b"usr/hard%d" % n) == body
        assert content(filesystem, b"lib/deep/file%d" % n) == body
    filesystem.close()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda d: os.truncate(d / "content", 100), id="content cut"),
        pytest.param(lambda d: os.truncate(d / "index", 0), id="index empty"),
        pytest.param(lambda d: os.truncate(d / "index", 5000), id="index cut"),
        pytest.param(lambda d: (d / "index").write_bytes(b"no database" * 999), id="no index"),
        pytest.param(lambda d: _patch(d / "index", 60, b"\0\0\0\7"), id="another version"),
        pytest.param(lambda d: _patch(d / "index", 68, b"else"), id="another application"),
    ],
)
def test_damaged_blobs_are_not_opened(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A blob with changed files is not opened, and holds no descriptor."""
    blob = layer([F(b"x", b"y" * 5000)])
    extract(tmp_path, blob)
    damage(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BlobDamaged):
        ImageFilesystem.open(tmp_path, Digest.of(blob), lambda: LIMITS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_damage_after_opening(tmp_path: Path) -> None:
    """A blob that is truncated while open gives an error, never wrong or endless bytes."""
    many = [F(b"d/%05d" % n) for n in range(5000)]
    filesystem = serve(tmp_path, layer([F(b"x", b"y" * 50_000), *many], "none"))
    entry = filesystem.lookup(b"x")
    os.truncate(tmp_path / "content", 1000)
    os.truncate(tmp_path / "index", 8192)
    with pytest.raises(BlobDamaged):
        filesystem.file(entry).read(0, 50_000)
    assert filesystem.file(entry).read_cached(40_000, 10) is None
    with pytest.raises(BlobDamaged):
        filesystem.lookup(b"d/03000")
    filesystem.close()
    filesystem.close()


def _patch(path: Path, at: int, patch: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(patch)


@attrs.frozen
class Node:
    """A node of a tree in memory. See `LinkNode`."""

    type: bytes
    link: bytes = b""


def led(parts: list[bytes], nodes: dict[bytes, Node]) -> tuple[bytes, Node | None, list[bytes]]:
    """Where a walk ends, name by name."""
    key, node, todo, hops = b"", None, list(parts), 0
    while todo:
        if todo[0] == b"..":
            key, node, todo = key.rpartition(b"/")[0], None, todo[1:]
            continue
        found = nodes.get(join(key, todo[0]))
        if found is None:
            break
        key, node, todo = join(key, todo[0]), found, todo[1:]
        if found.type == SYMLINK:
            hops += 1
            if hops > Limits().link_hops:
                raise TooManyLinks
            key = b"" if found.link.startswith(b"/") else key.rpartition(b"/")[0]
            node, todo = None, split(found.link) + todo
        elif found.type != DIRECTORY:
            break
    return key, node, todo


_NAMES = st.sampled_from([b"a", b"b", b"long name", b"x"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=6)
_LINKS = st.lists(st.one_of(_NAMES, st.just(b"..")), min_size=1, max_size=4).map(b"/".join)


@settings(max_examples=more(300))
@given(
    st.lists(st.tuples(_PATHS, st.one_of(st.none(), _LINKS, _LINKS.map(b"/".__add__)))),
    st.lists(st.one_of(_NAMES, _NAMES, st.just(b"..")), max_size=12),
)
def test_a_walk_is_as_if_name_by_name(
    made: list[tuple[list[bytes], bytes | None]], asked: list[bytes]
) -> None:
    """A path leads where it leads name by name, through whatever links, and as far."""
    nodes: dict[bytes, Node] = {}
    for parts, link in made:
        above = [b"/".join(parts[:count]) for count in range(1, len(parts))]
        if all(nodes.get(key, Node(DIRECTORY)).type == DIRECTORY for key in above):
            nodes.update(dict.fromkeys(above, Node(DIRECTORY)))
            nodes.setdefault(
                b"/".join(parts), Node(REGULAR if link is None else SYMLINK, link or b"")
            )
    try:
        expected = led(asked, nodes)
    except TooManyLinks:
        with pytest.raises(TooManyLinks):
            walk(asked, nodes.get, Limits())
    else:
        assert walk(asked, nodes.get, Limits()) == expected


@pytest.mark.parametrize("link", [b".", b"./s/../d", b"/d/.."])
def test_a_long_path_through_links_takes_few_look_ups(link: bytes) -> None:
    """A path of a thousand names that follows a link at each takes few look-ups at each."""
    nodes = {b"s": Node(SYMLINK, link), b"d": Node(DIRECTORY)}
    asked = 0

    def get(key: bytes) -> Node | None:
        nonlocal asked
        asked += 1
        return nodes.get(key)

    with pytest.raises(TooManyLinks):
        walk([b"s"] * 1000, get, Limits())
    assert asked <= 41 * 8
