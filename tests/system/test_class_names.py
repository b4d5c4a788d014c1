"""The names of classes: each is used once, and is a noun."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "blobserve"

USUAL = {"RefCounted", "Listing", "NoCoding", "_Token"}
"""Names that end like a participle but are none, or are terms of the field."""


def classes(path: Path) -> list[str]:
    """Return the names of the classes at the top level of a file."""
    return [
        node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
    ]


def test_no_class_name_is_used_twice() -> None:
    """A class name stands for one class of the package."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in classes(path):
            places[name].append(str(path.relative_to(ROOT)))
    assert len(places) > 200
    assert {name: each for name, each in places.items() if len(each) > 1} == {}


def test_no_class_is_named_by_a_participle() -> None:
    """A class is named by a noun; only errors may be named by a past participle."""
    participle = re.compile(r"(?:ed|ing|en)$")
    found = {
        name
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "errors.py"
        for name in classes(path)
        if participle.search(name)
    }
    assert found - USUAL == set()
