"""A page that stays open over deploys; `full_deploys` does the same with 1,000 loads."""

from __future__ import annotations

import re

import pytest

from tests.apps.deploys import Files, built_in, chunks, hold_a_page_open, version


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files that Vite builds."""
    return built_in(tmp_path_factory.mktemp("apps"))


def test_versions(built: Files) -> None:
    """A version has names of its own for all that differs, and each name that it uses exists."""
    first, second = version(built, 1), version(built, 2)
    shared = chunks(first).keys() & chunks(second).keys()
    assert [name.partition("-")[0] for name in shared] == ["assets/cart"]
    assert len(chunks(second)) == len(chunks(built)) == 6
    for name, content in second.items():
        if not name.endswith(".map"):
            for used in re.findall(rb"[\w-]+-[\w-]{8}\.(?:js|css|svg)\b", content):
                assert f"assets/{used.decode()}" in second, name


@pytest.mark.parametrize("has_cache", [False, True], ids=["direct", "nginx"])
def test_a_page_that_stays_open(built: Files, has_cache: bool) -> None:
    """No lazy load fails over four deploys, two rollbacks and an outage of the registry."""
    hold_a_page_open(built, has_cache, deploys=4, loads=200)
