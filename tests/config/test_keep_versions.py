"""The keys about earlier versions: values, defaults, problems and warnings."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from blobserve.config import Config, KeepVersions
from blobserve.configfile import load
from blobserve.errors import ConfigError, MalformedReference
from blobserve.names.reference import Reference

REPOSITORY = "registry.example.com/team/site"
TAG = f"{REPOSITORY}:live"
DAY = 86400.0


def loaded(rules: Mapping[str, object] | None, own: Mapping[str, object] = {}) -> Config:
    """Return a configuration with the site ``a.example``, and maybe with its repository."""
    repos = {} if rules is None else {REPOSITORY: rules}
    return load({"blobserve": {"repos": repos, "sites": {"a.example": {"image": TAG, **own}}}})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, KeepVersions(10, 7 * DAY)),
        (None, KeepVersions()),
        ({"count": 1, "for": "1d12h"}, KeepVersions(1, 1.5 * DAY)),
        ({"paths": ["lib/*"]}, KeepVersions(paths=("lib/*",))),
        ({"paths": []}, KeepVersions(paths=())),
        ({"count": 0}, None),
        (False, None),
    ],
)
def test_values(value: object, expected: object) -> None:
    """`keepVersions` has a number, an age and paths; 0 and false turn it off."""
    if value is not None:
        assert loaded({"keepVersions": value}).repos[REPOSITORY].versions == expected
    own = {} if value is None else {"keepVersions": value}
    assert loaded(None, own).sites["a.example"].rules.versions == expected


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (True, "keepVersions: expected mapping such as {count: 10, for: 7d}, or false"),
        (5, "keepVersions: expected mapping such as {count: 10, for: 7d}, or false"),
        ([], "keepVersions: expected mapping such as {count: 10, for: 7d}, or false"),
        ({"count": -1}, "count: expected whole number from 0 to 100, got number -1"),
        ({"count": 101}, "count: expected whole number from 0 to 100"),
        ({"count": 1.5}, "count: expected whole number from 0 to 100"),
        ({"count": "many"}, "count: expected whole number from 0 to 100"),
        ({"for": "0s"}, "for: must be greater than zero"),
        ({"for": "7 days"}, "for: expected duration"),
        ({"for": 7}, "for: expected duration"),
        ({"paths": "assets/*"}, 'paths: expected list, got text "assets/*"'),
        ({"paths": ["^a.*$"]}, "paths[0]: "),
        ({"number": 3}, "unknown key; the nearest known one is"),
    ],
)
def test_problems(value: object, problem: str) -> None:
    """Any other value is an error that names the key, for repositories and for sites."""
    for rules, own in (({"keepVersions": value}, {}), (None, {"keepVersions": value})):
        with pytest.raises(ConfigError) as raised:
            loaded(rules, own)
        assert problem in str(raised.value)


def test_flags_without_versions() -> None:
    """A warning names a flag that has no effect."""
    for rules, own, expected in (
        ({}, {"versionHeader": True, "versionCookie": True}, []),
        ({"keepVersions": {}, "versionHeader": True}, {}, []),
        ({"versionHeader": True}, {}, ["versionHeader: has no effect on URLs of this repository"]),
        ({"versionCookie": False}, {}, []),
        (
            None,
            {"keepVersions": False, "versionCookie": True},
            ["versionCookie: has no effect, because keepVersions is off"],
        ),
    ):
        warnings = loaded(rules, own).warnings
        assert len(warnings) == len(expected)
        for warning, text in zip(warnings, expected, strict=True):
            assert text in warning


def test_sites_that_share_a_tag() -> None:
    """The store keeps all versions that any site of a tag keeps."""
    sites = {
        "a.example": {"image": TAG, "keepVersions": {"count": 3, "for": "9d"}},
        "b.example": {"image": TAG, "keepVersions": {"count": 5, "for": "1d"}},
        "c.example": {"image": TAG, "keepVersions": False},
    }
    for order in (sorted(sites), sorted(sites, reverse=True)):
        config = load({"blobserve": {"sites": {name: sites[name] for name in order}}})
        rules = config.pull_rules_for(config.sites["a.example"].reference().repository)
        assert rules is not None
        assert rules.versions == KeepVersions(5, 9 * DAY)


def test_names_of_pins() -> None:
    """The name of a pin is a site with one tag, or a reference by tag with all its sites."""
    sites = {
        "a.example": TAG,
        "b.example": {"image": TAG, "tagMaxAge": "1s"},
        "*.c.example": f"{REPOSITORY}:{{1}}",
        "d.example": f"{REPOSITORY}@sha256:{'a' * 64}",
        "e.example": {"redirect": "a.example"},
    }
    config = load({"blobserve": {"repos": {REPOSITORY: {}}, "sites": sites}})
    a, b = (config.sites[name].reference() for name in ("a.example", "b.example"))
    assert config.tags_named("a.example") == {a}
    assert config.tags_named(TAG) == {a, b, Reference.parse(TAG)}
    assert config.tags_named("registry.example.com/other:v1") == set()
    for name in ("*.c.example", "d.example", "e.example", "f.example", f"{TAG}@sha256:{'a' * 64}"):
        with pytest.raises(MalformedReference):
            config.tags_named(name)
    alone = load({"blobserve": {"sites": {"a.example": TAG}}})
    assert alone.tags_named(TAG) == {alone.sites["a.example"].reference()}
