"""Files with secrets: read and judged, for the configuration and for its users.

Blocking. Texts of problems quote nothing of the content.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import attrs

_MOST_BYTES = 64 * 1024


@attrs.frozen
class SecretLines:
    """The secrets of a file, one a line, and the problem that an operator should know."""

    secrets: tuple[bytes, ...] = attrs.field(repr=False)
    problem: str | None = None


def read_secrets(path: Path) -> SecretLines:
    """Read the secrets of a file; blanks around a secret and empty lines do not count.

    A file that cannot be read has none, and its `problem` says why.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return SecretLines((), f"{path} is not a file")
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        return SecretLines((), f"cannot read {path}: {os.strerror(error.errno or 0)}")
    if len(content) > _MOST_BYTES:
        return SecretLines((), f"{path} is larger than {_MOST_BYTES // 1024} KiB")
    secrets = tuple(line.strip() for line in content.splitlines() if line.strip())
    if not secrets:
        return SecretLines((), f"{path} has no secret")
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        return SecretLines(secrets, f"{path} is open to every user (chmod o-rw)")
    return SecretLines(secrets)
