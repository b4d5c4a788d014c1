"""One owner per blob space.

The lock is the kernel's: it ends with the process that holds it, however that ends, so a lock file
that was left behind means nothing. Blocking, but never for long.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from blobserve.errors import SpaceUnusable


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
