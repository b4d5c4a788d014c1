"""The how-to pages, followed to the letter with the programs that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest

from tests.support.followed_page import Follower
from tests.support.parts.programs import free_port, own_directory
from tests.support.parts.registry import DockerRegistry

BUILT = {
    "index.html": '<!doctype html>\n<html lang="en">\n  <head>\n    <title>shop</title>\n'
    '    <script type="module" crossorigin src="/assets/index-D_6Ay_gG.js"></script>\n'
    '  </head>\n  <body><div id="root"></div></body>\n</html>\n',
    "favicon.svg": '<svg xmlns="http://www.w3.org/2000/svg"/>\n',
    "assets/index-D_6Ay_gG.js": "document.title = location.pathname\n" * 100,
    "assets/index-D64VDMd1.css": "body { margin: 0 }\n",
}
"""The names that `vite build` gives to the files of its template, in place of the build."""

Following = Callable[[str, Mapping[str, str]], Follower]


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    """Return a registry without TLS."""
    with own_directory() as directory:
        running = DockerRegistry(directory)
        try:
            running.start()
            yield running
        finally:
            running.stop()


@pytest.fixture
def following(registry: DockerRegistry) -> Iterator[Following]:
    """Return a function that makes a reader of a page, with a built app in ``dist/``."""
    with ExitStack() as stack:

        def follow(page: str, replaced: Mapping[str, str]) -> Follower:
            directory, port = stack.enter_context(own_directory()), free_port()
            names = {"registry.example.com": registry.host, "localhost:8080": f"localhost:{port}"}
            settings = {"registries": {registry.host: {"insecure": True}}}
            follower = Follower(
                directory, page, {**names, **replaced}, settings, port, registry.host
            )
            stack.callback(follower.stop)
            for name, text in BUILT.items():
                follower.write(f"dist/{name}", text)
            return follower

        yield follow


@pytest.mark.parametrize("tool", ["podman", "buildah", "umoci"])
def test_host_a_vite_app(following: Following, tool: str) -> None:
    """An app is served at its own name after the steps for each tool that the page names."""
    replaced = {"team/shop": f"team/shop-{tool}"}
    if tool == "buildah":
        replaced["podman"] = "buildah"
    reader = following("host-a-vite-app.md", replaced)
    reader.follow(omitted="npm|podman" if tool == "umoci" else "npm|umoci|    app.example.com:\n")
