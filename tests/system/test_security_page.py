"""Statements of the security page that the defaults and the shipped files can contradict."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from blobserve.config import BlobSpaceRules, Config, Limits
from blobserve.store.disk.directory import SpaceDirectory

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "security.md").read_text().split())


def test_defaults_without_a_bound_are_named() -> None:
    """The page names each default that bounds nothing, as long as it bounds nothing."""
    unbounded = {
        "maxSizeBytes": BlobSpaceRules().max_size,
        "limits.unpackedSize": Limits().unpacked_size,
        "limits.clientConnectionsPerAddress": Limits().client_connections_per_address,
    }
    limits = PAGE.partition("## Limits of the promises")[2]
    for key, default in unbounded.items():
        assert default is None
        assert f"`{key}`" in limits
    assert "decompression bombs end at `maxSizeBytes` or `limits.unpackedSize`, if" in PAGE
    assert Config().allow_any_repo is False


def test_the_mode_of_the_location(tmp_path: Path) -> None:
    """A location that the server makes is for its owner alone; one that exists keeps its mode."""
    assert "A directory that exists keeps its mode" in PAGE
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing").chmod(0o755)
    previous = os.umask(0)
    try:
        for name, mode in (("made", 0o700), ("existing", 0o755)):
            space = SpaceDirectory(tmp_path / name)
            space.take()
            space.leave()
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    finally:
        os.umask(previous)


def test_the_unit_writes_where_the_page_says() -> None:
    """The shipped unit may write to its cache directory and its private /tmp, and has no more."""
    assert "can write to its cache directory and its private `/tmp` alone" in PAGE
    unit = (ROOT / "etc" / "blobserve.service").read_text()
    for line in ("ProtectSystem=strict", "PrivateTmp=yes", "ProtectHome=yes", "DynamicUser=yes"):
        assert f"{line}\n" in unit
    writable = r"^(?:ReadWritePaths|StateDirectory|LogsDirectory|RuntimeDirectory|CacheDirectory)="
    assert re.findall(writable, unit, re.MULTILINE) == ["CacheDirectory="]
    assert "CapabilityBoundingSet=\n" in unit
