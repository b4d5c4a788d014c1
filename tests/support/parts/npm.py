"""Front ends that npm and their own tools build, for tests that serve the result."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.parts.programs import program
from tests.support.parts.server import ROOT
from tests.support.slack import SLACK

_SOURCES = ROOT / "tests" / "testdata" / "apps"
_LONGEST = 180 * SLACK
_ENVIRONMENT = {"NEXT_TELEMETRY_DISABLED": "1"}


def installed(name: str, directory: Path) -> Path:
    """Return a copy of the front end `name` in `directory`, with the packages of its lock file.

    It skips the test if npm is missing or cannot fetch a package.
    """
    tree = shutil.copytree(_SOURCES / name, directory / name)
    installing = [program("npm"), "ci", "--ignore-scripts", "--prefer-offline", "--fetch-retries=1"]
    try:
        subprocess.run(installing, cwd=tree, check=True, timeout=_LONGEST)
    except subprocess.CalledProcessError:
        pytest.skip(f"npm cannot fetch the packages of {name}")
    return tree


def build(tree: Path, environment: Mapping[str, str] = {}) -> None:
    """Run the `build` script of the front end in `tree`."""
    subprocess.run(
        [program("npm"), "run", "build"],
        cwd=tree,
        env={**os.environ, **_ENVIRONMENT, **environment},
        check=True,
        timeout=_LONGEST,
    )
