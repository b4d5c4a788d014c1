"""Certificates: the authorities that are trusted, and errors."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from twisted.internet.ssl import DefaultOpenSSLContextFactory

from blobserve.config import RegistryRules
from blobserve.errors import RegistryFailed
from blobserve.oci.credentials.keychain import Credential
from blobserve.testing import make_image
from tests.support.scripted_registry import cut, listening, redirect, status
from tests.support.source_fixtures import QUICK, Sink, registry_at, until
from tests.support.within import within

IMAGE = make_image({"index.html": b"a page", "noise": bytes(range(256)) * 8192})
LAYER = IMAGE.layers[0]


@attrs.frozen
class Authority:
    """A private certificate authority."""

    directory: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, directory: Path) -> Authority:
        """Make an authority that keeps its files in `directory`."""
        key = ec.generate_private_key(ec.SECP256R1())
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        builder = _builder("tests", "tests", key).add_extension(constraints, critical=True)
        return cls(directory, key, builder.sign(key, hashes.SHA256()))

    def issue(self, *names: str, days: int = 1) -> Any:
        """Return a server's context with a certificate for these names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = _builder("server", "tests", key, days).add_extension(alternatives, critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ) + certificate.public_bytes(serialization.Encoding.PEM)
        path = self.directory / f"{certificate.serial_number}.pem"
        path.write_bytes(pem)
        return DefaultOpenSSLContextFactory(str(path), str(path), SSL.TLS_METHOD)

    def write(self, path: Path) -> Path:
        """Write the certificate to a file, between other text."""
        pem = self.certificate.public_bytes(serialization.Encoding.PEM)
        path.write_bytes(b"# ours\n" + pem + b"# the end\n")
        return path


def _builder(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, days: int = 1
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


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
            with pytest.raises(RegistryFailed, match="not trusted, or not for it"):
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
            with pytest.raises(RegistryFailed, match=r"the certificate of 127\.0\.0\.1"):
                await registry.resolve(tagged)
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
