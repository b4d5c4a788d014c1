"""A manual of VitePress with clean URLs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apps.hosted import FOR_EVER, Hosted, caching, hosted
from tests.support.parts.images import files_below
from tests.support.parts.npm import build, installed

ROOT = "http://manual.example.com/"
PREVIEW = "http://v2.preview.example.com/"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files that VitePress builds."""
    tree = installed("vitepress", tmp_path_factory.mktemp("apps"))
    build(tree)
    return files_below(tree / ".vitepress" / "dist")


@pytest.fixture(scope="module")
def manual(files: Files) -> Iterator[Hosted]:
    """The manual, and a preview of another version."""
    changed = {**files, "index.html": files["index.html"].replace(b"first steps", b"FIRST STEPS")}
    sites = {
        "manual.example.com": {"image": "v1", "cleanUrls": True},
        "*.preview.example.com": {"image": "{1}", "cleanUrls": True},
    }
    with hosted({"v1": files, "v2": changed}, sites) as it:
        yield it


def test_root_and_links(manual: Hosted) -> None:
    """The pages open one after another, each with the script of its own."""
    manual.browser.open(ROOT)
    assert manual.heading("Manual")
    hydrated = "document.querySelector('#app').__vue_app__"
    assert manual.browser.shows(hydrated)
    manual.click("main a[href='/guide/start']")
    assert manual.heading("First steps")
    assert manual.location() == f"{ROOT}guide/start"
    assert manual.browser.shows("document.querySelector('main img').naturalWidth === 64")
    manual.click("main a[href$='/reference#options']")
    assert manual.heading("Reference")
    assert manual.location() == f"{ROOT}guide/reference#options"
    scripts = {url.rpartition("/")[2].partition(".md.")[0] for url in manual.browser.page.answers}
    assert {"index", "guide_start", "guide_reference"} <= scripts
    assert manual.browser.page.problems == []


def test_deep_links(manual: Hosted) -> None:
    """A page opens by its clean URL, and again when it is reloaded; its script runs."""
    for load in (lambda: manual.browser.open(f"{ROOT}guide/reference"), manual.browser.reload):
        load()
        assert manual.heading("Reference")
        assert manual.browser.shows("document.querySelector('#app').__vue_app__")
        manual.click("#count")
        assert manual.browser.shows("document.querySelector('#count').innerText === 'Clicks: 1'")
        assert manual.location() == f"{ROOT}guide/reference"
        assert manual.browser.page.answers[f"{ROOT}guide/reference"] == 200
        assert manual.browser.page.problems == []


def test_a_lazy_chunk(manual: Hosted) -> None:
    """The search loads its script and its index when it is opened."""
    manual.browser.open(ROOT)
    assert manual.browser.shows("document.querySelector('.DocSearch-Button')")
    lazy = ("VPLocalSearchBox", "@localSearchIndexroot")
    assert not any(name in url for url in manual.browser.page.answers for name in lazy[:1])
    manual.click(".DocSearch-Button")
    assert manual.browser.shows("document.querySelector('.VPLocalSearchBox input')")
    manual.browser.run(
        "{ const box = document.querySelector('.VPLocalSearchBox input'); box.value = 'mistakes';"
        " box.dispatchEvent(new Event('input')); }"
    )
    assert manual.browser.shows("document.querySelector('.VPLocalSearchBox .result')")
    for name in lazy:
        assert any(name in url for url in manual.browser.page.answers)
    assert manual.browser.page.problems == []


def test_clean_urls(manual: Hosted) -> None:
    """The form with `.html` leads to the clean URL."""
    manual.browser.open(f"{ROOT}guide/start.html?from=mail#top")
    assert manual.heading("First steps")
    assert manual.location() == f"{ROOT}guide/start?from=mail#top"
    assert manual.browser.page.problems == []


def test_a_missing_page(manual: Hosted) -> None:
    """The page `404.html` of the build is shown for missing paths, with and without ending."""
    for path in ("no/such/page", "guide/none.html", "guide/v2.0"):
        manual.browser.open(ROOT + path)
        assert manual.heading("PAGE NOT FOUND")
        assert manual.browser.page.answers[ROOT + path] == 404
        assert manual.browser.page.problems[0] == f"404 {ROOT}{path}"
        assert all("404" in problem for problem in manual.browser.page.problems)


def test_rules(manual: Hosted) -> None:
    """Redirects lead to clean URLs, and fields are added to the pages of a folder."""
    for old, new in (("start", "guide/start"), ("v1/reference", "guide/reference")):
        manual.browser.open(ROOT + old)
        assert manual.browser.shows("document.querySelector('#app').__vue_app__")
        assert manual.location() == ROOT + new
        assert manual.browser.page.fields[ROOT + new]["x-part"] == "guide"
        assert manual.browser.page.problems == []
    assert "x-part" not in manual.fetch(ROOT).headers


def test_a_preview(manual: Hosted) -> None:
    """The preview of a version shows this version, and is not indexed."""
    manual.browser.open(PREVIEW)
    assert manual.browser.page.fields[PREVIEW]["x-robots-tag"] == "noindex"
    assert b"FIRST STEPS" in manual.fetch(PREVIEW).body
    manual.browser.open(f"{PREVIEW}guide/start")
    assert manual.heading("First steps")
    assert manual.browser.page.problems == []


def test_every_file(manual: Hosted, files: Files) -> None:
    """The files are those of the build; most names with a hash are immutable, and no others."""
    found = caching(manual, ROOT, files)
    hashed = {name for name in found if name.startswith("assets/")}
    immutable = {name for name, value in found.items() if value == FOR_EVER}
    assert immutable <= hashed
    assert len(immutable) >= 0.9 * len(hashed) > 20
    pages = {name for name in found if name.endswith(".html")}
    assert {found[name] for name in pages} == {"no-cache"}
