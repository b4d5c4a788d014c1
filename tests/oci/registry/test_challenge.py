"""Challenges in the forms that registries send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.oci.registry.challenge import Basic, Bearer, parse

REALM = "https://auth.example/token"
FULL = Bearer(REALM, "registry.example", "repository:a/b:pull", "invalid_token")


@pytest.mark.parametrize(
    "value",
    [
        f'Bearer realm="{REALM}",service="registry.example",scope="repository:a/b:pull",'
        'error="invalid_token"',
        f'bearer  Realm = "{REALM}" , SERVICE="registry.example", scope="repository:a/b:pull" ,'
        "error=invalid_token",
        f"BEARER realm={REALM},service=registry.example,scope=repository:a/b:pull,"
        "error=invalid_token",
        f'Bearer realm="{REALM}" service="registry.example" scope="repository:a/b:pull" '
        'error="invalid_token"',
        f',, Bearer realm="{REALM}",,service="registry\\.example",scope="repository:a/b:pull",'
        'error="invalid_token",x="a=\\"b\\", Basic realm=",',
    ],
)
def test_bearer(value: str) -> None:
    """A Bearer challenge is parsed with any case, spacing, quoting and order (A16)."""
    assert parse([value]) == FULL


def test_relative_realm() -> None:
    """A missing parameter is empty, and a realm may be relative (A18)."""
    assert parse(['Bearer realm="/token"']) == Bearer("/token")


def test_several_scopes() -> None:
    """Several scopes, or a pull,push scope, stay one text."""
    value = f'Bearer realm="{REALM}",scope="repository:a:pull,push repository:b:pull"'
    assert parse([value]) == Bearer(REALM, scope="repository:a:pull,push repository:b:pull")


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ([], None),
        ([""], None),
        (["Negotiate"], None),
        (["Negotiate YII=", 'Digest realm="x", nonce="y"'], None),
        (["Basic"], Basic()),
        (['BASIC realm="x"'], Basic()),
        (['Basic realm="x", charset="UTF-8"', f'Bearer realm="{REALM}"'], Bearer(REALM)),
        ([f'Basic realm="x", Bearer realm="{REALM}"'], Bearer(REALM)),
        ([f'Bearer realm="{REALM}", Basic realm="x"'], Bearer(REALM)),
        ([f'Negotiate, NTLM TlR==, Bearer realm="{REALM}", Basic realm="x"'], Bearer(REALM)),
        (["Negotiate Basic", "Negotiate Bearer"], None),
        (['Negotiate , Basic realm="x"'], Basic()),
        (['Bearer, Basic realm="x"'], Basic()),
    ],
)
def test_choice_of_scheme(values: list[str], chosen: object) -> None:
    """Bearer is preferred to Basic, in one field or in several.

    Row A16.
    """
    assert parse(values) == chosen


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer service=x",
        'Bearer realm=""',
        'Bearer realm="https://auth.example/to ken"',
        'Bearer realm="https://auth.example/\r\nX: y"',
        f'Bearer realm="{REALM}',
        f'Bearer realm="{REALM}\\"',
        f'Bearer realm="{REALM}", realm="https://evil.example/"',
        f'Bearer realm="{REALM}"x',
        f'realm="{REALM}"',
        f'Bearer realm=="{REALM}"',
        'Basic realm="x',
        '"Basic"',
        "=",
    ],
)
def test_malformed(value: str) -> None:
    """A malformed challenge, or one without a usable realm, is ignored.

    Row A17.
    """
    assert parse([value]) is None
    assert parse([value, 'Basic realm="x"']) == Basic()


@given(st.lists(st.one_of(st.text(), st.text('Bearer,Basic =\\"realm;:/ \t'))))
def test_hostile(values: list[str]) -> None:
    """Any text parses to a challenge or to none."""
    assert isinstance(parse(values), Bearer | Basic | None)


@given(st.text(st.characters(codec="latin-1")), st.text(st.characters(codec="latin-1")))
def test_quoting(service: str, scope: str) -> None:
    """Any text in quotes is parsed back."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    value = f"Bearer realm={REALM}, service={quoted(service)}, scope={quoted(scope)}"
    assert parse([value]) == Bearer(REALM, service, scope)


@pytest.mark.parametrize("unit", ["a", "a ", "a=", 'a="', '"', "\\", "a,", " ", ",", "a=b ", '\\"'])
def test_long_field(unit: str) -> None:
    """A megabyte of any text is parsed in linear time."""
    long = unit * (1_000_000 // len(unit))
    assert parse([long]) is None
    assert parse([f'Bearer realm="{long}']) is None
