"""The directory of a blob space: its names, its format and its lock.

Blocking. File names are never made from the content of an image, and no link below the location is
followed. Foreign files are left alone and not counted, except in `ingest`, which is wiped.

A blob space has one owner at a time, see `blobserve.store.disk.owner_lock`.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from twisted.logger import Logger

from blobserve.errors import MalformedReference, SpaceUnusable
from blobserve.names.digest import Digest
from blobserve.store.disk.files import BLOCK, read, remove, sync, write
from blobserve.store.disk.owner_lock import OwnerLock

FORMAT = "1"

FURNITURE = 16 * BLOCK
"""Bytes that every blob space is charged with: its directories, VERSION and lock."""

_DIRECTORIES = ("ingest", "blobs", "trees", "manifests")


_log = Logger()


class WrongDirectory(NotADirectoryError):
    """A link or a file in the place of a directory of a blob space."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        self.path = path


class SpaceDirectory:
    """The directory of one blob space. The constructor touches no file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ingest = root / "ingest"
        self._lock: OwnerLock | None = None
        self._undisposed: list[Path] = []
        self._reported: set[tuple[Path, int]] = set()

    def take(self) -> None:
        """Become its owner: create missing directories, check the format, wipe `ingest`.

        :raises SpaceUnusable: with a message that tells the operator the remedy.
        """
        try:
            # The location itself may be a link: systemd makes its cache directory one.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = OwnerLock(self.root)
            self._check_format()
            for name in _DIRECTORIES:
                _make_directory(self.root / name)
            for path in list(self._ingest.iterdir()):
                remove(path)
        except SpaceUnusable:
            self.leave()
            raise
        except WrongDirectory as error:
            self.leave()
            problem = f"{error.path.relative_to(self.root)} is a link or a file: remove it"
            raise SpaceUnusable(str(self.root), problem) from error
        except OSError as error:
            self.leave()
            raise SpaceUnusable(str(self.root), _remedy(error)) from error

    def leave(self) -> None:
        """Release the ownership. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def hold(self) -> None:
        """Check that it is still the owner, and make a lock file again that was removed.

        A blob space that is away, as an unmounted disk is, may come back.

        :raises SpaceUnusable: when it has another owner, or is another directory.
        """
        if self._lock is not None:
            self._lock.hold()

    def look(self) -> None:
        """Become its owner without touching any file but the lock.

        :raises SpaceUnusable: when there is no blob space of this format, or it has an owner.
        """
        try:
            if self._format() != FORMAT:
                raise SpaceUnusable(str(self.root), f"it is not of format {FORMAT!r}")
            self._lock = OwnerLock(self.root)
        except FileNotFoundError as error:
            raise SpaceUnusable(str(self.root), "there is no blob space there") from error
        except OSError as error:
            raise SpaceUnusable(str(self.root), _remedy(error)) from error

    def is_readable(self) -> bool:
        """Return whether the blob space can be read."""
        try:
            return self._format() == FORMAT
        except OSError:
            return False

    def check(self, path: Path) -> None:
        """Check that all directories above a path in the blob space are real, as far as they exist.

        The first time that one is not, the log says so.

        :raises WrongDirectory: when one is a link or a file. Nothing below it may be touched.
        """
        above = self.root
        for name in path.relative_to(self.root).parts[:-1]:
            above /= name
            try:
                status = above.lstat()
            except FileNotFoundError:
                return
            if not stat.S_ISDIR(status.st_mode):
                self._report(above, status.st_ino)
                raise WrongDirectory(above)

    def _report(self, path: Path, inode: int) -> None:
        if (path, inode) not in self._reported:
            self._reported.add((path, inode))
            kind = "a link" if path.is_symlink() else "a file"
            _log.error(
                "{path} is {kind} in place of a directory of the blob space: remove it",
                path=str(path),
                kind=kind,
            )

    def blob(self, digest: Digest) -> Path:
        """Return the path for the blob of this digest."""
        return self.root / "blobs" / digest.algorithm / digest.hex

    def blobs(self) -> Iterator[Digest]:
        """Yield the digest of every directory in the place of a blob."""
        yield from _digests(self.root / "blobs", stat.S_ISDIR)

    def tree(self, digest: Digest) -> Path:
        """Return the path for the merged index of this digest."""
        return self.root / "trees" / digest.algorithm / digest.hex

    def trees(self) -> Iterator[Digest]:
        """Yield the digest of every file in the place of a merged index."""
        yield from _digests(self.root / "trees", stat.S_ISREG)

    def manifest(self, digest: Digest) -> Path:
        """Return the path for the manifest of this digest."""
        return self.root / "manifests" / digest.algorithm / digest.hex

    def manifests(self) -> Iterator[Digest]:
        """Yield the digest of every file in the place of a manifest."""
        yield from _digests(self.root / "manifests", stat.S_ISREG)

    def new_ingest(self) -> Path:
        """Make a new temporary directory, which the next start removes after a crash."""
        self.check(self._ingest / "new")
        return Path(tempfile.mkdtemp(dir=self._ingest))

    def publish(self, made: Path, target: Path) -> None:
        """Move a file or directory from `ingest` to its final path by one rename.

        A file or directory that is already there is removed first.
        """
        self.check(target)
        _make_directory(target.parent)
        self.discard(target)
        made.rename(target)

    def discard(self, path: Path) -> None:
        """Remove the file or directory at `path`, if any; a crash removes all or nothing of it."""
        away = self.move_away(path)
        if away is not None:
            self.dispose(away)

    def dispose(self, away: Path) -> None:
        """Remove a path that was moved away; if that fails, `sweep` tries again."""
        try:
            self.check(away)
            remove(away)
        except OSError:
            self._undisposed.append(away)

    def sweep(self) -> None:
        """Try again to remove paths that `dispose` could not, as without descriptors."""
        undisposed, self._undisposed = self._undisposed, []
        for away in filter(os.path.lexists, undisposed):
            self.dispose(away)

    def move_away(self, path: Path) -> Path | None:
        """Move `path` to `ingest` for removal; return its new path, or None if there was none."""
        # No directory is created for it: it must work on a full disk.
        away = self._ingest / secrets.token_hex(16)
        self.check(path)
        self.check(away)
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
                " (its images are pulled again)"
            )
            raise SpaceUnusable(str(self.root), problem)
        # `ingest` is wiped later, so a foreign directory must be refused.
        for name in _DIRECTORIES:
            if os.path.lexists(self.root / name):
                problem = (
                    f"it holds {name!r} but no VERSION, so it is no blob space: choose an empty"
                    " directory as blobSpace.location"
                )
                raise SpaceUnusable(str(self.root), problem)
        write(self.root / "VERSION", FORMAT.encode() + b"\n")
        sync(self.root / "VERSION", self.root)


def _make_directory(path: Path) -> None:
    """Make a directory, unless it exists.

    :raises WrongDirectory: when a link or a file has its name.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise WrongDirectory(path)


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


def _remedy(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "it is not a directory: choose another blobSpace.location"
    if isinstance(error, PermissionError):
        return (
            "this user may not write to it: change its owner or choose another blobSpace.location"
        )
    return f"it cannot be used: {error.strerror or error}"
