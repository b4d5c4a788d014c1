"""A token endpoint for a registry, which signs tokens by the registry's token specification."""

from __future__ import annotations

import base64
import datetime
import json
import secrets
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ISSUER, SERVICE = "tests", "registry.tests"


@attrs.frozen
class TokenRequest:
    """The scopes and credentials of one token request."""

    scopes: tuple[str, ...]
    authorization: str
    status: int


class TokenEndpoint:
    """A token endpoint that grants `user` (``name:password``) any scope, and no other user.

    Without `user` it grants every client any scope. Tokens live `lifetime` seconds.
    """

    def __init__(self, directory: Path, user: str | None = None, lifetime: int = 300) -> None:
        self.user, self.lifetime = user, lifetime
        self.requests: list[TokenRequest] = []
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(self._key)
        self._bundle = directory / "tokens.pem"
        self._bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

        der = certificate.public_bytes(serialization.Encoding.DER)
        self._header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._answering())
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to answer."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def settings(self) -> dict[str, object]:
        """The settings of a registry that accepts the tokens of this endpoint."""
        token = {
            "realm": f"http://{self.host}/token",
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": str(self._bundle),
        }
        return {"auth": {"token": token}}

    def token(self, scopes: Sequence[str]) -> str:
        """Return a signed token for these scopes (``repository:team/site:pull``)."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": (self.user or "").partition(":")[0],
            "aud": SERVICE,
            "nbf": now - 10,
            "iat": now,
            "exp": now + self.lifetime,
            "jti": secrets.token_hex(8),
            "access": [_access(scope) for scope in scopes],
        }
        signed = b".".join(_base64url(json.dumps(each).encode()) for each in (self._header, claims))
        r, s = decode_dss_signature(self._key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return (signed + b"." + _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()

    def _answering(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Answering(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                authorization = self.headers.get("Authorization", "")
                scopes = tuple(parse_qs(urlsplit(self.path).query).get("scope", ()))
                status = 200 if endpoint._knows(authorization) else 401
                endpoint.requests.append(TokenRequest(scopes, authorization, status))
                answer = {"errors": [{"code": "UNAUTHORIZED"}]}
                if status == 200:
                    answer = {"token": endpoint.token(scopes), "expires_in": endpoint.lifetime}
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Answering

    def _knows(self, authorization: str) -> bool:
        if self.user is None:
            return True
        return authorization == "Basic " + base64.b64encode(self.user.encode()).decode()


def _access(scope: str) -> dict[str, object]:
    kind, name, actions = scope.split(":")
    return {"type": kind, "name": name, "actions": actions.split(",")}


def _base64url(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ISSUER)])
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
