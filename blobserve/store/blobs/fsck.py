"""The verification of a blob space without an owner: all bytes are read, and nothing is changed.

Blocking. Contents are compared with their indexes file by file, indexes with the recorded
checksums, manifests with their names, and the counted size with the size on disk. Files that a
crash may leave behind are not damage.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from blobserve.concurrency.steps import Result, Steps, advance
from blobserve.config import Limits
from blobserve.errors import BadLayer, BlobDamaged, IndexDamaged, IndexOutdated, MalformedReference
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob_files import check, check_index
from blobserve.store.blobs.compress import check as check_coding
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.blobs.recovery import check_content
from blobserve.store.disk.codings_file import CodingsFile
from blobserve.store.disk.directory import FURNITURE, SpaceDirectory
from blobserve.store.disk.files import blocks, footprint, read
from blobserve.store.disk.metadata_db import SLACK, MetadataDb, Record
from blobserve.store.index.lookup import IndexReader

_STATE = ("state", "state-wal", "state-shm", "state-journal", "state.damaged")
_OWN = frozenset(("VERSION", "lock", "control", "ingest", "blobs", "trees", "manifests", *_STATE))
_OF_A_BLOB = frozenset(("content", "index", "index.new", "codings"))
_ALGORITHMS = ("sha256", "sha512")


@attrs.define
class Findings:
    """The results of a verification. Texts are for the operator and may name paths of the host."""

    layers: int = 0
    trees: int = 0
    """Merged indexes."""
    entries: int = 0
    """Entries of all undamaged layers."""
    manifests: int = 0
    size: int = 0
    """Bytes that were read."""
    damaged: list[str] = attrs.field(factory=list)
    """Descriptions of damage."""
    notes: list[str] = attrs.field(factory=list)
    """Remains of a crash, and states that the next start repairs; neither is damage."""
    foreign: list[Path] = attrs.field(factory=list)
    """Files of other programs, by their path in the blob space. They are left alone."""
    counted: int = 0
    """Bytes that the owner of the blob space would count."""
    taken: int = 0
    """Bytes on the disk, without foreign files."""


def audit(root: Path, limits: Limits) -> Findings:
    """Verify the blob space at `root`, and lock out an owner meanwhile.

    :raises SpaceUnusable: when there is none, or it has an owner.
    :raises OSError: when its directories cannot be read.
    """
    location = SpaceDirectory(root)
    location.look()
    try:
        return _Audit(location, limits).findings
    finally:
        location.leave()


class _Audit:
    def __init__(self, location: SpaceDirectory, limits: Limits) -> None:
        self.findings = found = Findings()
        self._location = location
        self._limits = limits
        records, trees, media_types = self._remembered()
        for digest in sorted(location.blobs()):
            self._layer(digest, records.pop(digest, None))
        found.notes += [f"layer {each}: recorded, but missing" for each in records]
        for digest in sorted(location.trees()):
            self._tree(digest, trees.pop(digest, None))
        found.notes += [f"tree {each}: recorded, but missing" for each in trees]
        for digest in sorted(location.manifests()):
            self._manifest(digest)
            media_types.discard(digest)
        found.notes += [f"manifest {each}: recorded, but missing" for each in sorted(media_types)]
        left = _entries(location.root / "ingest")
        if left:
            found.notes.append(f"unfinished pulls in ingest: {len(left)}")
        found.foreign = list(_foreign(location.root))
        found.counted += FURNITURE + SLACK
        found.taken = _taken(location.root, frozenset(found.foreign))
        if found.taken > found.counted and not left:
            found.notes.append("it takes more space on the disk than is counted")

    def _remembered(self) -> tuple[dict[Digest, Record], dict[Digest, Record], set[Digest]]:
        """Read the metadata database from a copy, since opening it may change it."""
        root = self._location.root
        with TemporaryDirectory() as copy:
            for name in _STATE:
                self.findings.counted += footprint(root / name)
                if (root / name).is_file() and not (root / name).is_symlink():
                    shutil.copy(root / name, copy)
            aside = Path(copy, "state.damaged")
            aside.unlink(missing_ok=True)
            state = MetadataDb(Path(copy, "state"))
            state.open()
            try:
                if aside.exists():
                    self.findings.damaged.append("the metadata database: it is not a database")
                records = {each.digest: each for each in state.blobs()}
                trees = {each.digest: each for each in state.trees()}
                return records, trees, {digest for digest, _ in state.manifests()}
            finally:
                state.close()

    def _layer(self, digest: Digest, record: Record | None) -> None:
        directory, found = self._location.blob(digest), self.findings
        found.layers += 1
        found.counted += footprint(directory)
        if record is None:
            found.notes.append(f"layer {digest}: not recorded; the next start verifies it")
        try:
            if record is not None:
                check(directory, record)
            found.entries += check_content(directory, digest, self._limits)
            ImageFilesystem.open(directory, digest, lambda: self._limits).close()
        except IndexOutdated as damage:
            found.notes.append(f"layer {digest}: {damage.problem}, and is made again when opened")
        except IndexDamaged as damage:
            found.damaged.append(f"layer {digest}: {damage.problem} (it can be rebuilt)")
        except BlobDamaged as damage:
            found.damaged.append(f"layer {digest}: {damage.problem}")
        except (BadLayer, OSError, sqlite3.Error) as error:
            found.damaged.append(f"layer {digest}: {error}")
        for name in ("content", "index", "codings"):
            with suppress(OSError):
                found.size += (directory / name).lstat().st_size
        self._codings(digest, directory)

    def _codings(self, digest: Digest, directory: Path) -> None:
        codings = CodingsFile.open(directory)
        try:
            if not codings.is_whole:
                self.findings.notes.append(
                    f"layer {digest}: its codings end with an incomplete record"
                )
            while key := codings.next_unchecked():
                coded = codings.unchecked(*key)
                if coded is None or not _outcome(check_coding(codings, coded)):
                    name = key[1].decode()
                    problem = f"layer {digest}: a {name} coding of a file (it can be rebuilt)"
                    self.findings.damaged.append(problem)
                codings.put(*key, None)
        finally:
            codings.close()

    def _tree(self, digest: Digest, record: Record | None) -> None:
        path, found = self._location.tree(digest), self.findings
        found.trees += 1
        found.counted += footprint(path)
        if record is None:
            found.notes.append(f"tree {digest}: not recorded; the next start removes it")
            return
        try:
            found.size += path.lstat().st_size
            check_index(path, record)
            IndexReader.open(path, digest, lambda: self._limits).close()
        except BlobDamaged as damage:
            found.damaged.append(f"tree {digest}: {damage.problem} (it can be rebuilt)")
        except OSError as error:
            found.damaged.append(f"tree {digest}: {error.strerror} (it can be rebuilt)")

    def _manifest(self, digest: Digest) -> None:
        found, path = self.findings, self._location.manifest(digest)
        found.manifests += 1
        try:
            size = path.lstat().st_size
            found.counted += blocks(size)
            found.size += size
            is_right = Digest.of(read(path, size), digest.algorithm) == digest
            problem = None if is_right else "its content does not match its digest"
        except OSError as error:
            problem = str(error.strerror)
        if problem:
            found.damaged.append(f"manifest {digest}: {problem}")


def _outcome(steps: Steps[bool]) -> bool:
    """Run steps that need no reservation; return their result."""
    while not isinstance(step := advance(steps), Result):
        pass
    return step.value


def _foreign(root: Path) -> Iterator[Path]:
    """Yield the paths outside of `ingest` that have no name of ours, or are links."""
    for path in _entries(root):
        if path.name not in _OWN or path.is_symlink():
            yield path.relative_to(root)
    for kind in ("blobs", "trees", "manifests"):
        for algorithm in _entries(root / kind):
            if algorithm.name not in _ALGORITHMS or not _is_directory(algorithm):
                yield algorithm.relative_to(root)
                continue
            for path in _entries(algorithm):
                is_kind = stat.S_ISDIR if kind == "blobs" else stat.S_ISREG
                if not _is_named(path) or not is_kind(path.lstat().st_mode):
                    yield path.relative_to(root)
                elif kind == "blobs":
                    inside = [each for each in _entries(path) if each.name not in _OF_A_BLOB]
                    yield from (each.relative_to(root) for each in inside)


def _taken(root: Path, foreign: frozenset[Path]) -> int:
    """Return the bytes that a directory takes on the disk, without foreign files."""
    taken = 0
    for directory, names, files in os.walk(root):
        inside = Path(directory).relative_to(root)
        names[:] = [name for name in names if inside / name not in foreign]
        own = [name for name in files if inside / name not in foreign]
        for name in (".", *own):
            taken += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return taken


def _entries(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if _is_directory(path) else []


def _is_directory(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _is_named(path: Path) -> bool:
    """Return whether a path has the form of a blob's or a manifest's."""
    try:
        Digest.parse(f"{path.parent.name}:{path.name}")
    except MalformedReference:
        return False
    return True
