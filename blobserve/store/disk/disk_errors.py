"""Damage: what tells that bytes are lost, from the disk being full or out of reach for the moment.

Pure. What is done about it is decided by `blobserve.store.space.repair`.
"""

from __future__ import annotations

import errno
import os
import sqlite3

from blobserve.errors import BlobserveError, DiskFailed, DiskFull

_LOST = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.ENXIO, errno.ESTALE)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_lost(error: OSError) -> bool:
    """Whether an error of reading means that the bytes are not to be had, now or later."""
    return error.errno in _LOST


def is_full(error: BaseException | None) -> bool:
    """Whether an error means that the disk, or our share of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def typed(error: BaseException | None) -> BlobserveError | None:
    """What an error of the disk means to whoever waits; None for any other."""
    if is_full(error):
        return DiskFull()
    if isinstance(error, OSError):
        return DiskFailed(os.strerror(error.errno or errno.EIO))
    if isinstance(error, sqlite3.OperationalError):
        return DiskFull() if "full" in str(error) else DiskFailed(os.strerror(errno.EIO))
    return None
