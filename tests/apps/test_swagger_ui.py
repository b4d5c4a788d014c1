"""Swagger UI from its npm package, with a description of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apps.hosted import RULES, Hosted, caching, hosted
from tests.support.parts.images import files_below
from tests.support.parts.npm import installed

ROOTS = ("http://api.example.com/", "http://www.example.com/docs/api/")
OPERATION = "document.querySelector('#operations-pets-listPets')"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The package, in which some files are replaced or added."""
    tree = installed("swagger-ui", tmp_path_factory.mktemp("apps"))
    package = files_below(tree / "node_modules" / "swagger-ui-dist")
    assert len(package) > 20
    return {**package, **files_below(tree / "public")}


@pytest.fixture(scope="module")
def ui(files: Files) -> Iterator[Hosted]:
    """Swagger UI at a host of its own, and below a prefix."""
    sites = {"api.example.com": "v1", "www.example.com/docs/api": "v1"}
    with hosted({"v1": files}, sites) as it:
        yield it


@pytest.mark.parametrize("root", ROOTS)
def test_root_and_deep_links(ui: Hosted, root: str) -> None:
    """The page starts without and with the operation in its URL, and after a reload."""
    ui.browser.open(root)
    assert ui.browser.shows(OPERATION)
    assert "Pets" in ui.browser.run("document.querySelector('.info').innerText")
    assert ui.browser.page.answers[f"{root}openapi.json"] == 200
    assert ui.browser.page.problems == []
    ui.browser.open("about:blank")
    for load in (lambda: ui.browser.open(f"{root}#/pets/listPets"), ui.browser.reload):
        load()
        assert ui.browser.shows(f"{OPERATION}.classList.contains('is-open')")
        assert ui.browser.page.answers[root] == 200
        assert ui.browser.page.problems == []


@pytest.mark.parametrize("root", ROOTS)
def test_rules(ui: Hosted, root: str) -> None:
    """A redirect leads to a fragment below the prefix, and fields are added by file ending."""
    ui.browser.open(f"{root}operations/listPets")
    assert ui.browser.shows(f"{OPERATION}.classList.contains('is-open')")
    assert ui.location() == f"{root}#/pets/listPets"
    assert ui.browser.page.problems == []
    fields = ui.browser.page.fields
    assert fields[f"{root}openapi.json"]["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in fields[root]


@pytest.mark.parametrize("root", ROOTS)
def test_a_missing_page(ui: Hosted, root: str) -> None:
    """The page `404.html` of the image is shown for every missing path."""
    missing = f"{root}no/such/page"
    ui.browser.open(missing)
    assert ui.heading("Not in the API")
    assert ui.browser.page.answers == {missing: 404}


def test_the_prefix(ui: Hosted) -> None:
    """The prefix gets its slash, and other paths of its host are missing."""
    ui.browser.open("http://www.example.com/docs/api")
    assert ui.location() == ROOTS[1]
    assert ui.browser.shows(OPERATION)
    assert ui.browser.page.problems == []
    for path in ("", "docs/", "docs/api2", "docs/apis/"):
        assert ui.fetch(f"http://www.example.com/{path}").status == 404


@pytest.mark.parametrize("root", ROOTS)
def test_every_file(ui: Hosted, files: Files, root: str) -> None:
    """The files are those of the package, and none is immutable, since no name has a hash."""
    found = caching(ui, root, files)
    assert found.keys() == files.keys() - RULES
    assert found["index.html"] == found["oauth2-redirect.html"] == "no-cache"
    assert not any("immutable" in value for value in found.values())
    for name in RULES:
        assert ui.fetch(f"{root}{name}").status == 404
