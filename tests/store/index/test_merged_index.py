"""The merged index of several layers: the tree that umoci unpacks, in bounded linear time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from subprocess import CalledProcessError
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.config import Limits
from blobserve.errors import BadLayer, BlobDamaged, PathNotFound
from blobserve.names.digest import Digest
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.index.entry import EntryKind
from blobserve.store.index.lookup import IndexReader
from blobserve.store.index.merged_index import merge, tree_digest
from tests.support.examples import more
from tests.support.extraction import LIMITS
from tests.support.layers import Directory, Entry, File, Link, Symlink, tar
from tests.support.merged_layers import extracted, make_tree, serving_merged
from tests.support.parts.chroot import in_chroot
from tests.support.parts.images import Image, Layer
from tests.support.parts.programs import own_directory
from tests.support.parts.umoci import umoci_unpacked
from tests.support.slack import SLACK
from tests.traps.cases_merged import MERGED, OPAQUE, Merged

UNPACKED_OTHERWISE = (
    *("W04 where", "W05", "W06 a link", "W07", "W09"),
    *("L23 to what", "L23 hidden before", "L34 below"),
)
"""Layers that umoci refuses, or unpacks although they resemble whiteouts; see `apply_whiteout`."""


def served(filesystem: ImageFilesystem, path: bytes) -> bytes | str | None:
    """Return the bytes of the file at a path, ``directory``, or None."""
    try:
        entry = filesystem.lookup(path)
    except PathNotFound:
        return None
    is_file = entry.kind is EntryKind.FILE
    return filesystem.file(entry).read(0, entry.size) if is_file else "directory"


def compare(filesystem: ImageFilesystem, root: Path) -> None:
    """Compare an image with its unpacked tree: all names, and the target of each."""
    top = os.fsencode(root)
    for path, directories, files in os.walk(top):
        key = os.path.relpath(path, top).removeprefix(b".")
        entry = filesystem.lookup(key)
        assert (entry.path, entry.kind) == (key, EntryKind.DIRECTORY)
        assert filesystem.names(entry) == sorted([*directories, *files]), key
        for name in (*directories, *files):
            each = os.path.join(key, name)
            assert served(filesystem, each) == in_chroot(root, each), each


def unpacked_alike(layers: Sequence[Sequence[Entry | bytes]]) -> None:
    """Compare these layers with the tree that umoci unpacks."""
    image = Image(tuple(Layer.of_tar(tar(entries)) for entries in layers))
    with own_directory() as directory, TemporaryDirectory() as name:
        root = umoci_unpacked(directory, image)
        with serving_merged(Path(name), *layers) as filesystem:
            compare(filesystem, root)


@pytest.mark.parametrize(
    "case",
    [case for case in MERGED if not case.name.startswith(UNPACKED_OTHERWISE)],
    ids=lambda case: case.name,
)
def test_the_same_as_umoci(case: Merged) -> None:
    """Files that layers hide, replace and link are the same as with umoci."""
    unpacked_alike(case.layers)


class Drawn:
    """Random layers, mostly as tools write them."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._made: dict[bytes, bytes] = {}
        """The type of each existing name, links not followed."""

    def layers(self) -> list[list[Entry]]:
        """Return the layers of an image, two to four."""
        return [self._layer(number) for number in range(self._chance.randrange(2, 5))]

    def _layer(self, number: int) -> list[Entry]:
        first: list[Entry] = []
        if number:
            first += filter(None, [self._early_link() for _ in range(self._chance.randrange(4))])
            first += [self._whiteout() for _ in range(self._chance.randrange(5))]
        return [*first, *(self._entry() for _ in range(self._chance.randrange(1, 15)))]

    def _early_link(self) -> Entry | None:
        """Return a hard link with a free name to a file that may be hidden later."""
        name, made = self._name(), self._made
        files = [each for each, kind in made.items() if kind == b"0"]
        above = [name.rsplit(b"/", n)[0] for n in range(1, name.count(b"/") + 1)]
        is_taken = name in made or any(each.startswith(name + b"/") for each in made)
        if not files or is_taken or any(made.get(each, b"5") != b"5" for each in above):
            return None
        made.update(dict.fromkeys(above, b"5"))
        made[name] = b"0"
        return Link(name, self._chance.choice([each for each in files if each != name]))

    def _whiteout(self) -> Entry:
        target = self._chance.choice([*self._made, self._name()])
        self._clear(target)
        if self._made.get(target) == b"5" and self._chance.random() < 0.5:
            return File(target + b"/" + OPAQUE)
        self._made.pop(target, None)
        above, slash, last = target.rpartition(b"/")
        return File(above + slash + b".wh." + last)

    def _entry(self) -> Entry:
        chance, name = self._chance, self._name()
        files = [
            each
            for each, kind in self._made.items()
            if kind == b"0" and not (each + b"/").startswith(name + b"/")
        ]
        kind = chance.choice("ffdsl" if files else "ffds")
        if kind != "d":
            self._clear(name)
        for n in range(1, name.count(b"/") + 1):
            self._made.setdefault(name.rsplit(b"/", n)[0], b"5")
        self._made[name] = {"d": b"5", "s": b"2"}.get(kind, b"0")
        if kind == "l":
            return Link(name, chance.choice(files))
        if kind == "s":
            return Symlink(name, chance.choice([b"", b"/", b"../"]) + self._name())
        body = bytes(chance.choices(b"abcdefgh", k=chance.randrange(1, 5)))
        return Directory(name) if kind == "d" else File(name, body)

    def _name(self) -> bytes:
        """Return a name with parents that are directories, missing, or sometimes links."""
        while True:
            parts = self._chance.choices([b"a", b"b", b"c", b"d"], k=self._chance.randrange(1, 5))
            parents = [b"/".join(parts[:n]) for n in range(1, len(parts))]
            allowed = (b"5", b"2") if self._chance.random() < 0.1 else (b"5",)
            if all(self._made.get(parent, b"5") in allowed for parent in parents):
                return b"/".join(parts)

    def _clear(self, directory: bytes) -> None:
        for name in [each for each in self._made if each.startswith(directory + b"/")]:
            del self._made[name]


@settings(max_examples=more(14), deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_layers_as_umoci(chance: Random) -> None:
    """Random layers are served as umoci unpacks them, if it accepts them."""
    layers = Drawn(chance).layers()
    try:
        unpacked_alike(layers)
    except CalledProcessError:
        with TemporaryDirectory() as name, serving_merged(Path(name), *layers):
            pass


@pytest.mark.parametrize("at", [0, 1])
def test_entries_of_all_layers_together(tmp_path: Path, at: int) -> None:
    """All layers of an image together may have as many entries as one layer may."""
    blobs = extracted(tmp_path, [[File(b"a"), File(b"b")], [File(b"c"), File(b".wh.a")]])
    limits = Limits(entries=4 - at)
    if not at:
        make_tree(tmp_path / "tree", blobs, limits)
        return
    with pytest.raises(BadLayer, match="4 entries together, more than 3"):
        make_tree(tmp_path / "tree", blobs, limits)
    assert not (tmp_path / "tree").exists()


def test_directories_of_all_layers_together(tmp_path: Path) -> None:
    """Implied directories count as entries too, over all layers."""
    blobs = extracted(tmp_path, [[File(b"a/b/c/d")], [File(b"e/f/g/h")]])
    with pytest.raises(BadLayer, match="too much space"):
        make_tree(tmp_path / "tree", blobs, Limits(entries=5))


@pytest.mark.parametrize("first", [[], [Link(b"linked", b"d/7/x")]], ids=["alone", "after a link"])
def test_whiteouts_cost_the_same_each(tmp_path: Path, first: list[Entry]) -> None:
    """W14: the cost of each whiteout is the same, for files, trees, any level and missing names."""
    deep = [File(b"o/" * n + OPAQUE) for n in range(500)]
    blobs = extracted(
        tmp_path,
        [
            [*(File(b"d/%d/x" % n) for n in range(10_000)), File(b"o/" * 500 + b"x")],
            [*first, *(File(b"d/.wh.%d" % n) for n in range(20_000)), *deep, *reversed(deep)],
        ],
    )
    before = time.process_time()
    make_tree(tmp_path / "tree", blobs)
    assert time.process_time() - before < 10 * SLACK


def test_links_among_whiteouts_cost_the_same_each(tmp_path: Path) -> None:
    """The cost is the same for each hard link to a file that is hidden later."""
    count = 10_000
    upper: list[Entry] = []
    for n in range(count):
        upper += [Link(b"l/%d" % n, b"d/%d/x" % n), File(b"n/%d" % n), File(b"d/.wh.%d" % n)]
    blobs = extracted(tmp_path, [[File(b"d/%d/x" % n) for n in range(count)], upper])
    before = time.process_time()
    make_tree(tmp_path / "tree", blobs)
    assert time.process_time() - before < 10 * SLACK


@pytest.mark.parametrize("damage", ["cut", "empty", "version", "application", "gone", "noise"])
def test_damaged_trees_are_not_opened(tmp_path: Path, damage: str) -> None:
    """A merged index that is damaged, missing or of another version is not opened."""
    path = tmp_path / "tree"
    make_tree(path, extracted(tmp_path, [[File(b"a")], [File(b"b")]]))
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:50],
            "empty": b"",
            "version": content[:60] + b"\0\0\0\7" + content[64:],
            "application": content[:68] + b"blob" + content[72:],
            "noise": b"no database" * 999,
            "gone": b"",
        }[damage]
    )
    if damage == "gone":
        path.unlink()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BlobDamaged):
        IndexReader.open(path, tree_digest(()), lambda: LIMITS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_not_finished_is_closed(tmp_path: Path) -> None:
    """An abandoned merge holds no descriptor."""
    blobs = extracted(tmp_path, [[File(b"a")], [File(b"b")]])
    before = len(os.listdir("/proc/self/fd"))
    steps = merge(tmp_path / "tree", [blob / "index" for blob in blobs], LIMITS, lambda: 1 << 30)
    next(steps)
    steps.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_layer_is_named_like_a_tree() -> None:
    """A merged index is named after its layers in order, and no layer can have that name."""
    one, two = Digest.of(b"one"), Digest.of(b"two")
    named = {tree_digest(layers) for layers in ((one, two), (two, one), (one,), (one, one))}
    assert len(named) == 4
    for rules in (1, 2):
        assert Digest.of(f"tree {rules}\n{one}\n{two}".encode()) not in named
