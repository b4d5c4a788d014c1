"""An application of Vite and React with a browser router."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.apps.hosted import FOR_EVER, RULES, Hosted, caching, hosted
from tests.support.parts.images import files_below
from tests.support.parts.npm import build, installed

BUILDS = {
    "live": {"VITE_BRANCH": "live"},
    "prefixed": {"VITE_BRANCH": "live", "SITE_BASE": "/shop/"},
    "pr-7": {"VITE_BRANCH": "pr-7"},
}
SITES = {
    "http://app.example.com": "live",
    "http://netlify.example.com": "live",
    "http://www.example.com/shop": "prefixed",
}
Builds = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """The files that Vite builds, by tag."""
    tree = installed("vite-react", tmp_path_factory.mktemp("apps"))
    found = {}
    for tag, environment in BUILDS.items():
        build(tree, environment)
        found[tag] = files_below(tree / "dist")
    return found


@pytest.fixture(scope="module")
def app(builds: Builds) -> Iterator[Hosted]:
    """The application in both dialects, below a prefix, and its previews."""
    sites = {
        "app.example.com": "live",
        "netlify.example.com": {"image": "live", "hostingDialect": "netlify"},
        "www.example.com/shop": "prefixed",
        "*.preview.example.com": "{1}",
    }
    with hosted(builds, sites) as it:
        yield it


@pytest.mark.parametrize("site", SITES)
def test_root_and_routes(app: Hosted, site: str) -> None:
    """The application starts at the root of its site, and its router changes the URL."""
    app.browser.open(f"{site}/")
    assert app.heading("Home of live")
    assert app.browser.shows("document.getElementById('cart').naturalWidth > 0")
    app.click("a[href$='/users/jane.doe']")
    assert app.heading("User jane.doe")
    assert app.location() == f"{site}/users/jane.doe"
    assert app.browser.page.problems == []


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    ("route", "heading"),
    [
        ("/users/anna", "User anna"),
        ("/users/jane.doe", "User jane.doe"),
        ("/users/Ren%C3%A9e?tab=1#top", "User Renée"),
        ("/report", "Report: 42"),
        ("/no/such/route", "No such route"),
    ],
)
def test_deep_links(app: Hosted, site: str, route: str, heading: str) -> None:
    """A route opens by its URL, and again when the page is reloaded."""
    for load in (lambda: app.browser.open(site + route), app.browser.reload):
        load()
        assert app.heading(heading)
        assert app.location() == site + route
        assert app.browser.page.answers[site + route.partition("#")[0]] == 200
        assert app.browser.page.problems == []


@pytest.mark.parametrize("site", SITES)
def test_a_lazy_chunk(app: Hosted, builds: Builds, site: str) -> None:
    """A route loads its own script, style and worker when it is first shown."""
    lazy = {
        f"{site}/{name}"
        for name in builds[SITES[site]]
        if name.startswith(("assets/Report-", "assets/sum-")) and not name.endswith(".map")
    }
    app.browser.open(f"{site}/")
    assert app.heading("Home")
    assert len(lazy) == 3
    assert not lazy & app.browser.page.answers.keys()
    app.click("a[href$='/report']")
    assert app.heading("Report: 42")
    color = "getComputedStyle(document.querySelector('h1')).color"
    assert app.browser.run(color) == "rgb(0, 128, 0)"
    assert {name for name in lazy if "sum-" not in name} <= app.browser.page.answers.keys()
    assert app.browser.page.problems == []


@pytest.mark.parametrize("site", SITES)
def test_redirect_rules(app: Hosted, site: str) -> None:
    """Rules of `_redirects` lead old addresses to routes."""
    app.browser.open(f"{site}/old?from=mail")
    assert app.heading("Report: 42")
    assert app.location() == f"{site}/report?from=mail"
    app.browser.open(f"{site}/people/jane.doe")
    assert app.heading("User jane.doe")
    assert app.location() == f"{site}/users/jane.doe"
    assert app.browser.page.problems == []
    old, people = app.fetch(f"{site}/old"), app.fetch(f"{site}/people/x")
    prefix = urlsplit(site).path
    assert (old.status, old.headers["Location"]) == (301, f"{prefix}/report")
    assert (people.status, people.headers["Location"]) == (302, f"{prefix}/users/x")


@pytest.mark.parametrize("site", SITES)
def test_header_rules(app: Hosted, site: str) -> None:
    """Rules of `_headers` add fields to pages and files, and the browser obeys them."""
    app.browser.open(f"{site}/users/anna")
    assert app.heading("User anna")
    fields = app.browser.page.fields
    [script] = [url for url in fields if "/assets/index-" in url and url.endswith(".js")]
    assert fields[f"{site}/users/anna"]["x-frame-options"] == "DENY"
    assert fields[script]["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in fields[f"{site}/users/anna"]
    assert app.browser.page.problems == []
    app.browser.run(
        "document.head.append(Object.assign(document.createElement('script'), "
        "{ text: 'window.inline = true' }))"
    )
    assert app.browser.run("window.inline === undefined")


@pytest.mark.parametrize("site", SITES)
def test_missing_files(app: Hosted, builds: Builds, site: str) -> None:
    """A missing script is 404, but in the dialect of Netlify its rule for all paths applies."""
    missing = f"{site}/assets/index-B0dqCkY2.js"
    answer = app.fetch(missing)
    if "netlify" in site:
        assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-cache")
        assert answer.body == builds["live"]["index.html"]
    else:
        assert (answer.status, answer.headers["Cache-Control"]) == (404, "no-store")
    app.browser.open(f"{site}/")
    status = app.browser.run(f"fetch('{missing}').then((answer) => answer.status)")
    assert status == answer.status


def test_the_rule_for_all_paths(app: Hosted) -> None:
    """The rule `/* /index.html 200` is reported in the dialect of Cloudflare alone."""
    lines = app.server.output.read_text().splitlines()
    [report] = [line for line in lines if "_redirects:4" in line]
    assert "the rule `/* /index.html 200` is skipped" in report
    assert "netlify" not in report
    assert not any("_headers:" in line for line in lines)


@pytest.mark.parametrize("site", SITES)
def test_every_file(app: Hosted, builds: Builds, site: str) -> None:
    """The files are those of the build; names with a hash are immutable, and no others.

    One of the six names has a hash that could be words.
    """
    found = caching(app, f"{site}/", builds[SITES[site]])
    hashed = {n for n in found if n.startswith("assets/") and not n.endswith(".js.map")}
    immutable = {name for name, value in found.items() if value == FOR_EVER}
    assert immutable <= hashed
    assert (len(hashed), len(immutable)) == (6, 5)
    assert any(name.startswith("assets/index-") and name.endswith(".js") for name in immutable)
    assert found["index.html"] == "no-cache"
    for name in RULES:
        assert app.fetch(f"{site}/{name}").body != builds[SITES[site]][name]
