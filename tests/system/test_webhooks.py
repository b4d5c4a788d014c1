"""Push to live: docker-registry sends its notifications, and the server serves the new image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.parts.images import Image
from tests.support.parts.programs import free_port
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Server

SECRET = "kestrel-7"
Pair = tuple[DockerRegistry, Server]
MakePair = Callable[..., Pair]


def notifying(url: str, **headers: list[str]) -> dict[str, object]:
    """Return the settings of a registry that posts its notifications to a URL."""
    endpoint = {"name": "blobserve", "url": url, "headers": headers}
    times = {"timeout": "2s", "threshold": 5, "backoff": "1s"}
    return {"notifications": {"endpoints": [{**endpoint, **times}]}}


@pytest.fixture
def pair(tmp_path: Path, part_directory: Any) -> Iterator[MakePair]:
    """Make a running registry and the server that it notifies."""
    started: list[Any] = []

    def make(kind: str, own: Callable[[str], dict[str, Any]]) -> Pair:
        secret, port = tmp_path / "secret", free_port()
        secret.write_text(f"{SECRET}\n")
        secret.chmod(0o600)
        (tmp_path / "server").mkdir()
        hooks: dict[str, Any] = {"secretFile": str(secret)}
        if kind == "listen":
            hooks["listen"] = f"tcp:{port}:interface=127.0.0.1"
            url = f"http://127.0.0.1:{port}/any"
            settings = notifying(url, Authorization=[f"Bearer {SECRET}"])
        else:
            hooks["path"] = "/-/hooks"
        server = Server(tmp_path / "server", {})
        if kind == "path":
            settings = notifying(f"{server.url}/-/hooks/{SECRET}")
        registry = DockerRegistry(part_directory(), settings)
        registries = {registry.host: {"insecure": True}}
        server.configure({"webhooks": hooks, "registries": registries, **own(registry.host)})
        for each in (registry, server):
            each.start()
            started.append(each)
        return registry, server

    yield make
    for each in reversed(started):
        each.stop()


def page(text: str) -> Image:
    """Return an image with this page."""
    return Image.of({"index.html": text.encode()})


def serves(server: Server, target: str, text: str, seconds: float = 8.0, **headers: str) -> bool:
    """Return whether the page has this text before some seconds have passed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = server.fetch(target, headers=headers)
        if answer.status == 200 and answer.body.startswith(text.encode()):
            return True
        time.sleep(0.05)  # the test waits for another process
    return False


@pytest.mark.parametrize("kind", ["listen", "path"])
def test_pushes(pair: MakePair, kind: str) -> None:
    """Each push is live soon, though its tag is trusted for a day; no secret is logged."""
    rules = {"tagMaxAge": "24h"}
    registry, server = pair(kind, lambda host: {"repos": {f"{host}/team/shop": rules}})
    target = f"/{registry.host}/team/shop:live/"
    registry.push(page("v0"), "team/shop:live")
    assert serves(server, target, "v0")
    for number in range(1, 6):
        registry.push(page(f"v{number}"), "team/shop:live")
        assert serves(server, target, f"v{number}")
    server.stop()
    log = server.output.read_text()
    assert SECRET not in log
    assert " 202 " in log
    if kind == "path":
        assert '"POST /-/hooks/*** HTTP/1.1" 202' in log


def test_sites(pair: MakePair) -> None:
    """A site with a tag that did not exist at the start is live soon after each push to it."""
    registry, server = pair(
        "listen",
        lambda host: {
            "sites": {
                "shop.example": {"image": f"{host}/team/shop:live", "tagMaxAge": "24h"},
                "*.preview.example": {"image": f"{host}/team/shop:{{1}}", "tagMaxAge": "12h"},
            }
        },
    )
    for text in ("one", "two"):
        registry.push(page(text), "team/shop:live")
        assert serves(server, "/", text, Host="shop.example")
        registry.push(page(f"pr {text}"), "team/shop:pr-7")
        assert serves(server, "/", f"pr {text}", Host="pr-7.preview.example")


def test_after_an_outage(pair: MakePair) -> None:
    """A notification that the registry could not deliver is delivered later, and counts."""
    registry, server = pair(
        "listen", lambda host: {"repos": {f"{host}/team/shop": {"tagMaxAge": "24h"}}}
    )
    target = f"/{registry.host}/team/shop:live/"
    registry.push(page("one"), "team/shop:live")
    assert serves(server, target, "one")
    server.stop()
    registry.push(page("two"), "team/shop:live")
    server.start()
    assert serves(server, target, "two", seconds=20)
