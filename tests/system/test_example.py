"""The first command of the README: the shipped configuration and its example image."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.parts.images import files_below
from tests.support.parts.server import ROOT, Response, Server
from tests.support.slack import SLACK

SITE = files_below(ROOT / "etc" / "site")
BY_PATH = "/blobserve.example/site:v1"


@pytest.fixture
def example(tmp_path: Path, running: Callable[[Server], Server]) -> Server:
    """Start the shipped configuration on a free port, with an empty blob space."""
    shipped = yaml.safe_load((ROOT / "etc" / "blobserve.yaml").read_text())
    [rules] = shipped["blobserve"]["repos"].values()
    rules["source"] = f"oci:{ROOT}/etc/example"
    return running(Server(tmp_path, shipped["blobserve"]))


def on_site(server: Server, path: str) -> Response:
    """Return the answer at the host of the site."""
    return server.fetch(path, headers={"Host": "localhost", "Sec-Fetch-Mode": "navigate"})


def test_the_urls_that_it_prints(example: Server) -> None:
    """The server prints the URL of the site, and then that of the image."""
    last = f"blobserve: {example.url}{BY_PATH}/\n"
    for _ in range(int(200 * SLACK)):
        if last in example.output.read_text():
            break
        time.sleep(0.05)  # the test waits for another process, and has no clock to advance
    assert f"blobserve: http://localhost:{example.port}/\n{last}" in example.output.read_text()


def test_the_readme_names_the_urls() -> None:
    """The README has the URL of the site and the URL by path."""
    text = (ROOT / "README.md").read_text()
    assert "It prints `http://localhost:8080/`" in text
    assert f"U=http://127.0.0.1:8080{BY_PATH}\n" in text


def test_the_site(example: Server) -> None:
    """The example has a deep link, a 404 page, a redirect and a header rule at its own host."""
    for path in ("/", "/docs/", "/docs/sites/"):
        answer = on_site(example, path)
        assert (answer.status, answer.body) == (200, SITE[f"{path[1:]}index.html"])
        assert answer.headers["X-Frame-Options"] == "DENY"
    for path in ("/no/such/page", "/_redirects", f"{BY_PATH}/"):
        answer = on_site(example, path)
        assert (answer.status, answer.body) == (404, SITE["404.html"])
        assert answer.headers["X-Frame-Options"] == "DENY"
    answer = on_site(example, "/about?a=1")
    assert (answer.status, answer.headers["Location"]) == (301, "/docs/?a=1")


def test_by_path(example: Server) -> None:
    """By path the rules of the example are ordinary files, and there is no site at `/`."""
    answer = example.fetch(f"{BY_PATH}/")
    assert (answer.status, answer.body) == (200, SITE["index.html"])
    assert "X-Frame-Options" not in answer.headers
    assert example.fetch(f"{BY_PATH}/_redirects").body == SITE["_redirects"]
    assert example.fetch(f"{BY_PATH}/about").status == 404
    assert example.fetch("/").status == 404


def test_its_pages_in_a_browser(example: Server, browser: Any) -> None:
    """Every page of the example opens without an error at both URLs, and so do its links."""
    site = f"http://localhost:{example.port}"
    for root in (site, example.url + BY_PATH):
        for path in ("/", "/docs/", "/docs/sites/"):
            browser.open(root + path)
            assert browser.page.problems == []
            links = browser.run("[...document.links].map((each) => each.href)")
            assert links
            for link in links:
                assert link.startswith(f"{root}/")
                where = example.fetch(link.removeprefix(site), headers={"Host": "localhost"})
                if root != site:
                    where = example.fetch(link.removeprefix(example.url))
                assert where.status == 200, link
    browser.open(f"{site}/no/such/page")
    assert browser.page.answers[f"{site}/style.css"] == 200
    missing = [f"404 {site}/no/such/page"]
    assert [each for each in browser.page.problems if not each.startswith("log:")] == missing
    assert browser.run("document.links[0].href") == f"{site}/"
    browser.open(f"{site}/about")
    assert browser.run("location.href") == f"{site}/docs/"
