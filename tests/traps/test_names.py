"""Names, hosts and TLS, by the requests that registries get: rows N01 to N07 and N13.

`tests.names.test_reference` tests the grammar, `tests.oci.http.test_tls` the certificates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.address import IPv4Address

from blobserve.config import Limits, RegistryRules
from blobserve.errors import RegistryFailed, UpstreamError
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, canonical_registry
from blobserve.oci.credentials.keychain import Credential, Keychain, SharedKeychain
from blobserve.oci.http.address_rules import AddressRules, Origin
from blobserve.oci.http.endpoints import Routes
from blobserve.oci.http.name_lookup import Names
from blobserve.oci.manifest import Descriptor
from blobserve.oci.registry.registry import Registry
from blobserve.oci.source import Document
from blobserve.testing import InlineThreads, MadeImage, make_image
from tests.oci.http.test_tls import Authority
from tests.support.parts.faults import NONE, Fault, faulty
from tests.support.scripted_registry import Answer, Asked, listening
from tests.support.services import allowing, configured, running
from tests.support.source_fixtures import registry_at
from tests.support.within import within

IMAGE = make_image({"a": b"a"})
SITE = "team/site:v1"


# --- Docker Hub: N01 ------------------------------------------------------------------------------


class Elsewhere:
    """The running reactor with public addresses for some names, which lead to local ports."""

    def __init__(self, reactor: Any, ports: Mapping[str, int]) -> None:
        self._reactor = reactor
        self._places = {f"93.184.216.{n}": name for n, name in enumerate(ports, 1)}
        self._ports = ports
        self.nameResolver = self
        self.connected: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def resolveHostName(self, receiver: Any, name: str, port: int = 0, *_: object) -> None:
        """See `IHostnameResolver.resolveHostName`."""
        receiver.resolutionBegan(None)
        for address, known in self._places.items():
            if known == name:
                receiver.addressResolved(IPv4Address("TCP", address, port))
        receiver.resolutionComplete()

    def connectTCP(self, host: str, port: int, *rest: Any, **more: Any) -> Any:
        """See `IReactorTCP.connectTCP`."""
        name = self._places[host]
        self.connected.append((name, port))
        return self._reactor.connectTCP("127.0.0.1", self._ports[name], *rest, **more)


def port_of(host: str) -> int:
    """Return the port in ``host:port``."""
    return int(host.rpartition(":")[2])


@pytest.mark.parametrize(
    "name", ["docker.io/ubuntu", "docker.io/library/ubuntu", "index.docker.io/library/ubuntu"]
)
@pytest.mark.parametrize("scope", [',scope="repository:library/ubuntu:pull"', ""])
@within(10)
async def test_n01_docker_hub(tmp_path: Path, name: str, scope: str) -> None:
    """Docker Hub is reached at its registry host, with library/ and the login of its index."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    authority = Authority.make(tmp_path)
    hosts = ("registry-1.docker.io", "auth.docker.io")
    login = {"username": "reader", "password": "secret"}
    auths = {"auths": {"https://index.docker.io/v1/": login, "auth.docker.io": {"auth": "eDp5"}}}
    async with (
        listening(tls=authority.issue(hosts[0])) as hub,
        listening(tls=authority.issue(hosts[1])) as realm,
    ):
        challenge = f'Bearer realm="https://{hosts[1]}/token",service="registry.docker.io"{scope}'

        def bearing(asked: Asked, usual: Answer) -> Answer:
            if asked.authorization == "Bearer t":
                return usual
            return Answer(401).having(www_authenticate=challenge)

        hub.push("library/ubuntu:22.04", IMAGE)
        hub.always("/v2/", bearing)
        realm.always("/token", lambda *_: Answer(body=b'{"token": "t"}'))
        net = Elsewhere(reactor, {hosts[0]: port_of(hub.host), hosts[1]: port_of(realm.host)})
        threads = InlineThreads()
        registry = Registry(
            net,
            "docker.io",
            RegistryRules(ca=authority.write(tmp_path / "ca.pem")),
            SharedKeychain(Keychain(None, {"DOCKER_AUTH_CONFIG": json.dumps(auths)}), threads),
            False,
            threads,
            Routes(Names(net, threads)),
            Limits(),
            Metrics(),
        )
        document = await registry.resolve(Reference.parse(f"{name}:22.04"))
        await registry.close()
        assert document.digest == IMAGE.digest
        assert net.connected == [(hosts[0], 443), (hosts[1], 443)]
        assert {each.target for each in hub.requests} == {"/v2/library/ubuntu/manifests/22.04"}
        assert [each.authorization for each in hub.requests] == [None, "Bearer t"]
        assert {each.headers["host"] for each in hub.requests} == {hosts[0]}
        (asked,) = realm.requests
        assert asked.target.endswith("?service=registry.docker.io&scope=" + _SCOPE)
        assert asked.authorization == "Basic cmVhZGVyOnNlY3JldA=="


_SCOPE = "repository%3Alibrary%2Fubuntu%3Apull"


# --- Invalid names: N03 to N05 --------------------------------------------------------------------

HEX = "0123456789abcdef" * 4
ODD = {
    "upper case": "Team/site:v1",
    "climbing": "team/../site:v1",
    "climbing, escaped": "team/%2e%2e/site:v1",
    "no repository": ":v1",
    "long repository": "x" * 256 + ":v1",
    "long tag": "team/site:" + "x" * 129,
    "tag with a sign": "team/site:-v1",
    "empty tag": "team/site:",
    "two tags": "team/site:v1:v1",
    "digest too short": f"team/site@sha256:{HEX[:-1]}",
    "digest too long": f"team/site@sha256:{HEX}0",
    "digest in upper case": f"team/site@sha256:{HEX.upper()}",
    "digest of no algorithm": f"team/site@{HEX}",
    "digest that is a path": "team/site@sha256:%2e%2e%2f%2e%2e%2fx",
    "N05 md5": "team/site@md5:" + HEX[:32],
    "N05 sha384": "team/site@sha384:" + HEX + HEX[:32],
    "N05 blake3": f"team/site@blake3:{HEX}",
    "N05 sha512 too short": f"team/site@sha512:{HEX}",
    "NUL": "team/site%00:v1",
    "line feed": "team/site:v1%0a",
    "escaped twice": "team%252fsite:v1",
    "unicode": "t%C3%A9am/site:v1",
    "digit of another script": "team/site:%D9%A3",
    "no UTF-8": "team/%ff:v1",
}


@within(20)
async def test_n04_nothing_is_asked_for_no_name(tmp_path: Path) -> None:
    """An invalid name gets a 404 for GET and HEAD, and no registry is contacted."""
    async with (
        listening() as scripted,
        running(configured(tmp_path, allowing(scripted.host, allowAnyRepo=True))) as server,
    ):
        scripted.push(SITE, IMAGE)
        for what, name in ODD.items():
            answer = await server.fetch(f"{scripted.host}/{name}/a")
            assert (what, answer.status) == (what, 404)
            assert (await server.fetch(f"{scripted.host}/{name}/a", "HEAD")).status == 404
        assert scripted.accepted == 0
        for name in ("team%2Fsite%3Av1", "team//site:v1", "team/site:v1"):
            assert (await server.fetch(f"{scripted.host}/{name}/a")).body == b"a"


@within(10)
async def test_n03_tag_and_digest(tmp_path: Path) -> None:
    """A reference with a tag and a digest is requested by digest, even if the tag has moved."""
    async with (
        listening() as scripted,
        running(configured(tmp_path, allowing(scripted.host))) as server,
    ):
        scripted.push("team/site:v2", IMAGE)
        other = scripted.push(SITE, make_image({"a": b"another"}))
        assert (await server.fetch(f"{other}@{IMAGE.digest}/a")).body == b"a"
        assert (await server.fetch(f"{scripted.host}/team/site:none@{IMAGE.digest}/a")).body == b"a"
        targets = {each.target for each in scripted.asked("manifests")}
        assert targets == {f"/v2/team/site/manifests/{IMAGE.digest}"}


def with_sha512(image: MadeImage) -> MadeImage:
    """Return the same image, named by SHA-512 throughout."""
    (layer,), content = image.layers, image.documents[0].content
    blob = image.blobs[layer.digest]
    longer = Digest.of(blob, "sha512")
    content = content.replace(str(layer.digest).encode(), str(longer).encode())
    document = Document(Digest.of(content, "sha512"), image.documents[0].media_type, content)
    layers = (Descriptor(layer.media_type, longer, layer.size),)
    return MadeImage((document,), layers, {longer: blob})


@within(10)
async def test_n05_sha512(tmp_path: Path) -> None:
    """An image named by SHA-512 is served by tag and by digest, and verified."""
    async with (
        listening() as scripted,
        running(configured(tmp_path, allowing(scripted.host))) as server,
    ):
        good = with_sha512(make_image({"a": b"good"}))
        site = scripted.push(SITE, good)
        for name in (str(site), f"{scripted.host}/team/site@{good.digest}"):
            assert (await server.fetch(f"{name}/a")).body == b"good"
        for part in ("manifests", "blobs"):
            bad = with_sha512(make_image({"a": part.encode()}))
            scripted.push("team/bad:v1", bad)
            scripted.script(
                f"GET .*bad/{part}", *[lambda _, usual: Answer(body=usual.body[:-1] + b" ")] * 2
            )
            answer = await server.fetch(f"{scripted.host}/team/bad@{bad.digest}/a")
            assert (answer.status, b"sent wrong content for sha512:" in answer.body) == (502, True)


# --- HTTP without TLS: N06, N07 -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "is_plain"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("LocalHost:5000", True),
        ("x.localhost:80", True),
        ("127.0.0.1", True),
        ("127.0.0.1:8443", True),
        ("127.0.1.1:5000", True),
        ("127.255.255.254", True),
        ("[::1]", True),
        ("[::1]:5000", True),
        ("[0:0:0:0:0:0:0:1]:5000", True),
        ("docker.io", False),
        ("registry.example:80", False),
        ("registry.local", False),
        ("10.0.0.1", False),
        ("172.16.0.1:5000", False),
        ("192.168.0.1:80", False),
        ("169.254.169.254", False),
        ("0.0.0.0:5000", False),
        ("128.0.0.1", False),
        ("[::2]", False),
        ("[fe80::1]:5000", False),
        ("127.0.0.1.other.example", False),
        ("my127.0.0.1registry.io", False),
        ("localhost.other.example", False),
        ("notlocalhost:5000", False),
        ("127.256.0.1", None),
        ("127.0.0.1:", None),
        ("[::1]:", None),
        ("127.1:5000", None),
    ],
)
def test_n06_who_may_lack_tls(registry: str, is_plain: bool | None) -> None:
    """HTTP without TLS is used for loopback names by default, but not for private networks."""
    host = canonical_registry(registry)
    assert (host is None) == (is_plain is None)
    if host is not None:
        origin = Origin.of(f"http://{host}/")
        rules = AddressRules(host, frozenset({host}))
        assert rules.permits_plain(origin.host, origin.port) == is_plain


READER = Credential("reader", "secret")


@within(10)
async def test_n07_without_tls() -> None:
    """A loopback registry without TLS gets no password before its challenge."""
    async with listening() as scripted:
        scripted.user = "reader:secret"
        site = scripted.push(SITE, IMAGE)
        async with registry_at(scripted.host, RegistryRules(), READER) as registry:
            assert (await registry.resolve(site)).digest == IMAGE.digest
        sent = [each.authorization for each in scripted.requests]
        assert [each is not None for each in sent] == [False, True]
        assert scripted.accepted == 2  # one of them for TLS


@pytest.mark.parametrize("fault", ["silence", "fin", "rst"])
@within(20)
async def test_n07_no_answer_is_no_reason(fault: Any) -> None:
    """A TLS handshake that gets no answer, or is cut off, is never followed by plain HTTP."""
    async with (
        listening() as scripted,
        faulty(port_of(scripted.host), speaks_http=False) as proxy,
    ):
        scripted.push(SITE, IMAGE)
        proxy.always("", Fault(after=0, end=fault))
        limits = Limits(header_timeout=0.1)
        async with registry_at(proxy.host, RegistryRules(), READER, limits=limits) as registry:
            with pytest.raises(RegistryFailed):
                await registry.resolve(Reference.parse(f"{proxy.host}/{SITE}"))
        assert (proxy.accepted, scripted.requests) == (5, [])


@pytest.mark.parametrize("rules", [RegistryRules(ca=Path("ca.pem")), "unnamed"], ids=["ca", "name"])
@within(20)
async def test_n07_who_must_speak_tls(
    rules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry with its own CA, or one that is not configured, is not asked without TLS."""
    monkeypatch.chdir(tmp_path)
    Authority.make(tmp_path).write(tmp_path / "ca.pem")
    may_be_private = rules != "unnamed"
    async with listening() as scripted:
        site = scripted.push(SITE, IMAGE)
        rules = RegistryRules() if rules == "unnamed" else rules
        async with registry_at(scripted.host, rules, READER, may_be_private) as registry:
            with pytest.raises(UpstreamError):
                await registry.refresh(site, IMAGE.digest)
        assert scripted.requests == []


def only_old_ciphers(context: Any) -> Any:
    """Make a server's context share no cipher with its clients."""
    old = context.getContext()
    old.set_options(SSL.OP_NO_TLSv1_3)
    old.set_cipher_list(b"NULL-SHA256:@SECLEVEL=0")
    return context


@within(20)
async def test_n07_an_alert_is_tls(tmp_path: Path) -> None:
    """A registry that answers the handshake with an alert speaks TLS, and is not asked without."""
    context = only_old_ciphers(Authority.make(tmp_path).issue("127.0.0.1"))
    async with listening(tls=context) as scripted:
        site = scripted.push(SITE, IMAGE)
        async with registry_at(scripted.host, RegistryRules(), READER) as registry:
            with pytest.raises(RegistryFailed):
                await registry.refresh(site, IMAGE.digest)
        assert (scripted.accepted, scripted.requests) == (1, [])


@pytest.fixture
def believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that the system trusts."""
    authority = Authority.make(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "ca.pem")))
    return authority


@within(20)
async def test_n07_no_way_back(believed: Authority) -> None:
    """A loopback registry that has once spoken TLS is never asked without it again."""
    async with (
        listening(tls=believed.issue("127.0.0.1")) as with_tls,
        listening() as plain,
        faulty(port_of(with_tls.host), speaks_http=False) as proxy,
    ):
        site = Reference.parse(f"{proxy.host}/{SITE}")
        for each in (with_tls, plain):
            each.push(SITE, IMAGE)
        async with registry_at(proxy.host, RegistryRules(), READER) as registry:
            await registry.resolve(site)
            proxy.port = port_of(plain.host)
            for connection in proxy.connections:
                connection.transport.loseConnection()
            with pytest.raises(RegistryFailed):
                await registry.refresh(site, IMAGE.digest)
        assert plain.accepted == 1
        assert plain.requests == []


@within(20)
async def test_n07_found_out_by_an_answer(believed: Authority) -> None:
    """A registry counts as one without TLS only after it has answered without TLS."""
    async with (
        listening(tls=believed.issue("127.0.0.1")) as with_tls,
        listening() as plain,
        faulty(port_of(plain.host), speaks_http=False) as proxy,
    ):
        site = Reference.parse(f"{proxy.host}/{SITE}")
        with_tls.push(SITE, IMAGE)
        proxy.script("", NONE, Fault(after=0), NONE, Fault(after=0))  # for HEAD, then for GET
        async with registry_at(proxy.host, RegistryRules()) as registry:
            with pytest.raises(RegistryFailed):
                await registry.refresh(site, IMAGE.digest)
            proxy.port = port_of(with_tls.host)
            assert (await registry.resolve(site)).digest == IMAGE.digest
        assert len(with_tls.requests) == 1
