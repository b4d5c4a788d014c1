"""Tokens from the realm of a registry, and their cache.

A token is used only for the repository, credential and scopes for which it was issued, until it
expires. See the Distribution token specification, "Token authentication" and "OAuth2".
"""

from __future__ import annotations

import base64
import json
import re
from collections import OrderedDict
from urllib.parse import urlencode

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.config import Limits
from blobserve.errors import RegistryFailed, RegistryRefused
from blobserve.names.reference import Repository
from blobserve.oci.credentials.keychain import Credential
from blobserve.oci.http.client import Client
from blobserve.oci.http.response import BodyTooLong, Request, Response
from blobserve.oci.http.retry import RetryPolicy

_SHORTEST_LIFE, _LONGEST_LIFE = 60.0, 3600.0
_RENEWED_EARLY = 5.0
_REMEMBERED = 1000
_CLIENT = "blobserve"
_NO_OAUTH = (400, 401, 404, 405)

TOKEN = re.compile(r"[!-~]+")
"""A token that is valid in a header field."""

_log = Logger()


@attrs.frozen
class Grant:
    """The key of a token in the cache. `realm` is an absolute URL."""

    repository: Repository
    realm: str
    service: str
    scopes: tuple[str, ...]
    credential: Credential | None


@attrs.frozen
class _Token:
    text: str = attrs.field(repr=False)
    expires: float


class TokenCache:
    """A cache of tokens until shortly before they expire. Callers share a running request.

    Failures are not cached. Cancelling a caller does not affect the others. Cancelling the last one
    closes the connection.
    """

    def __init__(
        self, client: Client, patience: RetryPolicy, clock: IReactorTime, limits: Limits
    ) -> None:
        self._client = client
        self._patience = patience
        self._clock = clock
        self._limits = limits
        self._tokens: OrderedDict[Grant, _Token] = OrderedDict()
        self._asking: dict[Grant, _SharedCall] = {}

    async def token(self, grant: Grant) -> str:
        """Return a token for `grant`, from the cache or from the realm."""
        known = self._tokens.get(grant)
        if known is not None and self._clock.seconds() < known.expires - _RENEWED_EARLY:
            return known.text
        shared = self._asking.get(grant)
        if shared is None:
            shared = self._asking[grant] = _SharedCall()
            shared.begin(Deferred.fromCoroutine(self._renew(grant)))
        return await shared.wait()

    def drop(self, grant: Grant, text: str) -> None:
        """Drop this token, which the registry did not accept."""
        known = self._tokens.get(grant)
        if known is not None and known.text == text:
            del self._tokens[grant]

    async def _renew(self, grant: Grant) -> str:
        try:
            token = await self._patience.persist(lambda: self._ask(grant))
        finally:
            del self._asking[grant]
        self._tokens[grant] = token
        self._tokens.move_to_end(grant)
        if len(self._tokens) > _REMEMBERED:
            self._tokens.popitem(last=False)
        return token.text

    async def _ask(self, grant: Grant) -> _Token:
        if grant.credential is not None and grant.credential.identity_token:
            response = await self._client.ask(_oauth_request(grant, grant.credential))
            if response.status not in _NO_OAUTH:
                return await self._read(grant, response)
            await response.discard()
        return await self._read(grant, await self._client.ask(_get_request(grant)))

    async def _read(self, grant: Grant, response: Response) -> _Token:
        registry = grant.repository.registry
        await response.unless_transient()
        if response.status != 200:
            status, code = response.status, await response.error_code()
            _log.warn("realm of {r}: {status} {code}", r=registry, status=status, code=code)
            if status in (401, 403):
                raise RegistryRefused(str(grant.repository), _reason(grant, response))
            where = f"its token realm at {response.origin.authority}"
            raise RegistryFailed(registry, f"{where} answered {status}")
        try:
            content = await response.read(self._limits.token_size)
            return _parse(content, self._clock.seconds())
        except (BodyTooLong, ValueError, RecursionError) as error:
            problem = "its token realm sent no valid token"
            raise RegistryFailed(registry, problem) from error


def _reason(grant: Grant, response: Response) -> str:
    """Return the reason of a 401 or 403 of a realm."""
    where = f"its token realm at {response.origin.authority}"
    if not is_usable(grant.credential):
        return f"no credentials were found for it, and {where} requires some"
    if response.status == 401:
        return f"{where} says that the credentials that were found for it are wrong"
    return f"{where} says that the credentials that were found for it do not permit pulling it"


class _SharedCall:
    """One result for many callers, each with its own Deferred."""

    def __init__(self) -> None:
        self._waiters: list[Deferred[str]] = []
        self._work: Deferred[str] | None = None
        self._result: str | Failure | None = None

    def begin(self, work: Deferred[str]) -> None:
        """Set the work that gives the result."""
        self._work = work
        work.addBoth(self._end)

    def wait(self) -> Deferred[str]:
        """Return a Deferred with the result. Cancelling the last one cancels the work."""
        waiter: Deferred[str] = Deferred(self._leave)
        if self._result is not None:
            waiter.callback(self._result)
        else:
            self._waiters.append(waiter)
        return waiter

    def _leave(self, waiter: Deferred[str]) -> None:
        self._waiters.remove(waiter)
        if not self._waiters and self._work is not None:
            self._work.cancel()

    def _end(self, result: str | Failure) -> None:
        self._result = result
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(result)


def _get_request(grant: Grant) -> Request:
    query = [("service", grant.service)] if grant.service else []
    query += [("scope", scope) for scope in grant.scopes]
    joint = "&" if "?" in grant.realm else "?"
    url = f"{grant.realm.partition('#')[0]}{joint}{urlencode(query)}"
    return Request("GET", url, authorization=basic(grant.credential))


def _oauth_request(grant: Grant, credential: Credential) -> Request:
    form = {
        "grant_type": "refresh_token",
        "service": grant.service,
        "scope": " ".join(grant.scopes),
        "client_id": _CLIENT,
        "refresh_token": credential.identity_token,
    }
    return Request("POST", grant.realm, form=form)


def basic(credential: Credential | None) -> str | None:
    """Return Basic authorization, RFC 7617; None unless there are a user and a password."""
    if credential is None:
        return None
    user, password = credential.username, credential.password
    if credential.identity_token:
        user, password = user or "<token>", credential.identity_token
    if not user or not password:
        return None
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def is_usable(credential: Credential | None) -> bool:
    """Return whether a credential has a token, or both a user and a password."""
    return credential is not None and bool(credential.registry_token or basic(credential))


def _parse(content: bytes, now: float) -> _Token:
    """Read the response of a realm. The lifetime starts now; the clock of the realm is ignored.

    :raises ValueError: when it has no valid token.
    """
    answer = json.loads(content)
    if not isinstance(answer, dict):
        raise ValueError("not a JSON object")
    text = answer.get("token") or answer.get("access_token")
    if not isinstance(text, str) or not TOKEN.fullmatch(text):
        raise ValueError("no token")
    life = answer.get("expires_in")
    if not isinstance(life, int | float) or not life > _SHORTEST_LIFE:
        life = _SHORTEST_LIFE
    return _Token(text, now + min(life, _LONGEST_LIFE))
