"""A static export of Next.js: `output: "export"`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apps.hosted import FOR_EVER, Hosted, caching, hosted
from tests.support.parts.images import files_below
from tests.support.parts.npm import build, installed

ROOT = "http://journal.example.com/"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files that Next.js exports."""
    tree = installed("next", tmp_path_factory.mktemp("apps"))
    build(tree)
    return files_below(tree / "out")


@pytest.fixture(scope="module")
def journal(files: Files) -> Iterator[Hosted]:
    """The export, and its previews."""
    sites = {
        "journal.example.com": {"image": "v1", "cleanUrls": True},
        "*.preview.example.com": {"image": "{1}", "cleanUrls": True},
    }
    with hosted({"v1": files}, sites) as it:
        yield it


def test_root_and_links(journal: Hosted) -> None:
    """The router of the client fetches the pages that follow the first."""
    journal.browser.open(ROOT)
    assert journal.heading("Journal")
    journal.browser.run("window.kept = true")
    for path, heading in (("about", "About"), ("posts/first", "Post first")):
        journal.click(f"a[href='/{path}']")
        assert journal.heading(heading)
        assert journal.location() == ROOT + path
    assert journal.browser.run("window.kept")
    data = [url for url in journal.browser.page.answers if ".txt?_rsc=" in url]
    assert {url.partition("?")[0] for url in data} >= {f"{ROOT}about.txt", f"{ROOT}posts/first.txt"}
    assert journal.browser.page.problems == []


@pytest.mark.parametrize(
    ("path", "heading"),
    [
        ("about", "About"),
        ("posts/first", "Post first"),
        ("posts/release-2.0", "Post release-2.0"),
    ],
)
def test_deep_links(journal: Hosted, path: str, heading: str) -> None:
    """A page opens by its URL without `.html`, and again when it is reloaded."""
    for load in (lambda: journal.browser.open(ROOT + path), journal.browser.reload):
        load()
        assert journal.heading(heading)
        assert journal.location() == ROOT + path
        assert journal.browser.page.answers[ROOT + path] == 200
        assert journal.browser.page.problems == []


def test_a_lazy_chunk(journal: Hosted) -> None:
    """A component loads its script when it is first shown."""
    journal.browser.open(f"{ROOT}about")
    assert journal.heading("About")
    assert journal.browser.shows("Object.keys(document.getElementById('open')).length > 0")
    before = set(journal.browser.page.answers)
    journal.click("#open")
    assert journal.browser.shows("document.getElementById('map')")
    [chunk] = [url for url in journal.browser.page.answers.keys() - before if url.endswith(".js")]
    assert chunk.startswith(f"{ROOT}_next/static/chunks/")
    assert journal.browser.page.fields[chunk]["cache-control"] == FOR_EVER
    assert journal.browser.page.problems == []


def test_a_missing_page(journal: Hosted) -> None:
    """The page `404.html` of the export is shown for missing paths."""
    for path in ("posts/second", "no/such.html"):
        journal.browser.open(ROOT + path)
        assert journal.heading("Not in the journal")
        assert journal.browser.page.answers[ROOT + path] == 404
        assert journal.browser.page.problems[0] == f"404 {ROOT}{path}"
        assert all("404" in problem for problem in journal.browser.page.problems)


def test_rules(journal: Hosted) -> None:
    """A redirect leads to a page, and a field has the part of its path."""
    journal.browser.open(f"{ROOT}blog/release-2.0")
    assert journal.heading("Post release-2.0")
    assert journal.location() == f"{ROOT}posts/release-2.0"
    assert journal.browser.page.fields[journal.location()]["x-post"] == "release-2.0"
    assert journal.browser.page.problems == []
    assert "x-post" not in journal.fetch(f"{ROOT}about").headers


def test_a_preview(journal: Hosted) -> None:
    """The preview of a version opens at its own host, and is not indexed."""
    preview = "http://v1.preview.example.com/"
    journal.browser.open(f"{preview}posts/first")
    assert journal.heading("Post first")
    assert journal.browser.page.fields[f"{preview}posts/first"]["x-robots-tag"] == "noindex"
    assert journal.browser.page.problems == []


def test_every_file(journal: Hosted, files: Files) -> None:
    """The files are those of the export; all below `_next/static/` are immutable, and no others."""
    found = caching(journal, ROOT, files)
    static = {name for name in found if name.startswith("_next/static/")}
    assert len(static) > 15
    assert {name for name, value in found.items() if value == FOR_EVER} == static
    assert {found[name] for name in found if name.endswith(".html")} == {"no-cache"}
