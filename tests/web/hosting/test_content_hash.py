"""Content hashes in file names."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest

from blobserve.web.hosting.content_hash import has_content_hash, is_immutable_name

BASE64URL = string.ascii_letters + string.digits + "-_"
TESTDATA = Path(__file__).parent / "testdata"
HASHED = (TESTDATA / "hashed_names.txt").read_text().splitlines()
UNHASHED = (TESTDATA / "unhashed_names.txt").read_text().splitlines()


@pytest.mark.parametrize("name", HASHED)
def test_hashed(name: str) -> None:
    """Names that Vite, Rollup, VitePress, webpack, esbuild and Parcel write have a hash."""
    assert has_content_hash(name.encode())


def test_random_names() -> None:
    """The hash of at least nine of ten random Vite names is found."""
    generator = random.Random(16)
    hashes = ("".join(generator.choices(BASE64URL, k=8)) for _ in range(100_000))
    found = sum(has_content_hash(f"index-{each}.js".encode()) for each in hashes)
    assert found >= 91_000


def test_random_hexadecimal_names() -> None:
    """The hash of practically each random webpack name with a digit and a letter is found."""
    generator = random.Random(16)
    hashes = [f"{generator.getrandbits(4 * size):0{size}x}" for size in (8, 16, 20) * 10_000]
    mixed = [each for each in hashes if not each.isdigit() and not each.isalpha()]
    found = sum(has_content_hash(f"main.{each}.js".encode()) for each in mixed)
    assert found >= 0.998 * len(mixed)


def test_unhashed() -> None:
    """No name in a list of usual file names has a hash."""
    assert len(UNHASHED) > 500
    assert [name for name in UNHASHED if has_content_hash(name.encode())] == []


@pytest.mark.parametrize(
    "name",
    [
        "index-BHxg-xhJ",  # no ending
        "index-BHxg-xhJ.7",
        "app-8e2f1c9a",
        "app.8e2f1c9a",  # an ending
        ".8e2f1c9a",
        "index-BHxg-xhJ.min.js",
        "index_BHxgxxhJ.js",
        "indexBHxg7xhJ.js",
        "BHxg7xhJ.js",
        "index-BHxg7xh.js",
        "index-BHxg7xhJK.js",
        "index-BHxg@xhJ.js",
        "index-BHxg\u00e9hJ.js",
        "app_8e2f1c9a.js",
        "app.8e2f1c9.js",
        "app.8e2F1c9a0b.js",
        "app." + "8e2f1c9a" * 8 + "8.js",
        "a" * 250 + "-BHxg7xhJ.js",
        "",
        ".",
        "-.js",
        "--------.js",
        "x-________.js",
    ],
)
def test_borders(name: str) -> None:
    """A hash has its length, its characters, its separator before it and the ending behind it."""
    assert not has_content_hash(name.encode())


@pytest.mark.parametrize(
    ("path", "is_immutable"),
    [
        ("_next/static/chunks/app.js", True),
        ("_next/static/", False),
        ("_next/static", False),
        ("_next/data.json", False),
        ("_astro/hoisted.js", True),
        ("_nuxt/entry.js", True),
        ("_nuxt/builds/", False),
        ("_app/immutable/entry/start.js", True),
        ("_app/version.json", False),
        ("assets/index-BHxg-xhJ.js", True),
        ("assets/fonts/inter-BHxg-xhJ.woff2", True),
        ("assets/index.js", False),
        ("assets/index-BHxg-xhJ.js/", False),
        ("assets/index-BHxg-xhJ.js/name.js", False),
        ("static/js/main.8e2f1c9a.js", True),
        ("static/js/main.js", False),
        ("index-BHxg-xhJ.js", False),
        ("docs/assets/index-BHxg-xhJ.js", False),
        ("docs/_next/static/app.js", False),
        ("myassets/index-BHxg-xhJ.js", False),
        ("Assets/index-BHxg-xhJ.js", False),
        ("", False),
    ],
)
def test_immutable_names(path: str, is_immutable: bool) -> None:
    """Folders of bundlers at the root of a site are immutable, some only for names with a hash."""
    assert is_immutable_name(path.encode()) is is_immutable
