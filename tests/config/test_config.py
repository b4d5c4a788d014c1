"""Configuration values: the rules of a repository, and the default paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.config import UNLISTED, BlobSpaceRules, Config, RepositoryRules
from blobserve.names.reference import Repository


def config(*keys: str, allow_any_repo: bool = False) -> Config:
    """Return a configuration with rules under these keys."""
    rules = {key: RepositoryRules(key=key) for key in keys}
    return Config(repos=rules, allow_any_repo=allow_any_repo)


def key_for(found: Config, name: str) -> str | None:
    """Return the key of the rules that apply to a repository."""
    rules = found.rules_for(Repository.parse(name))
    return rules.key if rules else None


def test_the_longest_key_wins() -> None:
    """The longest of the matching keys applies, and an exact name before every pattern."""
    found = config("r.example/*", "r.example/team/*", "r.example/team/site", "r.example/team/a/*")
    assert key_for(found, "r.example/team/site") == "r.example/team/site"
    assert key_for(found, "r.example/team/other") == "r.example/team/*"
    assert key_for(found, "r.example/team/a/b/c") == "r.example/team/a/*"
    assert key_for(found, "r.example/team") == "r.example/*"
    assert key_for(found, "other.example/team/site") is None


def test_a_key_does_not_match_names_that_only_begin_alike() -> None:
    """A pattern ends at a slash: team/* does not match team-b."""
    found = config("r.example/team/*")
    assert key_for(found, "r.example/team-b/site") is None
    assert key_for(found, "r.example/team") is None


def test_repositories_that_are_not_listed() -> None:
    """With allowAnyRepo a repository without a matching key gets the default rules."""
    found = config("r.example/x", allow_any_repo=True)
    assert found.rules_for(Repository.parse("r.example/y")) is UNLISTED
    assert key_for(found, "r.example/x") == "r.example/x"


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join)


@given(st.lists(names, max_size=6), st.lists(names, max_size=6), names)
def test_rules_by_their_definition(exact: list[str], below: list[str], name: str) -> None:
    """The rules of a repository are those of the longest key that matches it."""
    keys = [f"r.example/{each}" for each in exact] + [f"r.example/{each}/*" for each in below]
    matching = [
        key
        for key in keys
        if key == f"r.example/{name}"
        or (key.endswith("/*") and f"r.example/{name}".startswith(key[:-1]))
    ]
    expected = max(matching, key=lambda key: (not key.endswith("*"), len(key)), default=None)
    assert key_for(config(*keys), f"r.example/{name}") == expected


def test_immutable_tags() -> None:
    """A tag is immutable if one of the globs matches all of it, with its case."""
    rules = RepositoryRules(immutable_tags=("commit-*", "v1.?"))
    assert rules.is_immutable_tag("commit-abc")
    assert rules.is_immutable_tag("v1.2")
    assert not rules.is_immutable_tag("Commit-abc")
    assert not rules.is_immutable_tag("v1.23")


@pytest.mark.parametrize(
    ("environ", "location"),
    [
        ({"CACHE_DIRECTORY": "/c/a:/c/b", "XDG_CACHE_HOME": "/x"}, "/c/a"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/blobserve"),
        ({"HOME": "/h"}, "/h/.cache/blobserve"),
    ],
)
def test_the_default_location(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], location: str
) -> None:
    """The default blob space is in the cache directory of systemd or of the user."""
    for name in ("CACHE_DIRECTORY", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert BlobSpaceRules().location == Path(location)
