"""Certificates: the authorities that are trusted, and errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.protocol import Factory, Protocol

from blobserve.config import RegistryRules
from blobserve.errors import RegistryFailed
from blobserve.names.reference import Reference
from blobserve.oci.credentials.keychain import Credential
from blobserve.testing import make_image
from tests.support.parts.authority import Authority
from tests.support.parts.programs import free_port, give_away
from tests.support.parts.registry import DockerRegistry
from tests.support.scripted_registry import Answer, cut, listening, redirect, status
from tests.support.source_fixtures import QUICK, Sink, registry_at, until
from tests.support.within import within

IMAGE = make_image({"index.html": b"a page", "noise": bytes(range(256)) * 8192})
LAYER = IMAGE.layers[0]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of the private registries."""
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def trusting(authority: Authority, tmp_path: Path) -> RegistryRules:
    """Return rules that trust this authority."""
    return RegistryRules(ca=authority.write(tmp_path / "ca.pem"))


@within(10)
async def test_private_authority(authority: Authority, trusting: RegistryRules) -> None:
    """The CA of a registry is trusted for the registry and all hosts that it leads to.

    Row N13.
    """
    async with listening(tls=authority.issue("127.0.0.1")) as scripted:
        scripted.has_tokens, scripted.user = True, "reader:secret"
        tagged = scripted.push("team/site:v1", IMAGE)
        credential = Credential("reader", "secret")
        async with registry_at(scripted.host, trusting, credential) as registry:
            assert (await registry.resolve(tagged)).digest == IMAGE.digest
            sink = Sink()
            await registry.fetch(tagged.repository, LAYER, sink)
            assert sink.content == IMAGE.blobs[LAYER.digest]
        assert scripted.accepted == 1


@within(10)
async def test_by_name(authority: Authority, trusting: RegistryRules) -> None:
    """A certificate must be for the name in the reference, not for its address (C42)."""
    async with listening(tls=authority.issue("localhost")) as scripted:
        tagged = scripted.push("team/site:v1", IMAGE)
        async with registry_at(scripted.host, trusting) as registry:
            with pytest.raises(RegistryFailed, match="is not for that name"):
                await registry.resolve(tagged)
        scripted.host = scripted.host.replace("127.0.0.1", "localhost")
        tagged = scripted.push("team/site:v1", IMAGE)
        async with registry_at(scripted.host, trusting) as registry:
            assert (await registry.resolve(tagged)).digest == IMAGE.digest


@within(10)
async def test_unknown_authority(authority: Authority) -> None:
    """A certificate of an unknown authority is an error at once, without plain HTTP.

    Rows C42, N07.
    """
    async with listening(tls=authority.issue("127.0.0.1")) as scripted:
        tagged = scripted.push("team/site:v1", IMAGE)
        async with registry_at(scripted.host, RegistryRules()) as registry:
            with pytest.raises(RegistryFailed, match=r"the certificate of 127\.0\.0\.1") as raised:
                await registry.resolve(tagged)
            assert f'known to the system nor in registries."{scripted.host}".ca' in str(
                raised.value
            )
        assert scripted.accepted == 1
        assert scripted.requests == []


@within(10)
async def test_expired(authority: Authority, trusting: RegistryRules) -> None:
    """An expired certificate is an error at once (C42)."""
    async with listening(tls=authority.issue("127.0.0.1", days=-1)) as scripted:
        tagged = scripted.push("team/site:v1", IMAGE)
        async with registry_at(scripted.host, trusting) as registry:
            with pytest.raises(RegistryFailed, match="certificate"):
                await registry.resolve(tagged)
        assert scripted.accepted == 1


@within(10)
@pytest.mark.parametrize(
    "content",
    [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"],
)
async def test_unusable_file(content: bytes | None, authority: Authority, tmp_path: Path) -> None:
    """A ca file that is missing or has no certificate is reported, without its path."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    async with listening(tls=authority.issue("127.0.0.1")) as scripted:
        tagged = scripted.push("team/site:v1", IMAGE)
        async with registry_at(scripted.host, RegistryRules(ca=path)) as registry:
            with pytest.raises(RegistryFailed, match="its ca file cannot be used") as raised:
                await registry.resolve(tagged)
        assert str(path) not in str(raised.value)


@within(10)
async def test_to_plain_http(authority: Authority, trusting: RegistryRules) -> None:
    """Neither a redirect nor a realm leads from https to http (C34)."""
    async with listening(tls=authority.issue("127.0.0.1")) as scripted, listening() as plain:
        rules = attrs.evolve(trusting, allow_hosts=frozenset({plain.host}))
        tagged = scripted.push("team/site:v1", IMAGE)
        async with registry_at(scripted.host, rules, Credential("reader", "secret")) as registry:
            scripted.script("/v2/", redirect(f"http://{plain.host}/v2/"))
            with pytest.raises(RegistryFailed, match="redirects from https to http"):
                await registry.resolve(tagged)
            challenge = f'Bearer realm="http://{plain.host}/token"'
            scripted.script("/v2/", status(401, WWW_Authenticate=challenge))
            with pytest.raises(RegistryFailed, match="its token realm is not https"):
                await registry.resolve(tagged)
        assert plain.accepted == 0


@within(10)
async def test_origins(authority: Authority, trusting: RegistryRules) -> None:
    """The same host at another port is another origin and gets no credentials (C33)."""
    tls = authority.issue("127.0.0.1")
    async with listening(tls=tls) as scripted, listening(tls=tls) as storage:
        scripted.user = "reader:secret"
        rules = attrs.evolve(trusting, allow_hosts=frozenset({storage.host}))
        tagged = scripted.push("team/site:v1", IMAGE)
        storage.push("team/site:v1", IMAGE)
        place = f"https://{storage.host}/v2/team/site/blobs/{LAYER.digest}"
        scripted.always(
            "blobs",
            lambda asked, usual: redirect(place)(asked, usual) if asked.authorization else usual,
        )
        sink = Sink()
        async with registry_at(scripted.host, rules, Credential("reader", "secret")) as registry:
            await registry.fetch(tagged.repository, LAYER, sink)
        assert sink.content == IMAGE.blobs[LAYER.digest]
        assert [each.authorization for each in storage.requests] == [None]


@within(10)
async def test_stalled_tls(authority: Authority, trusting: RegistryRules) -> None:
    """A stalled TLS connection is closed without a TLS shutdown, and the pull goes on."""
    async with listening(tls=authority.issue("127.0.0.1")) as scripted:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("blobs", cut(1000, "silence"))
        sink = Sink()
        async with registry_at(scripted.host, trusting, limits=QUICK) as registry:
            await registry.fetch(tagged.repository, LAYER, sink)
            assert sink.content == IMAGE.blobs[LAYER.digest]
            await until(lambda: len(scripted.connections) == 1)


# --- What is said where TLS is amiss --------------------------------------------------------------


def said_of(host: str, rules: RegistryRules | None = None, **more: Any) -> Any:
    """Ask a registry for an image that it has not; returns what went wrong, as text."""

    async def ask() -> str:
        tagged = Reference.parse(f"{host}/team/none:v1")
        async with registry_at(host, rules, **more) as registry:
            with pytest.raises(RegistryFailed) as raised:
                await registry.resolve(tagged)
        return str(raised.value)

    return ask()


INSECURE = RegistryRules(insecure=True)


@within(30)
async def test_plain_http_to_a_real_registry_with_tls(
    authority: Authority, part_directory: Callable[[], Path], running: Any
) -> None:
    """A docker-registry that speaks TLS is told apart: ``insecure: true`` is too much."""
    directory = part_directory()
    registry = DockerRegistry(directory)
    pem = str(shutil.copy(authority.pem("127.0.0.1"), directory / "server.pem"))
    give_away(Path(pem))
    config = json.loads((directory / "registry.yml").read_text())
    config["http"]["tls"] = {"certificate": pem, "key": pem}
    (directory / "registry.yml").write_text(json.dumps(config))
    running(registry)
    said = await said_of(registry.host, INSECURE)
    wanted = f'it speaks TLS; remove insecure: true from registries."{registry.host}"'
    assert said == f"registry {registry.host} failed: {wanted}"


class Alerting(Protocol):
    """Answers as OpenSSL does what is no TLS: by an alert."""

    def dataReceived(self, data: bytes) -> None:
        """See `Protocol.dataReceived`."""
        transport: Any = self.transport
        transport.write(b"\x15\x03\x01\x00\x02\x02\x46")
        transport.loseConnection()


@within(30)
async def test_plain_http_answered_by_an_alert() -> None:
    """A registry that answers plain HTTP with a record of TLS is told apart as well."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    port = reactor.listenTCP(0, Factory.forProtocol(Alerting), interface="127.0.0.1")
    host = f"127.0.0.1:{port.getHost().port}"
    said = await said_of(host, INSECURE)
    assert said.endswith(f'it speaks TLS; remove insecure: true from registries."{host}"')
    await port.stopListening()


@within(30)
@pytest.mark.parametrize(
    "body",
    [
        b"Client sent an HTTP request to an HTTPS server.\n",
        b"<center>The plain HTTP request was sent to HTTPS port</center>",
        b"Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
    ],
)
async def test_servers_that_say_that_tls_is_expected(body: bytes) -> None:
    """The answers of Go, nginx and Apache to plain HTTP at a port for TLS are understood."""
    async with listening() as scripted:
        answers = [Answer(400, body=body)]
        scripted.always("/v2/", lambda *_: answers[-1])
        said = await said_of(scripted.host, INSECURE)
        assert f'it speaks TLS; remove insecure: true from registries."{scripted.host}"' in said
        documented = b'{"errors": [{"code": "X", "detail": "see https://docs.example/"}]}'
        answers.append(Answer(400, body=documented))
        assert (await said_of(scripted.host, INSECURE)).endswith("failed: it answered 400")


@within(30)
async def test_plain_http_that_nothing_answers() -> None:
    """The error for plain HTTP without an answer says that TLS may be expected."""
    async with listening() as scripted:
        scripted.always("/v2/", cut(-1, "close"))
        said = await said_of(scripted.host, INSECURE)
        wanted = f'if it speaks TLS, remove insecure: true from registries."{scripted.host}"'
        assert said.endswith(f"it closed the connection without a response; {wanted}")


@within(30)
async def test_a_redirect_to_https(authority: Authority, tmp_path: Path) -> None:
    """A registry that sends plain HTTP on to its own https, and refuses there, is told apart."""
    async with listening(tls=authority.issue("127.0.0.1")) as secure, listening() as plain:
        secure.user = "reader:secret"
        plain.always("/v2/", redirect(f"https://{secure.host}/v2/team/none/manifests/v1"))
        hosts = frozenset({secure.host})
        rules = RegistryRules(True, authority.write(tmp_path / "ca.pem"), hosts)
        said = await said_of(plain.host, rules)
        wanted = f'remove insecure: true from registries."{plain.host}"'
        assert said.endswith(f"it redirects to https, and answered 401 there; {wanted}")


class HangingUp(Protocol):
    """Closes a connection at the first byte, or resets it."""

    is_abrupt = False

    def dataReceived(self, data: bytes) -> None:
        """See `Protocol.dataReceived`."""
        transport: Any = self.transport
        transport.abortConnection() if self.is_abrupt else transport.loseConnection()


@within(30)
@pytest.mark.parametrize("is_abrupt", [False, True])
async def test_a_registry_that_hangs_up_on_tls(
    is_abrupt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry on loopback that hangs up on TLS is told to be named ``insecure``."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    monkeypatch.setattr(HangingUp, "is_abrupt", is_abrupt)
    port = reactor.listenTCP(0, Factory.forProtocol(HangingUp), interface="127.0.0.1")
    host = f"127.0.0.1:{port.getHost().port}"
    said = await said_of(host, RegistryRules())
    hint = f'if it speaks plain HTTP, set insecure: true in registries."{host}"'
    assert said.endswith(f"it closed the connection instead of speaking TLS; {hint}")
    await port.stopListening()


@within(30)
async def test_no_tls_where_it_must_be(authority: Authority, trusting: RegistryRules) -> None:
    """A registry without TLS where it is expected is told to be named ``insecure``."""
    async with listening() as scripted:
        said = await said_of(scripted.host, trusting)
        hint = f'for plain HTTP set insecure: true in registries."{scripted.host}"'
        assert said.endswith(f"it does not speak TLS; {hint}")


@within(30)
@pytest.mark.parametrize("way", ["manifests", "realm"])
async def test_where_it_leads_is_named(
    authority: Authority, trusting: RegistryRules, way: str
) -> None:
    """A failure at a host that a registry leads to names that host."""
    tls = authority.issue("127.0.0.1")
    async with listening(tls=tls) as scripted, listening(tls=tls) as other, listening() as plain:
        nowhere = f"127.0.0.1:{free_port()}"
        hosts = frozenset({other.host, plain.host, nowhere})
        rules = attrs.evolve(trusting, allow_hosts=hosts)
        other.always("/gone", status(403))
        other.always("/broken", cut(-1, "close"))
        other.always("/busy", status(502))
        steps = [status(500)]
        scripted.always("/v2/", lambda *both: steps[-1](*both))
        for place, problem in {
            f"https://{nowhere}/x": "it does not accept connections",
            f"https://{plain.host}/x": "it does not speak TLS",
            f"https://{other.host}/broken": "it closed the connection without a response",
            f"https://{other.host}/busy": "it answered 502",
            f"https://{other.host}/gone": "it answered 403",
        }.items():
            if way == "realm":
                challenge = f'Bearer realm="{place}"'
                steps.append(status(401, WWW_Authenticate=challenge))
            else:
                steps.append(redirect(place))
            if way == "realm" and place.endswith("gone"):
                continue  # a refusal of credentials, see `test_refused`
            said = await said_of(scripted.host, rules)
            host = place.split("/")[2]
            assert said.endswith(f"it leads to {host}, which failed: {problem}"), said
