"""The login: what a registry is shown, for each of its repositories.

Answers challenges with what the keychain has, or with a token of the registry's own realm.
Credentials go to the registry and to the realm that it names, and nowhere else.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from urllib.parse import urljoin

import attrs

from blobserve.errors import RegistryFailed
from blobserve.oci import challenge
from blobserve.oci.address import Origin
from blobserve.oci.challenge import Basic, Bearer
from blobserve.oci.credentials import Credential, Keychain
from blobserve.oci.reference import Repository
from blobserve.oci.tokens import TOKEN, Grant, Tokens, basic
from blobserve.threads import Threads

_REMEMBERED = 1000
_PULL_SCOPE = re.compile(r"repository(?:\([a-z0-9-]+\))?:[^\s:,]+:pull")


class Login:
    """What one registry is shown, for each of its repositories.

    :param keychain: None to be anonymous. Asked in `disk`, anew each time.
    """

    def __init__(self, tokens: Tokens, keychain: Keychain | None, disk: Threads) -> None:
        self._tokens = tokens
        self._keychain = keychain
        self._disk = disk
        self._asked: OrderedDict[Repository, Bearer | Basic] = OrderedDict()

    async def unasked(self, repository: Repository) -> str | None:
        """What the registry last asked for as this repository, so that it need not ask again."""
        asked = self._asked.get(repository)
        return None if asked is None else await self._meet(repository, asked)

    async def answer(
        self, repository: Repository, url: str, values: Sequence[str], sent: str | None
    ) -> str | None:
        """What to send, given a 401's WWW-Authenticate fields; None when we have nothing.

        `url` is what was asked for, and `sent` what that request carried: it is not sent again
        unless the realm insists on it.
        """
        asked = challenge.parse(values)
        if asked is None:
            return None
        if isinstance(asked, Bearer):
            asked = attrs.evolve(
                asked, realm=_realm(repository, url, asked), scope=_scope(repository, asked)
            )
        self._asked[repository] = asked
        if len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)
        return await self._meet(repository, asked, sent)

    async def _meet(
        self, repository: Repository, asked: Bearer | Basic, refused: str | None = None
    ) -> str | None:
        credential = await self._credential(repository)
        if isinstance(asked, Basic):
            return basic(credential)
        if credential is not None and TOKEN.fullmatch(credential.registry_token):
            return f"Bearer {credential.registry_token}"
        scopes = tuple(asked.scope.split())
        grant = Grant(repository, asked.realm, asked.service, scopes, credential)
        if refused is not None:
            self._tokens.drop(grant, refused.removeprefix("Bearer "))
        return f"Bearer {await self._tokens.token(grant)}"

    async def _credential(self, repository: Repository) -> Credential | None:
        if self._keychain is None:
            return None
        return await self._disk.run(self._keychain.for_repository, repository)


def _realm(repository: Repository, url: str, asked: Bearer) -> str:
    """The absolute URL of a realm: RFC 3986 §5. Never one that TLS does not protect any more."""
    realm = urljoin(url, asked.realm)
    try:
        origin = Origin.of(realm)
    except ValueError as error:
        raise RegistryFailed(repository.registry, "its token realm is no URL") from error
    if Origin.of(url).scheme == "https" and origin.scheme != "https":
        raise RegistryFailed(repository.registry, "its token realm is not https")
    return realm


def _scope(repository: Repository, asked: Bearer) -> str:
    """What to ask the realm for: what the registry says, as long as that is to pull."""
    scopes = [each for each in asked.scope.split() if _PULL_SCOPE.fullmatch(each)]
    return " ".join(scopes) or f"repository:{repository.path}:pull"
