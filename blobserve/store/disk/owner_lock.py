"""The lock of a blob space, and the question of who may change its files.

Blocking. The owner locks two things: the directory itself, and the file `lock` in it, which has its
process id. The kernel releases both when the process ends, so a file that is left behind has no
effect. The lock of the directory outlives a removed file. Some network file systems cannot lock a
directory; there the file alone protects.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from twisted.logger import Logger

from blobserve.errors import SpaceUnusable

_log = Logger()

_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class OwnerLock:
    """The lock of a blob space, held from its construction until `release`.

    :raises SpaceUnusable: when another owner, in this process or another, holds it.
    :raises OSError: when it cannot be locked.
    """

    def __init__(self, location: Path) -> None:
        self._location = location
        self._path = location / "lock"
        self._directory = os.open(location, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file = -1
        self._reported: int | None = None
        try:
            self._lock_directory()
            self._file = self._locked(os.open(self._path, _FILE | os.O_CREAT, 0o600))
        except BaseException:
            self.release()
            raise

    def hold(self) -> None:
        """Check that it is held. Make the file again if it was removed or replaced.

        :raises SpaceUnusable: when there is another owner, or another blob space in its place.
        """
        try:
            if not _is_same(self._directory, self._location.resolve()):
                # A disk that is not mounted leaves an empty directory.
                if os.path.lexists(self._location / "VERSION"):
                    problem = "another blob space is in its place: restart the server"
                    raise SpaceUnusable(str(self._location), problem)
                return
            if self._is_ours():
                return
            with suppress(FileNotFoundError):
                self._adopt(os.open(self._path, _FILE))
                return
            self._adopt(os.open(self._path, _FILE | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            if error.errno != self._reported:
                self._reported = error.errno
                _log.error(
                    "{path} cannot be locked again: {error}",
                    path=str(self._path),
                    error=error.strerror,
                )

    def release(self) -> None:
        """Release the lock. Idempotent."""
        descriptors, self._file, self._directory = (self._file, self._directory), -1, -1
        for descriptor in descriptors:
            if descriptor >= 0:
                # Closing is not enough: a process that was just forked has the descriptor, too.
                with suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    def _is_ours(self) -> bool:
        try:
            return _is_same(self._file, self._path)
        except FileNotFoundError:
            return False

    def _adopt(self, descriptor: int) -> None:
        """Lock another file in place of the one that was removed."""
        previous, self._file = self._file, self._locked(descriptor)
        os.close(previous)
        _log.warn(
            "{path} was removed or replaced while the server runs; it is locked again",
            path=str(self._path),
        )

    def _lock_directory(self) -> None:
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._used() from error
        except OSError as error:
            _log.info("the directory cannot be locked: {error}", error=error.strerror)

    def _locked(self, descriptor: int) -> int:
        """Lock an open file, write the process id into it, and return it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise self._used() from error
        except OSError:
            os.close(descriptor)
            raise
        # The process id is for a message only, so a full disk is no error.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        return descriptor

    def _used(self) -> SpaceUnusable:
        """Return the error for a blob space that has another owner."""
        owner = ""
        with suppress(OSError):
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
        problem = (
            f"already used by process {owner or '(unknown)'}: stop it or choose another"
            " blobSpace.location"
        )
        return SpaceUnusable(str(self._location), problem)


def exposure(location: Path, user: int | None = None) -> str | None:
    """Return a warning if others than `user` and root may change the blob space, else None.

    The default is the user of this process. A directory above the location counts as well: its
    writers can put another directory in the place of the location. The sticky bit forbids that, but
    does not keep others from adding files.
    """
    path, user = location.resolve(), os.geteuid() if user is None else user
    for each in (path, *path.parents):
        try:
            status = each.stat()
        except OSError:
            continue  # It is made when the server starts, for its user alone.
        if problem := _exposed(status, each == path, user):
            return f"{each} {problem}, and could change the content that is served"
    return None


def _exposed(status: os.stat_result, is_location: bool, user: int) -> str | None:
    if status.st_uid not in (user, 0):
        return f"belongs to another user (uid {status.st_uid}), who may write to it"
    if status.st_mode & stat.S_ISVTX and not is_location:
        return None
    if status.st_mode & stat.S_IWOTH:
        return "may be written by every user (chmod o-w); they can plant files"
    if status.st_mode & stat.S_IWGRP:
        return f"may be written by its group (gid {status.st_gid}; chmod g-w); it can plant files"
    return None


def _is_same(descriptor: int, path: Path) -> bool:
    """Return whether an open file or directory is the one at `path`, which may be no link."""
    return os.path.samestat(os.fstat(descriptor), path.lstat())
