"""Responses under ``/registry/...`` keep their bodies, whatever a browser says about itself.

``testdata/path_bodies.json`` has the bodies that the server sent before it knew sites. Clients
depend on them.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.parts.images import Image, Link, write_layout
from tests.support.parts.server import ROOT, Server

SITE = "registry.example/team/site"
IMAGE = Image.of(
    {
        "index.html": b"<html>index</html>",
        "app.js": b"0123456789",
        "docs/b.txt": b"two",
        "docs/a.txt": b"x" * 1536,
        "docs/<i>&.txt": b"markup",
        "docs/sub/page.html": b"page",
        "loop": Link("loop"),
    }
)
RECORDED = Path(__file__).parent / "testdata" / "path_bodies.json"
CASES: dict[str, tuple[str, str, dict[str, str]]] = {
    "index": ("GET", f"/{SITE}:v1/", {}),
    "file": ("GET", f"/{SITE}:v1/app.js", {}),
    "no slash": ("GET", f"/{SITE}:v1/docs", {}),
    "listing": ("GET", f"/{SITE}:v1/docs/", {}),
    "listing with a query": ("GET", f"/{SITE}:v1/docs/?sort=size&order=desc&filter=a", {}),
    "missing file": ("GET", f"/{SITE}:v1/no/such<b>.html", {}),
    "missing route": ("GET", f"/{SITE}:v1/no/such", {}),
    "loop": ("GET", f"/{SITE}:v1/loop", {}),
    "climbing path": ("GET", f"/{SITE}:v1/../x", {}),
    "missing tag": ("GET", f"/{SITE}:v9/", {}),
    "malformed reference": ("GET", "/x", {}),
    "root": ("GET", "/", {}),
    "not allowed": ("GET", "/registry.example/team/other:v1/", {}),
    "not cached": ("GET", f"/{SITE}:v2/", {"X-BlobServe-ReadOnly": "true"}),
    "fallback": ("GET", "/registry.example/app/site:v1/users/1", {}),
    "own page": ("GET", "/registry.example/app/site:v1/no.html", {}),
    "method": ("POST", f"/{SITE}:v1/", {"Content-Length": "0"}),
    "options": ("OPTIONS", f"/{SITE}:v1/no/such", {}),
    "variables": ("GET", f"/{SITE}:v1/", {"X-BlobServe-InlineVars": "{"}),
    "precondition": ("GET", f"/{SITE}:v1/app.js", {"If-Match": '"x"'}),
    "range": ("GET", f"/{SITE}:v1/app.js", {"Range": "bytes=99-"}),
    "websocket": ("GET", f"/{SITE}:v1/", {"Upgrade": "websocket", "Connection": "Upgrade"}),
    "long target": ("GET", f"/{SITE}:v1/" + "x" * 9000, {}),
    "large head": ("GET", f"/{SITE}:v1/", {f"X-{number}": "x" for number in range(120)}),
    "wrong content": ("GET", f"/{SITE}:broken/", {}),
    "silent registry": ("GET", "/127.0.0.1:{silent}/team/site:v1/", {}),
}
BROWSERS: dict[str, dict[str, str]] = {
    "program": {},
    "navigation": {
        "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
        "Sec-Fetch-Site": "none",
        "Sec-Fetch-User": "?1",
    },
    "page alone": {"Accept": "text/html"},
    "frame": {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    "script": {"Accept": "*/*", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
    "fetch": {"Accept": "text/plain", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
}


@pytest.fixture
def silent() -> Iterator[int]:
    """A port on loopback that accepts connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


def serving(directory: Path, silent: int, checkout: Path = ROOT) -> Server:
    """Return a server of the images."""
    broken = Image.of({"index.html": b"broken"}, "none")
    images = {"v1": IMAGE, "v2": IMAGE, "broken": broken}
    layout = write_layout(directory / "layout", images)
    blob = layout / "blobs" / "sha256" / broken.layers[0].digest.removeprefix("sha256:")
    blob.write_bytes(bytes(len(blob.read_bytes())))
    source = f"oci:{layout}"
    page = {"source": source, "fallback": "/index.html", "notFound": "/app.js"}
    repos: dict[str, Any] = {
        SITE: {"source": source, "listing": True},
        "registry.example/app/site": page,
        f"127.0.0.1:{silent}/team/site": {},
    }
    return Server(directory, {"timeout": "4s", "repos": repos}, checkout=checkout)


def body(server: Server, name: str, browser: str, silent: int) -> list[Any]:
    """Return the status, the type and the body of one case."""
    method, target, headers = CASES[name]
    answer = server.fetch(target.format(silent=silent), method, {**BROWSERS[browser], **headers})
    return [answer.status, answer.headers["Content-Type"], answer.body.decode("utf-8")]


def test_bodies(tmp_path: Path, silent: int, running: Callable[[Any], Any]) -> None:
    """Each answer by path has the recorded status, type and body for every kind of request."""
    server: Server = running(serving(tmp_path, silent))
    recorded = json.loads(RECORDED.read_text())
    assert list(recorded) == list(CASES)
    different = [
        (name, browser)
        for name in CASES
        for browser in (("program", "navigation") if name == "silent registry" else BROWSERS)
        if body(server, name, browser, silent) != recorded[name]
    ]
    assert different == []
