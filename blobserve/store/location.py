"""The blob space as it lies on disk: its names, its format, one rename in and one rename out.

Blocking, and without memory: what is here is what the directory says. No name is ever made from
what an image holds, and no link below the location is followed. What others have put there is left
alone and not counted, but for `ingest`, which is wiped.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from blobserve.errors import MalformedReference, SpaceUnusable
from blobserve.oci.digest import Digest
from blobserve.store.lock import OwnerLock

FORMAT = "1"
BLOCK = 4096

FURNITURE = 16 * BLOCK
"""Bytes that are charged for what every blob space has: its directories, VERSION and lock."""

_PIECE = 1 << 20
_DIRECTORIES = ("ingest", "blobs", "trees", "manifests")


class Location:
    """The directory of one blob space. Nothing is touched before `take`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ingest = root / "ingest"
        self._lock: OwnerLock | None = None
        self._left: list[Path] = []

    def take(self) -> None:
        """Become its owner: make what is missing, check the format, wipe `ingest`.

        :raises SpaceUnusable: saying what the operator can do about it.
        """
        try:
            # The location itself may be a link: systemd makes one of its cache directory.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = OwnerLock(self.root)
            self._check_format()
            for name in _DIRECTORIES:
                self._own_directory(self.root / name)
            for path in list(self._ingest.iterdir()):
                remove(path)
        except SpaceUnusable:
            self.leave()
            raise
        except OSError as error:
            self.leave()
            raise SpaceUnusable(str(self.root), _advice(error)) from error

    def leave(self) -> None:
        """Give the ownership up. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def look(self) -> None:
        """Become its owner without touching anything in it but the lock.

        :raises SpaceUnusable: when there is no blob space of our format, or it has an owner.
        """
        try:
            if self._format() != FORMAT:
                raise SpaceUnusable(str(self.root), f"it is not of format {FORMAT!r}")
            self._lock = OwnerLock(self.root)
        except FileNotFoundError as error:
            raise SpaceUnusable(str(self.root), "there is no blob space there") from error
        except OSError as error:
            raise SpaceUnusable(str(self.root), _advice(error)) from error

    def is_readable(self) -> bool:
        """Whether the blob space can be read at all."""
        try:
            return self._format() == FORMAT
        except OSError:
            return False

    def blob(self, digest: Digest) -> Path:
        """Where the blob of this digest is, if it is here."""
        return self.root / "blobs" / digest.algorithm / digest.hex

    def blobs(self) -> Iterator[Digest]:
        """The digest of every directory that stands where a blob would."""
        yield from _digests(self.root / "blobs", stat.S_ISDIR)

    def tree(self, digest: Digest) -> Path:
        """Where the tree of several layers of this digest is, if it is here."""
        return self.root / "trees" / digest.algorithm / digest.hex

    def trees(self) -> Iterator[Digest]:
        """The digest of every file that stands where a tree would."""
        yield from _digests(self.root / "trees", stat.S_ISREG)

    def manifest(self, digest: Digest) -> Path:
        """Where the manifest of this digest is, if it is here."""
        return self.root / "manifests" / digest.algorithm / digest.hex

    def manifests(self) -> Iterator[Digest]:
        """The digest of every file that stands where a manifest would."""
        yield from _digests(self.root / "manifests", stat.S_ISREG)

    def new_ingest(self) -> Path:
        """A fresh directory that is gone after a crash."""
        return Path(tempfile.mkdtemp(dir=self._ingest))

    def publish(self, made: Path, target: Path) -> None:
        """Move what was made in `ingest` to its final name by one rename.

        What has that name by then is removed.
        """
        self._own_directory(target.parent)
        self.discard(target)
        made.rename(target)

    def discard(self, path: Path) -> None:
        """Remove what stands at `path`, if anything does: whole or not at all, also in a crash."""
        away = self.move_away(path)
        if away is not None:
            self.dispose(away)

    def dispose(self, away: Path) -> None:
        """Remove what was moved away; what the disk does not let go of, `sweep` tries again."""
        try:
            remove(away)
        except OSError:
            self._left.append(away)

    def sweep(self) -> None:
        """Try again to remove what could not be removed, as for want of descriptors."""
        left, self._left = self._left, []
        for away in filter(os.path.lexists, left):
            self.dispose(away)

    def move_away(self, path: Path) -> Path | None:
        """Take what stands at `path`, if anything does, to where it is to be removed."""
        # Nothing is created for it: it must work on a full disk.
        away = self._ingest / secrets.token_hex(16)
        try:
            return path.rename(away)
        except FileNotFoundError:
            return None

    def _format(self) -> str:
        return read(self.root / "VERSION", 100).decode("ascii", "replace").strip()

    def _check_format(self) -> None:
        try:
            found = self._format()
        except FileNotFoundError:
            found = ""
        if found == FORMAT:
            return
        if found:
            problem = (
                f"its VERSION is {found!r}, this blobserve reads {FORMAT!r}: choose another"
                " blobSpace.location, or remove the directory if it is an older blob space"
                " (what it held is pulled again)"
            )
            raise SpaceUnusable(str(self.root), problem)
        # `ingest` will be wiped: that must never happen to somebody's own directory.
        for name in _DIRECTORIES:
            if os.path.lexists(self.root / name):
                problem = (
                    f"it holds {name!r} but no VERSION, so it is no blob space: choose an empty"
                    " directory as blobSpace.location"
                )
                raise SpaceUnusable(str(self.root), problem)
        write(self.root / "VERSION", FORMAT.encode() + b"\n")
        sync(self.root / "VERSION", self.root)

    def _own_directory(self, path: Path) -> None:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        if not stat.S_ISDIR(path.lstat().st_mode):
            problem = f"{path.relative_to(self.root)} is a link or a file: remove it"
            raise SpaceUnusable(str(self.root), problem)


def footprint(path: Path) -> int:
    """Bytes that a file or a directory with its files is charged with; nothing if it is not here.

    Whole blocks for every file, and for a directory one more for itself and one for its name: the
    same on every file system, whether it compresses or keeps books of its own.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISDIR(status.st_mode):
        return blocks(status.st_size)
    return 2 * BLOCK + sum(footprint(each) for each in path.iterdir())


def blocks(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def remove(path: Path) -> None:
    """Remove a file, a link or a directory with all that is in it; links are not followed."""
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def read(path: Path, limit: int) -> bytes:
    """At most `limit` bytes of a file that is no link."""
    with open(path, "rb", opener=_opener) as file:
        return file.read(limit)


def write(path: Path, content: bytes) -> None:
    """Write a whole file, as it is on disk only after `sync`."""
    with open(path, "wb", opener=_opener) as file:
        file.write(content)


def checksum(path: Path) -> bytes:
    """The SHA-256 of a file."""
    hash_ = sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hash_.update(piece)
    return hash_.digest()


def sync(*paths: Path) -> None:
    """Return when these files or directories would survive a power cut."""
    for path in paths:
        fd = _opener(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _opener(path: str | Path, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _digests(directory: Path, is_kind: Callable[[int], bool]) -> Iterator[Digest]:
    for algorithm in directory.iterdir():
        if not stat.S_ISDIR(algorithm.lstat().st_mode):
            continue
        for path in algorithm.iterdir():
            try:
                digest = Digest.parse(f"{algorithm.name}:{path.name}")
            except MalformedReference:
                continue
            if is_kind(path.lstat().st_mode):
                yield digest


def _advice(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "it is not a directory: choose another blobSpace.location"
    if isinstance(error, PermissionError):
        return (
            "this user may not write to it: change its owner or choose another blobSpace.location"
        )
    return f"it cannot be used: {error.strerror or error}"
