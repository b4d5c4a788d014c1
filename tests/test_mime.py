"""Content types."""

from __future__ import annotations

import pytest

from blobserve.web.mime import content_type, is_html


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"index.html", b"text/html; charset=utf-8"),
        (b"a/b.c/MAIN.JS", b"text/javascript; charset=utf-8"),
        (b"main.js.map", b"application/json"),
        (b"module.wasm", b"application/wasm"),
        (b"codicon.ttf", b"font/ttf"),
        (b"logo.svg", b"image/svg+xml"),
        (b"archive.tar.gz", b"application/gzip"),
        (b"strange.\xff\xfe", b"application/octet-stream"),
        (b"LICENSE", b"application/octet-stream"),
        (b"docs.html/LICENSE", b"application/octet-stream"),
        (b".html", b"application/octet-stream"),
        (b"trailing.", b"application/octet-stream"),
        (b"", b"application/octet-stream"),
    ],
)
def test_types(name: bytes, expected: bytes) -> None:
    """A type depends on the last extension of the file's own name, in any case."""
    assert content_type(name) == expected


def test_pages() -> None:
    """HTML is told from what only sounds like it."""
    assert is_html(content_type(b"a.htm"))
    assert not is_html(content_type(b"a.xhtml"))
