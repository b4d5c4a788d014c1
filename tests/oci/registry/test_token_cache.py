"""Tokens: the credentials for realms, and the number of requests for tokens."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from blobserve.config import Limits, RegistryRules
from blobserve.errors import AddressRefused, RegistryFailed, RegistryRefused
from blobserve.metrics import Metrics
from blobserve.names.reference import Repository
from blobserve.oci.credentials.keychain import Credential
from blobserve.oci.http.address_rules import AddressRules
from blobserve.oci.http.client import Client
from blobserve.oci.http.endpoints import Endpoints, Routes
from blobserve.oci.http.name_lookup import Names
from blobserve.oci.http.retry import RetryPolicy
from blobserve.oci.registry.token_cache import Grant, TokenCache
from blobserve.testing import InlineThreads, make_image
from tests.support.scripted_registry import (
    NOTHING,
    Answer,
    Asked,
    Scripted,
    Step,
    cut,
    listening,
    redirect,
    status,
)
from tests.support.source_fixtures import QUICK, Ahead, Sink, registry_at, until
from tests.support.within import within

IMAGE = make_image({"index.html": b"a page"})
READER = Credential("reader", "secret:with:colons")


def grant(**answer: Any) -> Step:
    """Return a realm's answer of this JSON, with a token `t` that is valid for everything."""
    return lambda *_: Answer(body=json.dumps(answer).encode())


def good_token(scripted: Scripted, *tokens: str) -> None:
    """Make these tokens valid for team/site."""
    for token in tokens:
        scripted.granted[token] = ("repository:team/site:pull",)


@within(10)
async def test_anonymous_token() -> None:
    """A challenge is answered with a token of its realm, for its service and scope (A01, A23)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        tagged = scripted.push("team/site:v1", IMAGE)
        assert (await registry.resolve(tagged)).digest == IMAGE.digest
        (asked,) = scripted.asked("GET /token")
        query = parse_qs(urlsplit(asked.target).query)
        assert query == {"service": ["scripted"], "scope": ["repository:team/site:pull"]}
        assert asked.authorization is None


@within(10)
async def test_password_for_the_realm() -> None:
    """The realm gets user and password, the registry only the token."""
    async with listening() as scripted, registry_at(scripted.host, credential=READER) as registry:
        scripted.has_tokens, scripted.user = True, "reader:secret:with:colons"
        tagged = scripted.push("team/site:v1", IMAGE)
        await registry.resolve(tagged)
        assert (scripted.asked("/token")[0].authorization or "").startswith("Basic ")
        sent = [each.authorization for each in scripted.asked("/v2/")]
        assert sent == [None, "Bearer token-1"]


@within(10)
async def test_kept() -> None:
    """Every request for a repository uses its token without a new challenge."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        tagged = scripted.push("team/site:v1", IMAGE)
        layer = IMAGE.layers[0]
        await registry.resolve(tagged)
        await registry.refresh(tagged, IMAGE.digest)
        await registry.holds(tagged.repository, layer)
        await registry.fetch(tagged.repository, layer, Sink())
        assert len(scripted.asked("/token")) == 1
        assert len(scripted.requests) == 6


@within(10)
async def test_other_repository() -> None:
    """A token of one repository is never sent for another (A11)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        for name in ("team/site", "team/other"):
            tagged = scripted.push(f"{name}:v1", IMAGE)
            await registry.resolve(tagged)
            await registry.resolve(tagged)
        for asked in scripted.asked("/v2/"):
            token = (asked.authorization or "").removeprefix("Bearer ")
            name = "team/site" if "team/site" in asked.target else "team/other"
            assert scripted.granted.get(token) in (None, (f"repository:{name}:pull",))
        assert len(scripted.granted) == 2


@within(10)
async def test_scope_of_another() -> None:
    """With the same challenge for all repositories each still gets its own token."""
    same = status(401, WWW_Authenticate='Bearer realm="/token",scope="repository:all:pull"')
    async with listening() as scripted, registry_at(scripted.host) as registry:
        for name in ("team/site", "team/other"):
            tagged = scripted.push(f"{name}:v1", IMAGE)
            scripted.script(name, same)
            await registry.resolve(tagged)
        sent = {each.authorization for each in scripted.asked("/v2/")}
        assert sent == {None, "Bearer token-1", "Bearer token-2"}


@within(10)
async def test_only_to_pull() -> None:
    """A requested token never allows more than pulling (A11)."""
    greedy = "repository:team/site:pull,push registry:catalog:* repository:team/base:pull"
    challenge = f'Bearer realm="/token",scope="{greedy}"'
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("/v2/", status(401, WWW_Authenticate=challenge))
        await registry.resolve(tagged)
        query = parse_qs(urlsplit(scripted.asked("/token")[0].target).query)
        assert query == {"scope": ["repository:team/base:pull", "repository:team/site:pull"]}


OWN = "repository:team/site:pull"
FOREIGN = "repository:user/image:pull"


@within(10)
@pytest.mark.parametrize(
    ("stated", "asked"),
    [
        ("", [OWN]),
        ("registry:catalog:*", [OWN]),
        (OWN, [OWN]),
        (f"{FOREIGN} {OWN}", [FOREIGN, OWN]),
        ("repository(plugin):team/site:pull", ["repository(plugin):team/site:pull"]),
        (FOREIGN, [FOREIGN, OWN]),
        ("repository:<name>:pull", ["repository:<name>:pull", OWN]),
        ("repository:${name}:pull", ["repository:${name}:pull", OWN]),
        ("repository:team/site/more:pull", ["repository:team/site/more:pull", OWN]),
        ("repository:all:pull,push", [OWN]),
    ],
)
async def test_own_scope(stated: str, asked: list[str]) -> None:
    """A token for the repository itself is requested, whichever scope the challenge has."""
    refusal = status(401, WWW_Authenticate=f'Bearer realm="/token",scope="{stated}"')

    def step(request: Asked, usual: Answer) -> Answer | bytes:
        return refusal(request, usual) if usual.status == 401 else usual

    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.always("/v2/", step)
        for _ in range(2):
            if "plugin" in stated:  # a scope that the scripted registry does not know
                with pytest.raises(RegistryRefused):
                    await registry.resolve(tagged)
                break
            await registry.resolve(tagged)
        query = parse_qs(urlsplit(scripted.asked("/token")[0].target).query)
        assert query["scope"] == asked


@within(10)
@pytest.mark.parametrize("good", [(FOREIGN,), (OWN,), ()])
async def test_scopes_that_are_refused(good: tuple[str, ...]) -> None:
    """If a realm refuses two scopes together each is tried, and the valid one is remembered."""
    challenge = status(401, WWW_Authenticate=f'Bearer realm="/token",scope="{FOREIGN}"')

    def realm(request: Asked, usual: Answer) -> Answer:
        scopes = tuple(parse_qs(urlsplit(request.target).query)["scope"])
        # The token is short-lived, so that each request needs a new one.
        fields = b'{"token": "good", "expires_in": 1}'
        return Answer(body=fields) if scopes == good else Answer(403)

    ahead = Ahead()
    async with listening() as scripted, registry_at(scripted.host, ahead=ahead) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("/v2/", challenge)
        scripted.always("/token", realm)
        if not good:
            with pytest.raises(RegistryRefused):
                await registry.resolve(tagged)
            assert len(scripted.asked("/token")) == 3
            return
        await registry.resolve(tagged)
        tries = len(scripted.asked("/token"))
        assert tries == {(FOREIGN,): 2, (OWN,): 3}[good]
        ahead.by += 100
        await registry.resolve(tagged)
        assert len(scripted.asked("/token")) == tries + 1
        assert scripted.requests[-1].authorization == "Bearer good"


@within(10)
async def test_single_flight() -> None:
    """Fifty concurrent requests share one token request (A09)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        tagged = scripted.push("team/site:v1", IMAGE)
        asking = [Deferred.fromCoroutine(registry.resolve(tagged)) for _ in range(50)]
        for each in asking:
            assert (await each).digest == IMAGE.digest
        assert len(scripted.asked("/token")) == 1


@within(10)
async def test_one_waiter_leaves() -> None:
    """A waiter that is cancelled leaves the others waiting; the last one ends the request.

    Rows A10, C40.
    """
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        scripted.script("/token", lambda *_: NOTHING)
        tagged = scripted.push("team/site:v1", IMAGE)
        asking = [Deferred.fromCoroutine(registry.resolve(tagged)) for _ in range(3)]
        ended: list[str] = []
        for each in asking:
            each.addErrback(lambda failure: ended.append(failure.type.__name__))
        await until(lambda: len(scripted.requests) == 4)
        busy = len(scripted.connections)
        asking[0].cancel()
        asking[1].cancel()
        assert ended == ["CancelledError"] * 2
        assert len(scripted.connections) == busy
        asking[2].cancel()
        await until(lambda: len(scripted.connections) == busy - 1)
        assert (await registry.resolve(tagged)).digest == IMAGE.digest


@within(10)
@pytest.mark.parametrize(
    ("answer", "token"),
    [
        ({"token": "t"}, "t"),
        ({"access_token": "t"}, "t"),
        ({"token": "t", "access_token": "u"}, "t"),
        ({"token": "", "access_token": "u"}, "u"),
        ({"token": "t", "expires_in": "soon", "issued_at": "garbage"}, "t"),
        ({"token": "t", "expires_in": -5}, "t"),
        ({"token": "t", "expires_in": 1e300}, "t"),
        ({"token": "t", "expires_in": 61.5, "issued_at": "1970-01-01T00:00:00Z"}, "t"),
        ({}, None),
        ({"token": ""}, None),
        ({"token": None}, None),
        ({"token": 5}, None),
        ({"token": "a b"}, None),
        ({"token": "a\r\nX-Evil: b"}, None),
        ({"token": "x" * (128 << 10)}, None),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_answers(answer: dict[str, Any], token: str | None) -> None:
    """The token may be in either member; a missing or overlong one is an error of ours.

    Rows A02, A03.
    """
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        good_token(scripted, "t", "u")
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("/token", grant(**answer))
        if token is None:
            with pytest.raises(RegistryFailed, match="sent no valid token"):
                await registry.resolve(tagged)
        else:
            await registry.resolve(tagged)
            assert scripted.requests[-1].authorization == f"Bearer {token}"


@within(10)
@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"t"', b"\xff", b"[" * 5000, b""])
async def test_no_json(body: bytes) -> None:
    """An answer of a realm that is not a JSON object is an error (A03)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("/token", lambda *_: Answer(body=body))
        with pytest.raises(RegistryFailed, match="sent no valid token"):
            await registry.resolve(tagged)


@within(10)
async def test_expired_under_way() -> None:
    """A token that expires during a download is renewed, and the download goes on (A05)."""
    big = make_image({"noise": bytes(range(256)) * 4096})
    layer = big.layers[0]

    def ending(asked: Asked, usual: Answer) -> Answer | bytes:
        scripted.forget_tokens()
        return cut(layer.size // 2)(asked, usual)

    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        tagged = scripted.push("team/site:v1", big)
        await registry.resolve(tagged)
        scripted.script("blobs", ending)
        sink = Sink()
        await registry.fetch(tagged.repository, layer, sink)
        assert sink.content == big.blobs[layer.digest]
        assert len(scripted.asked("/token")) == 2


@within(10)
@pytest.mark.parametrize(
    ("said", "life"), [(None, 60), (1, 60), ("300", 60), (300, 300), (300.5, 300.5), (1e9, 3600)]
)
async def test_life(said: object, life: float) -> None:
    """A token lives as its realm says, at least a minute, and is renewed five seconds early.

    Rows A04, A12.
    """
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    clock, limits = Clock(), Limits()
    async with listening() as scripted:
        scripted.token_life = said
        rules = AddressRules(scripted.host, frozenset({scripted.host}))
        threads = InlineThreads()
        endpoints = Endpoints(reactor, rules, None, threads, Routes(Names(reactor, threads)), 5.0)
        client = Client(reactor, rules, endpoints, limits, Metrics(), "tests")
        tokens = TokenCache(client, RetryPolicy(clock, scripted.host), clock, limits)
        repository = Repository.parse(f"{scripted.host}/team/site")
        grant = Grant(repository, f"http://{scripted.host}/token", "", ("s",), None)
        assert await tokens.token(grant) == "token-1"
        clock.advance(life - 5.1)
        assert await tokens.token(grant) == "token-1"
        clock.advance(0.2)
        assert await tokens.token(grant) == "token-2"
        tokens.drop(grant, "token-1")
        assert await tokens.token(grant) == "token-2"
        tokens.drop(grant, "token-2")
        assert await tokens.token(grant) == "token-3"
        await client.close()


@within(10)
async def test_refused_token() -> None:
    """A token that the registry rejects is replaced once (A06)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        tagged = scripted.push("team/site:v1", IMAGE)
        await registry.resolve(tagged)
        scripted.forget_tokens()
        await registry.resolve(tagged)
        assert len(scripted.asked("/token")) == 2


@within(10)
async def test_never_enough() -> None:
    """A registry that rejects every token gets three requests with two tokens.

    Rows A06, A08.
    """
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        tagged = scripted.push("team/site:v1", IMAGE)
        challenge = 'Bearer realm="/token",error="invalid_token"'
        scripted.always("/v2/", status(401, WWW_Authenticate=challenge))
        with pytest.raises(RegistryRefused, match="registry refused access to"):
            await registry.resolve(tagged)
        assert len(scripted.asked("/v2/")) == 3
        assert len(scripted.asked("/token")) == 2


@within(10)
async def test_insufficient_scope() -> None:
    """A registry that asks for another scope gets a token for that one (A01, A07)."""
    more = "repository:team/site:pull repository:team/base:pull"
    challenge = f'Bearer realm="/token",scope="{more}",error="insufficient_scope"'
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        tagged = scripted.push("team/site:v1", IMAGE)
        await registry.resolve(tagged)
        scripted.script("/v2/", status(401, WWW_Authenticate=challenge))
        await registry.resolve(tagged)
        assert scripted.granted["token-2"] == tuple(more.split())


@within(10)
async def test_failure_is_not_kept() -> None:
    """After a failure the next request asks the realm again (A10)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("/token", status(400))
        with pytest.raises(
            RegistryFailed, match=f"its token realm at {scripted.host} answered 400"
        ):
            await registry.resolve(tagged)
        await registry.resolve(tagged)


@within(10)
async def test_realm_has_patience() -> None:
    """Temporary failures of a realm, stalls included, are retried as for a registry (A21)."""
    async with listening() as scripted, registry_at(scripted.host, limits=QUICK) as registry:
        scripted.has_tokens = True
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("/token", status(503), lambda *_: NOTHING, cut(3))
        assert (await registry.resolve(tagged)).digest == IMAGE.digest


@within(10)
async def test_identity_token() -> None:
    """An identity token is posted to the realm, and sent to no other host (A13)."""
    credential = Credential(identity_token="identity")
    async with listening() as scripted, registry_at(scripted.host, None, credential) as registry:
        scripted.has_tokens = True
        good_token(scripted, "t")
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("POST /token", grant(access_token="t"))
        await registry.resolve(tagged)
        (posted,) = scripted.asked("/token")
        assert parse_qs(posted.body.decode()) == {
            "grant_type": ["refresh_token"],
            "service": ["scripted"],
            "scope": ["repository:team/site:pull"],
            "client_id": ["blobserve"],
            "refresh_token": ["identity"],
        }


@within(10)
@pytest.mark.parametrize("code", [400, 401, 404, 405])
async def test_identity_token_by_get(code: int) -> None:
    """A realm without OAuth gets the identity token as a password (A13)."""
    credential = Credential(identity_token="identity")
    async with listening() as scripted, registry_at(scripted.host, None, credential) as registry:
        scripted.has_tokens, scripted.user = True, "<token>:identity"
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("POST /token", status(code))
        assert (await registry.resolve(tagged)).digest == IMAGE.digest


@within(10)
async def test_secret_is_not_redirected() -> None:
    """An identity token does not follow a redirect of the realm to another host."""
    credential = Credential(identity_token="identity")
    async with listening() as other, listening() as scripted:
        rules = RegistryRules(insecure=True, allow_hosts=frozenset({other.host}))
        async with registry_at(scripted.host, rules, credential) as registry:
            scripted.has_tokens = True
            tagged = scripted.push("team/site:v1", IMAGE)
            scripted.script("POST /token", redirect(f"http://{other.host}/token"))
            with pytest.raises(RegistryFailed, match="redirects a secret"):
                await registry.resolve(tagged)
            assert other.requests == []


@within(10)
async def test_registry_token() -> None:
    """A registry token is sent unchanged (A14)."""
    credential = Credential(registry_token="t")
    async with listening() as scripted, registry_at(scripted.host, None, credential) as registry:
        scripted.has_tokens = True
        good_token(scripted, "t")
        await registry.resolve(scripted.push("team/site:v1", IMAGE))
        assert not scripted.asked("/token")


@within(10)
async def test_basic() -> None:
    """After a Basic challenge the password is sent without further challenges."""
    async with listening() as scripted, registry_at(scripted.host, None, READER) as registry:
        scripted.user = "reader:secret:with:colons"
        tagged = scripted.push("team/site:v1", IMAGE)
        await registry.resolve(tagged)
        await registry.resolve(tagged)
        assert len(scripted.requests) == 3


@within(10)
@pytest.mark.parametrize(
    "credential", [None, Credential("reader", "wrong"), Credential("reader"), Credential("", "x")]
)
async def test_refused_login(credential: Credential | None) -> None:
    """A wrong password, half of one or none is a refusal that says which of them it is.

    Rows A15, A23.
    """
    async with listening() as scripted, registry_at(scripted.host, None, credential) as registry:
        scripted.user = "reader:secret"
        tagged = scripted.push("team/site:v1", IMAGE)
        for has_tokens in (False, True):
            scripted.has_tokens = has_tokens
            with pytest.raises(RegistryRefused) as raised:
                await registry.resolve(tagged)
            realm = f"its token realm at {scripted.host}"
            if credential == Credential("reader", "wrong"):
                reason = "the credentials that were found for it are wrong"
                reason = f"{realm} says that {reason}" if has_tokens else reason
            else:
                reason = "no credentials were found for it, "
                reason += f"and {realm} requires some" if has_tokens else "or it does not exist"
            assert str(raised.value) == f"registry refused access to {tagged.repository}: {reason}"


@within(10)
@pytest.mark.parametrize(
    "challenge",
    [
        "",
        "Negotiate",
        "Bearer",
        'Bearer service="x"',
        'Bearer realm="/token',
        'Digest realm="x", qop="auth"',
    ],
)
async def test_odd_challenge(challenge: str) -> None:
    """After an unusable challenge no credential is sent to any host (A17)."""
    async with listening() as scripted, registry_at(scripted.host, None, READER) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.always("/v2/", status(401, WWW_Authenticate=challenge))
        with pytest.raises(RegistryRefused):
            await registry.resolve(tagged)
        assert [each.authorization for each in scripted.requests] == [None]


@within(10)
@pytest.mark.parametrize("realm", ["http://user:pw@a.b/token", "ftp://a.b/"])
async def test_odd_realm(realm: str) -> None:
    """A realm that is not a plain URL gets no request (A17)."""
    async with listening() as scripted, registry_at(scripted.host, None, READER) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.always("/v2/", status(401, WWW_Authenticate=f'Bearer realm="{realm}"'))
        with pytest.raises(RegistryFailed, match="its token realm is not a valid URL"):
            await registry.resolve(tagged)


@within(10)
@pytest.mark.parametrize("way", ["realm", "redirect"])
async def test_realm_inside(way: str) -> None:
    """A realm at a private address, direct or by redirect, gets no request.

    Rows A19, A20.
    """
    inside = "https://169.254.0.1/token"
    async with listening() as scripted, registry_at(scripted.host, None, READER) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        realm = inside if way == "realm" else "/token"
        scripted.always("/v2/", status(401, WWW_Authenticate=f'Bearer realm="{realm}"'))
        scripted.always("/token", redirect(inside, 302))
        with pytest.raises(AddressRefused) as raised:
            await registry.resolve(tagged)
        assert '"169.254.0.1:443"' in raised.value.key


@within(10)
async def test_realm_elsewhere() -> None:
    """A realm on another host gets the registry's credentials (A19)."""
    async with listening() as realm, listening() as scripted:
        rules = RegistryRules(insecure=True, allow_hosts=frozenset({realm.host}))
        async with registry_at(scripted.host, rules, READER) as registry:
            scripted.has_tokens = True
            good_token(scripted, "t")
            tagged = scripted.push("team/site:v1", IMAGE)
            challenge = f'Bearer realm="http://{realm.host}/token?kind=x"'
            scripted.script("/v2/", status(401, WWW_Authenticate=challenge))
            realm.script("/token", grant(token="t"))
            await registry.resolve(tagged)
            (asked,) = realm.requests
            assert (asked.authorization or "").startswith("Basic ")
            assert asked.target.startswith("/token?kind=x&scope=")


@within(10)
async def test_limits() -> None:
    """The size limit for a realm's answer is configurable (A03)."""
    limits = Limits(token_size=20)
    async with listening() as scripted, registry_at(scripted.host, limits=limits) as registry:
        scripted.has_tokens = True
        good_token(scripted, "t")
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("/token", grant(token="t", padding="xx"), grant(token="t"))
        with pytest.raises(RegistryFailed):
            await registry.resolve(tagged)
        await registry.resolve(tagged)
