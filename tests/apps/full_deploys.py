"""A page that stays open over ten deploys, two rollbacks and an outage: 1,000 lazy loads."""

from __future__ import annotations

import pytest

from tests.apps.deploys import Files, built_in, hold_a_page_open


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files that Vite builds."""
    return built_in(tmp_path_factory.mktemp("apps"))


@pytest.mark.parametrize("has_cache", [False, True], ids=["direct", "nginx"])
def test_a_page_that_stays_open(built: Files, has_cache: bool) -> None:
    """No lazy load fails, and none has the bytes of another version than its name says."""
    hold_a_page_open(built, has_cache, deploys=10, loads=1000)
