"""Programs from Go modules at pinned versions, built into a directory of this run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.interop.commands import command

VERSIONS = {
    "github.com/google/go-containerregistry": "v0.22.1",
    "oras.land/oras": "v1.3.6",
    "github.com/regclient/regclient": "v0.11.7",
    "github.com/google/ko": "v0.19.1",
    "github.com/distribution/distribution/v3": "v3.1.2",
    "github.com/moby/buildkit": "v0.34.2",
}
"""The version of each module."""

PROGRAMS = {
    "crane": ("github.com/google/go-containerregistry", "/cmd/crane"),
    "oras": ("oras.land/oras", "/cmd/oras"),
    "regctl": ("github.com/regclient/regclient", "/cmd/regctl"),
    "ko": ("github.com/google/ko", ""),
    "registry": ("github.com/distribution/distribution/v3", "/cmd/registry"),
    "buildctl": ("github.com/moby/buildkit", "/cmd/buildctl"),
    "buildkitd": ("github.com/moby/buildkit", "/cmd/buildkitd"),
}
"""The module of each program, and the path of the package in it."""

_INDIRECT = frozenset(["github.com/moby/buildkit"])
"""Modules with ``exclude`` directives, which ``go install`` accepts only as a dependency."""

LONGEST = 1800.0
"""The time in seconds that one program may take to download and build."""


def version_of(name: str) -> Callable[[], str]:
    """Return a function that returns the pinned version of a program."""
    return lambda: VERSIONS[PROGRAMS[name][0]]


def install(directory: Path) -> None:
    """Build every program that `directory` does not have yet, and put it first in ``PATH``.

    :raises CommandFailed: if a program cannot be built.
    """
    for name, (module, package) in PROGRAMS.items():
        if not (directory / name).exists():
            with tempfile.TemporaryDirectory(prefix="blobserve-module-") as empty:
                _install(Path(empty), directory, module, package)
    os.environ["PATH"] = os.pathsep.join([str(directory), os.environ["PATH"]])


def _install(empty: Path, directory: Path, module: str, package: str) -> None:
    """Build one program into `directory`, with the directory `empty` for a module of our own."""
    environment = {"GOBIN": str(directory), "CGO_ENABLED": "0", "HOME": os.environ["HOME"]}

    def go(*arguments: str) -> None:
        command(
            "go", *arguments, directory=empty, environment=environment, user={}, longest=LONGEST
        )

    pinned = f"{module}{package}@{VERSIONS[module]}"
    if module in _INDIRECT:
        go("mod", "init", "example.com/programs")
        go("get", pinned)
        go("install", f"{module}{package}")
    else:
        go("install", pinned)
