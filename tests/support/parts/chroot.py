"""The kernel's resolution of paths in a chroot."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from pathlib import Path

_OPENAT2, _RESOLVE_IN_ROOT = 437, 0x10


def in_chroot(root: Path, path: bytes) -> bytes | str | None:
    """Return the bytes of a small file at `path` in a chroot, ``directory``, or None."""
    how = struct.pack("QQQ", os.O_RDONLY, 0, _RESOLVE_IN_ROOT)
    base = os.open(root, os.O_RDONLY)
    fd = ctypes.CDLL(None).syscall(_OPENAT2, base, path, how, len(how))
    os.close(base)
    if fd < 0:
        return None
    try:
        return "directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else os.read(fd, 1 << 20)
    finally:
        os.close(fd)
