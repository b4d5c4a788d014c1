"""A server with its blob space on its own file system, which can be small or full.

The file system is a tmpfs in a mount namespace of the server. An ordinary user can have one if the
kernel permits user namespaces; otherwise the test is skipped.
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
    """A server on a tmpfs with these mount `options`; see `Server` for the other arguments."""

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
        """Its blob space inside the namespace."""
        return Path(f"/proc/{self.pid}/root{self.space}")

    def fill(self) -> Path:
        """Fill the file system; return the file that does."""
        filler = self.inside / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        return filler

    def free(self) -> int:
        """Return the number of free bytes."""
        status = os.statvfs(self.inside)
        return status.f_bavail * status.f_frsize
