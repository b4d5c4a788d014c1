"""Authentication over sockets: rows A01 to A39 of the list of cases.

`tests.oci.registry.test_token_cache`, `tests.oci.registry.test_challenge` and
`tests.oci.credentials.test_credentials` have the rows that are not tested here.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from blobserve.config import Limits, RegistryRules
from blobserve.errors import AddressRefused, RegistryBusy, RegistryFailed, RegistryRefused
from blobserve.metrics import Metrics
from blobserve.names.reference import Repository
from blobserve.oci.credentials.keychain import Credential, Keychain, SharedKeychain
from blobserve.oci.http.address_rules import AddressRules
from blobserve.oci.http.client import Client
from blobserve.oci.http.endpoints import Endpoints, Routes
from blobserve.oci.http.name_lookup import Names
from blobserve.oci.http.retry import RetryPolicy
from blobserve.oci.registry.registry import Registry
from blobserve.oci.registry.token_cache import Grant, TokenCache
from blobserve.testing import InlineThreads, make_image
from tests.support.scripted_registry import Answer, Asked, listening, redirect, status
from tests.support.services import allowing, configured, running
from tests.support.source_fixtures import QUICK, registry_at, until
from tests.support.within import within

IMAGE = make_image({"a": b"a"})
SITE = "team/site:v1"
READER = Credential("reader", "secret")


# --- Tokens: A03, A08, A12 ------------------------------------------------------------------------


@within(10)
async def test_a03_endless_token() -> None:
    """An endless answer of a realm is abandoned at the limit, and its connection is closed."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        site = scripted.push(SITE, IMAGE)
        endless = Answer(body=b'{"token": "' + b"t" * (1 << 20), framing="chunked", end="silence")
        scripted.script("/token", lambda *_: endless)
        with pytest.raises(RegistryFailed, match="sent no valid token"):
            await registry.resolve(site)
        await until(lambda: len(scripted.connections) == 1)


@pytest.mark.parametrize("challenge", ["Basic", 'Bearer realm="/token"'])
@within(10)
async def test_a08_for_ever_401(challenge: str) -> None:
    """A registry that always answers 401 gets at most three requests for one resolve."""
    async with listening() as scripted, registry_at(scripted.host, None, READER) as registry:
        site = scripted.push(SITE, IMAGE)
        scripted.always("/v2/", status(401, WWW_Authenticate=challenge))
        for asked in (3, 6):
            with pytest.raises(RegistryRefused):
                await registry.resolve(site)
            assert len(scripted.asked("/v2/")) <= asked
        assert len(scripted.asked("/token")) <= 4


@pytest.mark.parametrize("issued", ["2001-01-01T00:00:00Z", "1999-12-31T23:45:00Z", "soon", "", 5])
@within(10)
async def test_a12_clocks_that_differ(issued: object) -> None:
    """The lifetime of a token counts from its arrival; the clock of the realm does not matter."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    clock, given = Clock(), {"token": "t", "expires_in": 300, "issued_at": issued}
    async with listening() as scripted:
        scripted.always("/token", lambda *_: Answer(body=json.dumps(given).encode()))
        rules = AddressRules(scripted.host, frozenset({scripted.host}))
        threads = InlineThreads()
        endpoints = Endpoints(reactor, rules, None, threads, Routes(Names(reactor, threads)), 5.0)
        client = Client(reactor, rules, endpoints, Limits(), Metrics(), "tests")
        tokens = TokenCache(client, RetryPolicy(clock, scripted.host), clock, Limits())
        site = Repository.parse(f"{scripted.host}/team/site")
        grant = Grant(site, f"http://{scripted.host}/token", "", ("s",), None)
        for pause, asked in ((0.0, 1), (294.9, 1), (0.2, 2)):
            clock.advance(pause)
            assert await tokens.token(grant) == "t"
            assert len(scripted.requests) == asked
        await client.close()


# --- Realms: A19 to A21 ---------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
@within(10)
async def test_a19_realm_that_nobody_allows(scheme: str) -> None:
    """A private realm that is not allowed gets no connection; the error says how to allow it."""
    async with listening() as inner, listening() as scripted:
        site = scripted.push(SITE, IMAGE)
        realm = f'Bearer realm="{scheme}://{inner.host}/token"'
        scripted.always("/v2/", status(401, WWW_Authenticate=realm))
        async with registry_at(scripted.host, None, READER) as registry:
            with pytest.raises((AddressRefused, RegistryFailed), match=f'add "{inner.host}" to'):
                await registry.resolve(site)
        assert inner.accepted == 0
        assert [each.authorization for each in scripted.requests] == [None]


@within(10)
async def test_a20_realm_that_redirects() -> None:
    """The password does not follow a redirect of a realm to another host."""
    async with listening() as other, listening() as scripted:
        scripted.has_tokens = True
        scripted.granted["t"] = ("repository:team/site:pull",)
        site = scripted.push(SITE, IMAGE)
        scripted.script("/token", redirect(f"http://{other.host}/token?x", 302))
        other.always("/token", lambda *_: Answer(body=b'{"token": "t"}'))
        rules = RegistryRules(insecure=True, allow_hosts=frozenset({other.host}))
        async with registry_at(scripted.host, rules, READER) as registry:
            assert (await registry.resolve(site)).digest == IMAGE.digest
        assert (scripted.asked("/token")[0].authorization or "").startswith("Basic ")
        assert [each.authorization for each in other.requests] == [None]


@within(20)
async def test_a21_realm_that_is_busy_or_down() -> None:
    """A realm that is busy or down is retried no more often than a registry would be."""
    async with listening() as scripted, registry_at(scripted.host, limits=QUICK) as registry:
        scripted.has_tokens = True
        site = scripted.push(SITE, IMAGE)
        scripted.script("/token", status(429, Retry_After="30"))
        with pytest.raises(RegistryBusy) as raised:
            await registry.resolve(site)
        assert (raised.value.retry_after, len(scripted.asked("/token"))) == (30, 1)
        scripted.always("/token", status(502))
        for tries in (6, 7):
            with pytest.raises(RegistryFailed, match="it answered 502"):
                await registry.resolve(site)
            assert len(scripted.asked("/token")) == tries


# --- Credentials and hosts: A11, A22 --------------------------------------------------------------


@within(10)
async def test_a22_for_one_registry_alone() -> None:
    """The credentials of one registry are never sent to another registry or its realm."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    async with listening() as known, listening() as stranger:
        auths = {"auths": {known.host: {"username": "reader", "password": "secret"}}}
        keychain = Keychain(None, {"DOCKER_AUTH_CONFIG": json.dumps(auths)})
        threads = InlineThreads()
        for scripted in (known, stranger):
            scripted.user = "reader:secret"
            site = scripted.push(SITE, IMAGE)
            registry = Registry(
                reactor, scripted.host, RegistryRules(insecure=True),
                SharedKeychain(keychain, threads), True, threads, Routes(Names(reactor, threads)),
                Limits(), Metrics(),
            )  # fmt: skip
            for scripted.has_tokens in (False, True):
                resolving = Deferred.fromCoroutine(registry.resolve(site))
                resolving.addErrback(lambda failure: failure.trap(RegistryRefused))
                found = await resolving
                assert (found is not RegistryRefused) == (scripted is known)
            await registry.close()
        assert {each.authorization for each in stranger.requests} == {None}
        assert any(each.authorization for each in known.requests)


@within(10)
async def test_a11_scopes_of_ten_repositories() -> None:
    """Ten repositories get ten tokens, each for pulling and used for that repository alone."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        scripted.has_tokens = True
        sites = [scripted.push(f"team/site{n}:v1", IMAGE) for n in range(10)]
        asking = [Deferred.fromCoroutine(registry.resolve(site)) for site in sites * 3]
        for each in asking:
            assert (await each).digest == IMAGE.digest
        scopes = [
            parse_qs(urlsplit(each.target).query)["scope"] for each in scripted.asked("/token")
        ]
        assert sorted(scopes) == [[f"repository:team/site{n}:pull"] for n in range(10)]
        for asked in scripted.asked("/v2/"):
            if asked.authorization:
                (scope,) = scripted.granted[asked.authorization.removeprefix("Bearer ")]
                assert f"/v2/{scope.split(':')[1]}/" in asked.target


# --- Files and helpers: A33 to A35, A38, A39 ------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["{}", "http://{}", "https://{}/", "https://{}/v1/", "{}/v2/", "{}/team", "{}/team/site"]
)
@within(10)
async def test_a33_keys_with_a_port(tmp_path: Path, key: str) -> None:
    """A registry with a port is found in a credentials file by every spelling of its key."""
    async with listening() as scripted:
        scripted.user = "reader:secret"
        site = scripted.push(SITE, IMAGE)
        login = {"auth": "cmVhZGVyOnNlY3JldA=="}
        file = tmp_path / "config.json"
        port = scripted.host.rpartition(":")[2]
        others = {"127.0.0.1": {"auth": "eDp5"}, f"127.0.0.2:{port}": {"auth": "eDp5"}}
        file.write_text(json.dumps({"auths": {**others, key.format(scripted.host): login}}))
        config = configured(tmp_path / "space", allowing(scripted.host), dockerAuth=str(file))
        async with running(config) as server:
            assert (await server.fetch(f"{site}/a")).body == b"a"


@within(20)
async def test_a34_a35_a_helper_that_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helper of a registry overrides other credentials, and files are served while it runs."""
    helper = tmp_path / "docker-credential-slow"
    answer = '{"Username": "reader", "Secret": "secret"}'
    helper.write_text(f"#!/bin/sh\ncat > {tmp_path}/asked\nsleep 0.7\necho '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    async with listening() as scripted, listening() as open_to_all:
        hot = open_to_all.push(SITE, make_image({"a": b"hot"}))
        scripted.user = "reader:secret"
        site = scripted.push(SITE, IMAGE)
        file = tmp_path / "config.json"
        file.write_text(
            json.dumps(
                {
                    "auths": {scripted.host: {"auth": "eDp5"}},
                    "credsStore": "absent",
                    "credHelpers": {scripted.host: "slow"},
                }
            )
        )
        own = allowing(scripted.host)
        own["repos"][f"{open_to_all.host}/*"] = {}
        own["registries"][open_to_all.host] = {"insecure": True}
        async with running(configured(tmp_path / "space", own, dockerAuth=str(file))) as server:
            assert (await server.fetch(f"{hot}/a")).body == b"hot"
            waiting = Deferred.fromCoroutine(server.fetch(f"{site}/a"))
            await until(lambda: (tmp_path / "asked").exists())
            served = 0
            while not waiting.called:
                assert (await server.fetch(f"{hot}/a")).body == b"hot"
                served += 1
            assert (await waiting).body == b"a"
            assert served > 10
    assert (tmp_path / "asked").read_text().strip() == scripted.host


@pytest.mark.parametrize("content", [b"", b" \n\t", b"\xef\xbb\xbf", b"{}"])
@within(10)
async def test_a38_files_that_say_nothing(tmp_path: Path, content: bytes) -> None:
    """With an empty credentials file a registry is used anonymously until the file has a login."""
    async with listening() as scripted:
        file = tmp_path / "config.json"
        file.write_bytes(content)
        site, other = (
            scripted.push(f"team/{n}:v1", make_image({"a": n.encode()})) for n in ("x", "y")
        )
        config = configured(tmp_path / "space", allowing(scripted.host), dockerAuth=str(file))
        async with running(config) as server:
            assert (await server.fetch(f"{site}/a")).status == 200
            scripted.user = "reader:secret"
            assert (await server.fetch(f"{other}/a")).status == 502
            file.write_text(
                json.dumps({"auths": {scripted.host: {"auth": "cmVhZGVyOnNlY3JldA=="}}})
            )
            assert (await server.fetch(f"{other}/a")).status == 200


def test_a39_places_that_shadow_others(tmp_path: Path) -> None:
    """A place set by an environment variable replaces the default, even if nothing is there."""
    site = Repository.parse("registry.example/team/site")

    def write(path: Path, token: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"auths": {"registry.example": {"registrytoken": token}}}))

    write(tmp_path / "home/.docker/config.json", "home")
    write(tmp_path / "run/containers/auth.json", "runtime")
    environ = {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    for change, found in [
        ({}, "home"),
        ({"DOCKER_CONFIG": str(tmp_path / "absent")}, "runtime"),
        ({"REGISTRY_AUTH_FILE": str(tmp_path / "absent")}, None),
    ]:
        environ |= change
        credential = Keychain(None, environ).for_repository(site)
        assert (credential.registry_token if credential else None) == found


# --- Why access is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credential", "challenge", "code", "reason"),
    [
        (None, "Basic", 401, "no credentials were found for it, or it does not exist"),
        (None, "Basic", 403, "no credentials were found for it, or it does not exist"),
        (None, "Bearer", 401, "no credentials were found for it, or it does not exist"),
        (READER, "Basic", 401, "the credentials that were found for it are wrong"),
        (READER, "Basic", 403, "the credentials that were found for it are accepted, but do not"),
        (READER, "Bearer", 401, "the credentials that were found for it are accepted, but do not"),
        (READER, "Bearer", 403, "the credentials that were found for it are accepted, but do not"),
        (READER, "Negotiate", 401, "the registry requires an authentication scheme that"),
        (READER, "", 403, "credentials were found for it, but the registry does not ask for any"),
        (
            Credential(registry_token="t"),
            "Bearer",
            401,
            "the credentials that were found for it ar",
        ),
        (
            Credential(registry_token="t"),
            "Bearer",
            403,
            "the credentials that were found for it ar",
        ),
    ],
)
@within(20)
async def test_refused(
    credential: Credential | None, challenge: str, code: int, reason: str
) -> None:
    """A refusal says whether credentials are missing, wrong, or right and not enough."""
    async with listening() as scripted:
        site = scripted.push(SITE, IMAGE)
        asks = {
            "Basic": 'Basic realm="r"',
            "Bearer": f'Bearer realm="http://{scripted.host}/token"',
            "Negotiate": "Negotiate",
            "": "",
        }[challenge]

        def refuse(asked: Asked, usual: Answer) -> Answer:
            final = code if asked.authorization or not asks or challenge == "Negotiate" else 401
            fields = {"www_authenticate": asks} if asks and final == 401 else {}
            return Answer(code if credential is None and code == 403 else final).having(**fields)

        scripted.always("/v2/", refuse)
        async with registry_at(scripted.host, None, credential) as registry:
            with pytest.raises(RegistryRefused) as raised:
                await registry.resolve(site)
        assert f"registry refused access to {site.repository}: {reason}" in str(raised.value)


@pytest.mark.parametrize(
    ("credential", "code", "reason"),
    [
        (None, 401, "no credentials were found for it, and its token realm at {realm} requires"
         " some"),
        (READER, 401, "its token realm at {realm} says that the credentials that were found for it"
         " are wrong"),
        (READER, 403, "its token realm at {realm} says that the credentials that were found for it"
         " do not permit pulling it"),
    ],
)  # fmt: skip
@within(20)
async def test_refused_by_a_realm(credential: Credential | None, code: int, reason: str) -> None:
    """A refusal by a token realm names its host, and what it thinks of the credentials."""
    async with listening() as scripted, listening() as realm:
        site = scripted.push(SITE, IMAGE)
        challenge = f'Bearer realm="http://{realm.host}/token"'
        scripted.always("/v2/", status(401, WWW_Authenticate=challenge))
        realm.always("/token", status(code))
        rules = RegistryRules(insecure=True, allow_hosts=frozenset({realm.host}))
        async with registry_at(scripted.host, rules, credential) as registry:
            with pytest.raises(RegistryRefused) as raised:
                await registry.resolve(site)
        assert str(raised.value).endswith(f": {reason.format(realm=realm.host)}")
