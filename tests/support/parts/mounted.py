"""A server whose blob space is on a file system of its own: a small one, or a full one.

The file system is in memory and in a mount namespace of the server's own, so an ordinary user can
have it, where the kernel lets users have namespaces; where not, the test skips.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.parts.programs import program
from tests.support.parts.server import Server


class Mounted(Server):
    """A server on a tmpfs with these mount `options`. See `Server` for the others."""

    def __init__(self, directory: Path, config: Mapping[str, object], options: str) -> None:
        space = directory / "space"
        space.mkdir()
        mount = f"mount -t tmpfs -o {options} tmpfs {space}"
        unshare = [program("unshare"), "-rm", "sh", "-c"]
        if subprocess.run([*unshare, mount], capture_output=True, check=False).returncode:
            pytest.skip("this kernel lets users have no mount namespaces")
        super().__init__(directory, config, None, [*unshare, f'{mount} && exec "$@"', "sh"])

    @property
    def inside(self) -> Path:
        """Its blob space, as it sees it."""
        return Path(f"/proc/{self.pid}/root{self.space}")

    def fill(self) -> Path:
        """Have somebody else take all that is left; the file that does."""
        filler = self.inside / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        return filler

    def free(self) -> int:
        """Bytes that are left."""
        status = os.statvfs(self.inside)
        return status.f_bavail * status.f_frsize
