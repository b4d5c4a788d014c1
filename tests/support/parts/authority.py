"""A private certificate authority, and the certificates that it issues."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from twisted.internet.ssl import DefaultOpenSSLContextFactory


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
        path = str(self.pem(*names, days=days))
        return DefaultOpenSSLContextFactory(path, path, SSL.TLS_METHOD)

    def pem(self, *names: str, days: int = 1) -> Path:
        """Write a new key and its certificate for these names or addresses into one file."""
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
        return path

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
