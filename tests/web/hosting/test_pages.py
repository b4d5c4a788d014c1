"""The error pages and texts of sites."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from blobserve.web.hosting.pages import HEADERS, error_page, error_text, preparing_page
from blobserve.web.http.response import PHRASES

SITE = "app.example.com"
STATUSES = [400, 403, 404, 405, 408, 410, 412, 414, 416, 421, 431, 500, 502, 503, 504, 505, 507]
HOSTILE = "<script>alert(1)</script>\"'&\n\u202e\udc80{site}"


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""
        self.feed(page.decode("utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] and self.elements[-1][0] == "style" and not self.style:
            self.style = data
        else:
            self.text += data

    def links(self) -> list[str | None]:
        """Return the targets of the links."""
        return [each["href"] for tag, each in self.elements if tag == "a"]


def pages(site: str) -> list[bytes]:
    """Return all pages for a site."""
    made = [error_page(status, site, site, site) for status in (*STATUSES, 418, 599)]
    return [*made, preparing_page(site)]


@pytest.mark.parametrize("status", STATUSES)
def test_error_pages(status: int) -> None:
    """Each status has a page of its own, with the host of the site and a title."""
    page = Page(error_page(status, SITE))
    [heading] = re.findall(r"<h1>(.+?)</h1>", error_page(status, SITE).decode())
    assert page.text.count(SITE) == 2
    assert f"{heading} \u2013 {SITE}" in page.text
    assert error_page(status, SITE) not in [
        error_page(other, SITE) for other in STATUSES if other != status
    ]


@pytest.mark.parametrize("page", pages(SITE))
def test_every_page(page: bytes) -> None:
    """Each page is small, follows the colour scheme, fits small screens and loads nothing."""
    assert len(page) < 2000
    shown = Page(page)
    assert len(shown.style) < 1500
    assert ("html", {"lang": "en"}) in shown.elements
    assert ("meta", {"name": "color-scheme", "content": "light dark"}) in shown.elements
    assert any(each.get("name") == "viewport" for _, each in shown.elements)
    assert [tag for tag, _ in shown.elements].count("h1") == 1
    names = {name for _, each in shown.elements for name in each}
    assert not names & {"src", "style", "srcset"}
    assert not [name for name in names if name.startswith("on")]
    assert {tag for tag, _ in shown.elements} <= {
        *("html", "meta", "link", "title", "style", "main", "p", "h1", "a", "code", "progress")
    }
    assert b"url(" not in page
    assert b"@import" not in page


def test_policy() -> None:
    """The policy of the pages permits their style and nothing else."""
    policy = dict(HEADERS)[b"Content-Security-Policy"].decode()
    style = Page(error_page(404, SITE)).style
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert Page(preparing_page(SITE)).style == style


@pytest.mark.parametrize("page", pages(HOSTILE))
def test_hostile_names(page: bytes) -> None:
    """A name with markup, quotes or control characters is shown as text."""
    shown = Page(page)
    assert "script" not in {tag for tag, _ in shown.elements}
    assert "<script>alert(1)</script>\"'&\\u000a\\u202e\\udc80{site}" in shown.text
    assert "\u202e" not in page.decode("utf-8")


def test_ways_out() -> None:
    """A missing page leads to the front page of its site, and a passing failure to another try."""
    assert Page(error_page(404, SITE)).links() == ["/"]
    assert Page(error_page(404, SITE, "/docs/")).links() == ["/docs/"]
    assert Page(error_page(503, SITE)).links() == [""]
    assert Page(preparing_page(SITE)).links() == [""]


def test_request_id() -> None:
    """The page and the text of an internal error give the id of the request."""
    assert "under 7f3a-19." in Page(error_page(500, SITE, request_id="7f3a-19")).text
    assert "log" not in Page(error_page(500, SITE)).text
    assert error_text(500, "7f3a-19") == (
        b"Something went wrong on the server. See request 7f3a-19 in the server log.\n"
    )
    assert error_text(404) == b"This site has no page at this address.\n"


def test_unlisted_statuses() -> None:
    """A status without words of its own gets those of its class."""
    assert "cannot answer this request" in Page(error_page(418, SITE)).text
    assert "Server error" in Page(error_page(599, SITE)).text
    assert set(STATUSES) <= set(PHRASES)


@pytest.mark.parametrize("make", [error_text, lambda status: error_page(status, SITE)])
def test_no_image_names(make: Callable[[int], bytes]) -> None:
    """No page or text speaks of registries, repositories, images or tags."""
    for status in STATUSES:
        assert not re.search(rb"regist|repositor|image|layer|\btag\b", make(status))
