"""The key ``webhooks``: its forms, the messages of ``--check``, and the repositories of a push."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blobserve.config import Config, WebhookRules
from blobserve.configfile import load
from blobserve.errors import ConfigError
from blobserve.names.reference import Repository


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return the path of a good file of secrets."""
    path = tmp_path / "secret"
    path.write_text("one\n")
    path.chmod(0o600)
    return path


def loaded(webhooks: Any, **keys: Any) -> Config:
    """Return a configuration with these webhooks."""
    return load({"blobserve": {"allowAnyRepo": True, "webhooks": webhooks, **keys}})


def test_all_keys(secret: Path) -> None:
    """Both places may be configured, and several endpoints; nothing is the default."""
    endpoints = ["tcp:9400:interface=127.0.0.1", "tcp:9401"]
    config = loaded({"listen": endpoints, "path": "/-/hooks", "secretFile": str(secret)})
    assert config.webhooks == WebhookRules(tuple(endpoints), "/-/hooks", secret)
    assert config.warnings == ()
    assert load({"blobserve": {"allowAnyRepo": True}}).webhooks == WebhookRules()


@pytest.mark.parametrize(
    ("webhooks", "problem"),
    [
        ({"path": "/-/hooks"}, "webhooks: the key secretFile is missing"),
        ({"path": "hooks"}, "webhooks.path: expected a path that begins with /"),
        ({"path": "/"}, "it would hide every site: choose a path such as /-/hooks"),
        ({"path": "/a/"}, "expected a path without / at its end: write /a"),
        ({"path": "/a?b"}, "expected a plain path such as /-/hooks, without query and encoding"),
        ({"path": "/a%2f"}, "expected a plain path such as /-/hooks, without query and encoding"),
        ({"path": "/a//b"}, "expected a plain path such as /-/hooks, without query and encoding"),
        ({"path": "/a/../b"}, "expected a plain path such as /-/hooks, without query and encoding"),
        ({"listen": "9400"}, "expected endpoint description such as tcp:9400"),
        ({"listen": 9400}, "expected endpoint description such as tcp:9400"),
        ({"secret": "x"}, "webhooks.secret: unknown key; the nearest known one is secretFile"),
        ({"secretFile": "$HOME/s"}, "$HOME is not expanded: write the path itself"),
    ],
)
def test_problems(webhooks: dict[str, Any], problem: str) -> None:
    """A value that is wrong is named, with what to write."""
    with pytest.raises(ConfigError) as caught:
        loaded(webhooks)
    assert problem in str(caught.value)


def test_warnings(secret: Path, tmp_path: Path) -> None:
    """A file of secrets that is missing or unsafe is a warning, and so is a missing place."""
    missing = tmp_path / "missing"
    [warning] = loaded({"path": "/h", "secretFile": str(missing)}).warnings
    assert warning.endswith(
        f"webhooks.secretFile: cannot read {missing}: No such file or directory"
    )
    secret.chmod(0o644)
    [warning] = loaded({"path": "/h", "secretFile": str(secret)}).warnings
    assert warning.endswith(f"webhooks.secretFile: {secret} is open to every user (chmod o-rw)")
    secret.chmod(0o600)
    [warning] = loaded({"secretFile": str(secret)}).warnings
    assert "without listen and path, only an embedding application" in warning


def test_relative_path(secret: Path) -> None:
    """A relative path starts at the directory of the configuration file."""
    file = secret.parent / "c.yaml"
    file.write_text("blobserve: {allowAnyRepo: true, webhooks: {path: /h, secretFile: secret}}")
    assert load(file).webhooks.secret_file == secret


PLACES: dict[str, Any] = {
    "repos": {
        "a.example/team/shop": {"prePull": ["live"]},
        "b.example:5000/team/*": {},
        "docker.io/alpine": {},
    },
    "sites": {
        "one.example": "a.example/team/shop:live",
        "two.example": {"image": "a.example/team/shop:v2", "layers": "all"},
        "three.example": "c.example/team/shop:live",
        "*.four.example": "c.example/team/shop:{1}",
    },
}


@pytest.mark.parametrize(
    ("path", "registry", "expected"),
    [
        ("team/shop", None, {"a.example": 3, "b.example:5000": 1, "c.example": 1}),
        ("team/shop", "a.example", {"a.example": 3}),
        ("team/shop", "other.example", {}),
        ("team/other", None, {"b.example:5000": 1}),
        ("alpine", None, {"docker.io": 1}),
        ("library/alpine", "docker.io", {"docker.io": 1}),
        ("other/other", None, {}),
        ("Team/Shop", None, {}),
        ("../x", None, {}),
        ("x:y", None, {}),
        ("", None, {}),
    ],
)
def test_repositories(path: str, registry: str | None, expected: dict[str, int]) -> None:
    """A path is found under each registry of the configuration, in each scope of its sites."""
    config = load({"blobserve": PLACES})
    found: dict[str, int] = {}
    for each in config.repositories_at(path, registry):
        found[each.registry] = found.get(each.registry, 0) + 1
        assert config.pull_rules_for(each) is not None
    assert found == expected


def test_any_repository() -> None:
    """With allowAnyRepo, every repository of a registry that the configuration names is found."""
    registries = {"a.example": {"insecure": True}}
    config = load({"blobserve": {"allowAnyRepo": True, "registries": registries}})
    assert config.repositories_at("any/thing") == (Repository("a.example", "any/thing"),)


def test_expected_images() -> None:
    """Tags of prePull and fixed images of sites are expected, those of wildcards are not."""
    config = load({"blobserve": PLACES})
    found = {
        (str(image), bool(each.scope))
        for each in config.repositories_at("team/shop")
        for image in config.expected_images(each)
    }
    assert found == {
        ("a.example/team/shop:live", False),
        ("a.example/team/shop:live", True),
        ("a.example/team/shop:v2", True),
        ("c.example/team/shop:live", True),
    }
