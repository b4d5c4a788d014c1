"""The blob space as it lies on disk: its names, its format, one rename in and one rename out.

Blocking, and without memory: what is here is what the directory says. No name is ever made from
what an image holds, and no link below the location is followed. What others have put there is left
alone and not counted, but for `ingest`, which is wiped.

A blob space has one owner at a time. The lock is the kernel's: it ends with the process that holds
it, so a lock file that was left behind means nothing.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from blobserve.errors import MalformedReference, SpaceUnusable
from blobserve.names.digest import Digest
from blobserve.store.disk.files import BLOCK, read, remove, sync, write

FORMAT = "1"

FURNITURE = 16 * BLOCK
"""Bytes that are charged for what every blob space has: its directories, VERSION and lock."""

_DIRECTORIES = ("ingest", "blobs", "trees", "manifests")


class SpaceDirectory:
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


class OwnerLock:
    """Held from the moment it is made until `release`.

    :raises SpaceUnusable: when another owner, in this process or another, holds it.
    """

    def __init__(self, location: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(location / "lock", flags, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            problem = (
                f"already used by process {owner or '(unknown)'}: stop it or choose another"
                " blobSpace.location"
            )
            raise SpaceUnusable(str(location), problem) from error
        except OSError:
            os.close(self._fd)
            raise
        # For the words above alone: a full disk does not keep what is here from being served.
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Let another owner in; once only."""
        # Closing is not enough: a process that is just being forked has the descriptor too.
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
