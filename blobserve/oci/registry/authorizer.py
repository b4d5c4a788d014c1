"""The Authorization of requests to a registry, for each repository.

Challenges are answered with credentials, or with a token from the realm of the registry.
Credentials go only to the registry and to that realm.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from urllib.parse import urljoin

import attrs

from blobserve.errors import RegistryFailed, RegistryRefused
from blobserve.names.reference import Repository
from blobserve.oci.credentials.keychain import Credential, Credentials
from blobserve.oci.http.address_rules import Origin
from blobserve.oci.registry import challenge
from blobserve.oci.registry.challenge import Basic, Bearer
from blobserve.oci.registry.token_cache import TOKEN, Grant, TokenCache, basic, is_usable

UNLISTED = "it is not listed, so no credentials are used for it"
NO_CREDENTIALS = "no credentials were found for it, or it does not exist"
WRONG_CREDENTIALS = "the credentials that were found for it are wrong"
NOT_PERMITTED = "the credentials that were found for it are accepted, but do not permit pulling it"
NOT_ASKED_FOR = "credentials were found for it, but the registry does not ask for any"
UNKNOWN_SCHEME = "the registry requires an authentication scheme that blobserve does not support"

_REMEMBERED = 1000
_PULL_SCOPE = re.compile(r"repository(?:\([a-z0-9-]+\))?:([^\s:,]+):pull")


@attrs.frozen
class _Demand:
    """The challenge of a registry for one repository, with an absolute realm."""

    challenge: Bearer | Basic
    scopes: tuple[tuple[str, ...], ...] = ()
    """The sets of scopes to try in order; the last one that worked comes first."""


class Authorizer:
    """The authorizations for one registry, by repository.

    :param credentials: asked each time; None to be anonymous.
    """

    def __init__(self, tokens: TokenCache, credentials: Credentials | None) -> None:
        self._tokens = tokens
        self._credentials = credentials
        self._asked: OrderedDict[Repository, _Demand] = OrderedDict()

    async def unasked(self, repository: Repository) -> str | None:
        """Return the answer to the last challenge for this repository, which saves another 401."""
        asked = self._asked.get(repository)
        return None if asked is None else await self._meet(repository, asked)

    async def answer(
        self, repository: Repository, url: str, values: Sequence[str], sent: str | None
    ) -> str | None:
        """Return the answer to the WWW-Authenticate fields of a 401; None if there is none.

        `url` and `sent` are the URL and the Authorization of the request. A refused token is
        dropped, but the realm may give the same one again.
        """
        asked = challenge.parse(values)
        if asked is None:
            return None
        demand = _Demand(asked)
        if isinstance(asked, Bearer):
            absolute = attrs.evolve(asked, realm=_realm(repository, url, asked))
            demand = _Demand(absolute, _scopes(repository, asked))
        self._asked[repository] = demand
        if len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)
        return await self._meet(repository, demand, sent)

    async def why_refused(self, repository: Repository, status: int, values: Sequence[str]) -> str:
        """Return the reason of a final 401 or 403, with its WWW-Authenticate fields as `values`."""
        if self._credentials is None:
            return UNLISTED
        credential = await self._credential(repository)
        if not is_usable(credential):
            return NO_CREDENTIALS
        asked = challenge.parse(values) or self._asked.get(repository)
        if asked is None:
            return UNKNOWN_SCHEME if status == 401 else NOT_ASKED_FOR
        # A realm gives no token for wrong credentials, so these are right: see `TokenCache`.
        by_realm = isinstance(asked, Bearer) and not (credential and credential.registry_token)
        return WRONG_CREDENTIALS if status == 401 and not by_realm else NOT_PERMITTED

    async def _meet(
        self, repository: Repository, demand: _Demand, refused: str | None = None
    ) -> str | None:
        credential, asked = await self._credential(repository), demand.challenge
        if isinstance(asked, Basic):
            return basic(credential)
        if credential is not None and TOKEN.fullmatch(credential.registry_token):
            return f"Bearer {credential.registry_token}"
        refusal: Exception = RegistryRefused(str(repository))
        for scopes in demand.scopes:
            grant = Grant(repository, asked.realm, asked.service, scopes, credential)
            try:
                authorization = await self._authorization(grant, refused)
            except RegistryRefused as error:
                refusal = error
                continue
            if scopes != demand.scopes[0] and self._asked.get(repository) is demand:
                others = [each for each in demand.scopes if each != scopes]
                self._asked[repository] = attrs.evolve(demand, scopes=(scopes, *others))
            return authorization
        raise refusal

    async def _authorization(self, grant: Grant, refused: str | None) -> str:
        if refused is not None:
            self._tokens.drop(grant, refused.removeprefix("Bearer "))
        try:
            return f"Bearer {await self._tokens.token(grant)}"
        except RegistryRefused as error:
            if self._credentials is None:
                raise RegistryRefused(error.repository, UNLISTED) from error
            raise

    async def _credential(self, repository: Repository) -> Credential | None:
        if self._credentials is None:
            return None
        return await self._credentials.for_repository(repository)


def _realm(repository: Repository, url: str, asked: Bearer) -> str:
    """Return the absolute URL of a realm: RFC 3986 §5. A realm must not leave https."""
    realm = urljoin(url, asked.realm)
    try:
        origin = Origin.of(realm)
    except ValueError as error:
        raise RegistryFailed(repository.registry, "its token realm is not a valid URL") from error
    if Origin.of(url).scheme == "https" and origin.scheme != "https":
        raise RegistryFailed(repository.registry, "its token realm is not https")
    return realm


def _scopes(repository: Repository, asked: Bearer) -> tuple[tuple[str, ...], ...]:
    """Return the sets of scopes to ask the realm for, from the pull scopes of the challenge.

    A challenge may name a placeholder or another repository, so the scope of this repository is
    added. Some realms refuse unknown scopes, so each is then tried without the other.
    """
    found = [_PULL_SCOPE.fullmatch(each) for each in asked.scope.split()]
    stated = tuple(each[0] for each in found if each)
    own = (f"repository:{repository.path}:pull",)
    if not stated:
        return (own,)
    if any(each[1] == repository.path for each in found if each):
        return (stated,)
    return stated + own, stated, own
