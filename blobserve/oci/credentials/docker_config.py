"""Docker's ``config.json``, in all forms and spellings that tools write.

Pure: bytes in, values out. It opens no file and runs no helper.
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable, Mapping
from typing import TypeVar

import attrs

from blobserve.names.reference import Repository, canonical_registry
from blobserve.oci.strict_json import parse_object

_IDENTITY_TOKEN_USER = "<token>"
_MEMBERS = ("auth", "username", "password", "identitytoken", "registrytoken")

T = TypeVar("T")


@attrs.frozen
class Credential:
    """A password, an identity token or a registry token; at least one is set.

    The registry's realm exchanges an identity token for other tokens. A registry token is sent as
    the Bearer token. `username` may be set with each.
    """

    username: str = ""
    password: str = attrs.field(default="", repr=False)
    identity_token: str = attrs.field(default="", repr=False)
    registry_token: str = attrs.field(default="", repr=False)

    @classmethod
    def of_login(cls, username: str, secret: str) -> Credential:
        """Return the credential of a user; the secret of ``<token>`` is an identity token."""
        if username == _IDENTITY_TOKEN_USER:
            return cls(identity_token=secret)
        return cls(username, secret)


@attrs.frozen
class AuthFile:
    """The content of one file, with the `problems` of its unusable entries. See `parse`."""

    problems: tuple[str, ...] = ()
    _auths: Mapping[str, Credential] = attrs.field(factory=dict, repr=False)
    _helpers: Mapping[str, str] = attrs.field(factory=dict)
    _store: str = ""

    @classmethod
    def parse(cls, content: bytes) -> AuthFile:
        """Read a file, which may be empty. An invalid entry does not affect the others.

        :raises ValueError: when the file as a whole is malformed; its text never quotes the file.
        """
        content = content.removeprefix(codecs.BOM_UTF8)
        if not content.strip():
            return cls()
        document = parse_object(content)
        problems: list[str] = []
        auths = _entries(document, "auths", _credential, problems)
        helpers = _entries(document, "credHelpers", _helper, problems)
        return cls(tuple(problems), auths, helpers, _helper(document.get("credsStore") or "") or "")

    def helpers(self, repository: Repository) -> tuple[str, ...]:
        """Return the names of helpers in order: that of the registry, then the default store."""
        return tuple(filter(None, (_best(self._helpers, repository), self._store)))

    def credential(self, repository: Repository) -> Credential | None:
        """Return the credential in the file itself."""
        return _best(self._auths, repository)


def _best(entries: Mapping[str, T], repository: Repository) -> T | None:
    """Return the entry with the longest key that matches this repository."""
    key = str(repository)
    while key:
        if key in entries:
            return entries[key]
        key = key.rpartition("/")[0]
    return None


def _entries(
    document: Mapping[str, object],
    member: str,
    read: Callable[[object], T | None],
    problems: list[str],
) -> dict[str, T]:
    """Return the entries of a member, converted by `read`; the first entry of a key counts.

    :raises ValueError: when the member is not an object.
    """
    entries = document.get(member)
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise ValueError(f"{member} is not a JSON object")
    found: dict[str, T] = {}
    for key, value in entries.items():
        try:
            entry = read(value)
        except ValueError as error:
            problems.append(f"{member} of {key}: {error}")
            continue
        canonical = _key(key)
        if entry is not None and canonical is not None:
            found.setdefault(canonical, entry)
    return found


def _key(text: str) -> str | None:
    """Return the registry or the prefix of repositories that a key means; None if invalid.

    Tools write hosts, URLs, and URLs of the API's root: ``https://registry.example.com/v2/``.
    """
    host, _, path = text.removeprefix("https://").removeprefix("http://").partition("/")
    registry = canonical_registry(host)
    prefix = path.rstrip("/")
    if registry is None or prefix in ("", "v1", "v2"):
        return registry
    return f"{registry}/{prefix}"


def _helper(value: object) -> str | None:
    """Return the name of a helper; None for empty text.

    :raises ValueError: when it is not text.
    """
    if not isinstance(value, str):
        raise ValueError("the name of a credential helper is not text")
    return value or None


def _credential(entry: object) -> Credential | None:
    """Read an entry of `auths`; return None for an empty one, which means "ask the store".

    :raises ValueError: when it is invalid.
    """
    if not isinstance(entry, dict):
        raise ValueError("it is not a JSON object")
    members = [entry.get(name) or "" for name in _MEMBERS]
    if not all(isinstance(text, str) for text in members):
        raise ValueError("a member is not text")
    if not any(members):
        return None
    auth, username, password, identity_token, registry_token = members
    if auth:
        username, password = _decoded(auth)
    login = Credential.of_login(username, password)
    credential = attrs.evolve(
        login,
        identity_token=identity_token or login.identity_token,
        registry_token=registry_token,
    )
    if not (identity_token or registry_token or (username and password)):
        raise ValueError("it has no user or no password")
    return credential


def _decoded(auth: str) -> tuple[str, str]:
    """Return user and password of ``base64(user:password)``; a password may have colons."""
    try:
        text = base64.b64decode("".join(auth.split()), validate=True).decode("utf-8")
    except ValueError:
        raise ValueError("auth is not base64") from None
    username, colon, password = text.rstrip("\0").partition(":")
    if not colon:
        raise ValueError("auth has no colon")
    return username, password
