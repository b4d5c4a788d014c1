"""Errors of the disk: lost bytes, a full disk, or a temporary failure.

Pure. The handling of damage is in `blobserve.store.space.repair`.
"""

from __future__ import annotations

import errno
import os
import sqlite3

from blobserve.errors import BlobserveError, DiskFailed, DiskFull

_LOST = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.ENXIO, errno.ESTALE)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_lost(error: OSError) -> bool:
    """Return whether an error of reading means that the bytes are lost."""
    return error.errno in _LOST


def is_full(error: BaseException | None) -> bool:
    """Return whether an error means that the disk, or the user's quota on it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def typed(error: BaseException | None) -> BlobserveError | None:
    """Return the typed error for an error of the disk; None for any other error."""
    if is_full(error):
        return DiskFull()
    if isinstance(error, OSError):
        return DiskFailed(os.strerror(error.errno or errno.EIO))
    if isinstance(error, sqlite3.OperationalError):
        return DiskFull() if "full" in str(error) else DiskFailed(os.strerror(errno.EIO))
    return None
