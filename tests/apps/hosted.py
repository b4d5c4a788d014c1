"""Sites of built front ends, with a registry, a server and a browser of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from urllib.parse import quote, urljoin, urlsplit

import attrs

from tests.support.parts.browser import Browser
from tests.support.parts.images import Image
from tests.support.parts.programs import own_directory
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Response, Server

FOR_EVER = "public, max-age=31536000, immutable"
RULES = frozenset({"_headers", "_redirects"})


@attrs.frozen
class Hosted:
    """A server with sites, and a browser that finds every host name at this server."""

    server: Server
    browser: Browser

    def fetch(self, url: str) -> Response:
        """Return the answer to a GET of `url`, as `Browser` would send it but without codings."""
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        return self.server.fetch(target, headers={"Host": parts.netloc})

    def follow(self, url: str) -> Response:
        """Return the answer of `url` after at most one redirect."""
        answer = self.fetch(url)
        if answer.status in (301, 302):
            answer = self.fetch(urljoin(url, answer.headers["Location"]))
        return answer

    def heading(self, text: str) -> bool:
        """Return whether the page comes to show the heading `text`."""
        return self.browser.shows(f"document.querySelector('h1').innerText.startsWith({text!r})")

    def click(self, selector: str) -> None:
        """Click the first element that matches `selector`."""
        self.browser.run(f"document.querySelector({selector!r}).click()")

    def location(self) -> str:
        """Return the URL of the page."""
        return str(self.browser.run("location.href"))


@contextmanager
def hosted(
    tags: Mapping[str, Mapping[str, bytes]], sites: Mapping[str, object], repository: str = "app"
) -> Iterator[Hosted]:
    """Push the files of each tag as an image, and serve `sites`.

    A site is a tag, or a mapping with a tag as its `image`.
    """
    with ExitStack() as stack:
        directories = [stack.enter_context(own_directory()) for _ in range(3)]
        registry = DockerRegistry(directories[0])
        stack.callback(registry.stop)
        registry.start()
        for tag, files in tags.items():
            registry.push(Image.of(files), f"team/{repository}:{tag}")

        def complete(site: object) -> object:
            if isinstance(site, Mapping):
                return {**site, "image": complete(site["image"])}
            return f"{registry.host}/team/{repository}:{site}"

        named = {key: complete(site) for key, site in sites.items()}
        server = Server(directories[1], {"sites": named, "timeout": "60s"})
        stack.callback(server.stop)
        server.start()
        rules = f"--host-resolver-rules=MAP * 127.0.0.1:{server.port}"
        browser = Browser(directories[2], [rules])
        stack.callback(browser.stop)
        browser.start()
        yield Hosted(server, browser)


def caching(it: Hosted, root: str, files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the `Cache-Control` of each file below `root`, and check that its bytes are sent."""
    found = {}
    for name, content in files.items():
        if name not in RULES:
            answer = it.follow(f"{root}{quote(name)}")
            assert (name, answer.status, answer.body) == (name, 200, content)
            found[name] = answer.headers["Cache-Control"]
    return found
