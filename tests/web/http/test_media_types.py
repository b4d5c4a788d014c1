"""Content types."""

from __future__ import annotations

import pytest

from blobserve.web.http.media_types import content_type, is_compressible, is_html


@pytest.mark.parametrize(
    ("name", "text", "binary"),
    [
        (b"LICENSE", b"text/plain; charset=utf-8", b"application/octet-stream"),
        (b".profile", b"text/plain; charset=utf-8", b"application/octet-stream"),
        (b"a.unknown", b"text/plain; charset=utf-8", b"application/octet-stream"),
        (b"a.TS", b"text/plain; charset=utf-8", b"video/mp2t"),
        (b"a.bin", b"application/octet-stream", b"application/octet-stream"),
        (b"a.html", b"text/html; charset=utf-8", b"text/html; charset=utf-8"),
        (b"a.png", b"image/png", b"image/png"),
    ],
)
def test_by_content(name: bytes, text: bytes, binary: bytes) -> None:
    """The content decides for files without a known ending, and for .ts."""
    assert (content_type(name, 1), content_type(name, 0)) == (text, binary)
    assert content_type(name, None) == binary


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
        (b"scene.usdz", b"model/vnd.usdz+zip"),
        (b"map.geojson", b"application/geo+json"),
        (b"live.m3u8", b"application/vnd.apple.mpegurl"),
        (b"live.mpd", b"application/dash+xml"),
        (b"part.m4s", b"video/iso.segment"),
        (b"addon.xpi", b"application/x-xpinstall"),
        (b"app.apk", b"application/vnd.android.package-archive"),
        (b"texture.ktx2", b"image/ktx2"),
        (b"clip.3gp", b"video/3gpp"),
        (b"report.odt", b"application/vnd.oasis.opendocument.text"),
        (b"page.xslt", b"application/xslt+xml"),
        (b"graph.rdf", b"application/rdf+xml"),
        (b"tour.kml", b"application/vnd.google-earth.kml+xml"),
        (b"table.tsv", b"text/tab-separated-values; charset=utf-8"),
        (b"photo.jfif", b"image/jpeg"),
        (b"part.stl", b"model/stl"),
        (b"part.obj", b"model/obj"),
        (b"captions.ttml", b"application/ttml+xml"),
        (b"strange.\xff\xfe", b"application/octet-stream"),
        (b"LICENSE", b"application/octet-stream"),
        (b"docs.html/LICENSE", b"application/octet-stream"),
        (b".html", b"application/octet-stream"),
        (b"trailing.", b"application/octet-stream"),
        (b"", b"application/octet-stream"),
    ],
)
def test_types(name: bytes, expected: bytes) -> None:
    """The type depends on the last extension of the file name, in any case."""
    assert content_type(name) == expected


def test_pages() -> None:
    """HTML types are distinguished from similar names."""
    assert is_html(content_type(b"a.htm"))
    assert not is_html(content_type(b"a.xhtml"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (b"a.html a.css a.js a.txt a.md a.csv a.vtt a.json a.map a.webmanifest a.jsonld", True),
        (b"a.xml a.xhtml a.rss a.atom a.svg a.wasm a.gltf a.yaml a.ttf a.otf a.eot a.ico", True),
        (
            b"a.png a.jpg a.webp a.woff a.woff2 a.gz a.zip a.zst a.mp4 a.mp3 a.pdf a.glb a.vsix",
            False,
        ),
        (b"a a.bin LICENSE a.docx", False),
    ],
)
def test_what_is_compressed(names: bytes, expected: bool) -> None:
    """Text types are worth compressing, and compressed types are not."""
    for name in names.split():
        assert is_compressible(content_type(name)) is expected, name
