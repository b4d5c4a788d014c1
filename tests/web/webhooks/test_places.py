"""The places that take notifications: a listener, a path of the main listeners, a resource."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import Site

from blobserve.errors import ConfigError
from blobserve.web.webhooks.admission import MOST_BYTES
from tests.support.parts.images import Image, Layer, write_layout
from tests.support.services import Door, Running, configured, running
from tests.support.sites import Response

SECRET = "kestrel-7"
PUSH = {"events": [{"action": "push", "target": {"repository": "team/shop", "tag": "live"}}]}
BEARER = {"Authorization": f"Bearer {SECRET}"}
HEAD = "HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n"


@attrs.frozen
class Place:
    """A running service, and the port and path of one of its places."""

    serving: Running
    door: Door
    path: str
    log: Path
    secret_file: Path
    config: dict[str, Any]

    def counted(self, result: str) -> float:
        """Return the number of notifications with this result."""
        return self.serving.counted("blobserve_notifications_total", result=result)

    async def raw(self, content: bytes) -> Response:
        """Send bytes on a connection of their own; return the answer."""
        client = await self.door.connect()
        client.send(content)
        return Response.parse(await client.all())

    async def post(
        self,
        body: object = PUSH,
        headers: Mapping[str, str] = BEARER,
        below: str = "",
        method: str = "POST",
    ) -> Response:
        """Send a notification; return the answer."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Content-Length": len(content), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return await self.raw(
            f"{method} {self.path}{below} {HEAD}{lines}\r\n".encode("latin-1") + content
        )

    async def logged(self) -> str:
        """Return the access log, once all of it is written."""
        await self.serving.service.stopService()
        return self.log.read_text()


@asynccontextmanager
async def serving(directory: Path, kind: str = "path", **own: Any) -> AsyncIterator[Place]:
    """Start a service with a site from a layout, and with a place of this kind."""
    secret, log = directory / "secret", directory / "access.log"
    secret.write_text(f"{SECRET}\nsecond\n")
    secret.chmod(0o600)
    write_layout(directory / "layout", {"live": Image((Layer.of({"index.html": b"one"}),))})
    repository = "registry.example/team/shop"
    hooks: dict[str, Any] = {"secretFile": str(secret)}
    if kind == "path":
        hooks["path"] = "/-/hooks"
    elif kind == "listen":
        hooks["listen"] = "tcp:0:interface=127.0.0.1"
    config = configured(
        directory / "space",
        {
            "repos": {repository: {"source": f"oci:{directory / 'layout'}"}},
            "sites": {"*": f"{repository}:live"},
            "webhooks": hooks,
            **own,
        },
        accessLog={"format": "text", "file": str(log)},
    )
    async with running(config) as service:
        door, path = Door(service.port), "/-/hooks"
        if kind == "listen":
            [address] = service.service.webhook_addresses
            door, path = Door(address.port), "/any/where"  # type: ignore[attr-defined]
        listening = None
        if kind == "resource":
            from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

            root = Resource()
            root.putChild(b"mine", service.service.webhooks)
            listening = reactor.listenTCP(0, Site(root), interface="127.0.0.1")
            door, path = Door(listening.getHost().port), "/mine"
        try:
            yield Place(service, door, path, log, secret, config)
        finally:
            if listening is not None:
                await listening.stopListening()


KINDS = pytest.mark.parametrize("kind", ["path", "listen", "resource"])


def signature(body: bytes, secret: str = SECRET) -> dict[str, str]:
    """Return the field that GitHub signs a body with."""
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={digest}"}


@KINDS
@pytest_twisted.ensureDeferred
async def test_credentials(tmp_path: Path, kind: str) -> None:
    """Each form of the secret is accepted, for both secrets; a wrong one, or none, is 401."""
    body = json.dumps(PUSH).encode()
    async with serving(tmp_path, kind) as place:
        for headers, below, status in [
            (BEARER, "", 202),
            ({"Authorization": "Bearer second"}, "", 202),
            ({"Authorization": SECRET}, "", 202),
            (signature(body), "", 202),
            ({}, f"/{SECRET}", 202),
            ({}, f"/x/{SECRET}?registry=registry.example", 202),
            ({}, f"/%6b{SECRET[1:]}", 202),
            ({}, "", 401),
            ({"Authorization": "Bearer wrong"}, "", 401),
            ({}, "/wrong", 401),
            ({}, f"/{SECRET}/x", 401),
            ({}, f"?secret={SECRET}", 401),
            (signature(body, "wrong"), "", 401),
            (signature(b"another body"), "", 401),
        ]:
            answer = await place.post(body, headers, below)
            assert (headers, below, answer.status) == (headers, below, status)
            if status == 401:
                assert answer.headers["www-authenticate"] == "Bearer"
        assert place.counted("accepted") == 7
        assert place.counted("unauthorized") == 7


@KINDS
@pytest_twisted.ensureDeferred
async def test_answers(tmp_path: Path, kind: str) -> None:
    """A body that is not JSON is 400; all others are 202 with one text, also unknown pushes."""
    unknown = json.loads(json.dumps(PUSH).replace("team/shop", "team/unknown"))
    async with serving(tmp_path, kind) as place:
        for body, below, status, result in [
            (PUSH, "", 202, "accepted"),
            (PUSH, "?registry=registry.example", 202, "accepted"),
            (PUSH, "?registry=other.example", 202, "unmatched"),
            (PUSH, "?registry=..%2f", 202, "unmatched"),
            (unknown, "", 202, "unmatched"),
            ({"events": []}, "", 202, "ignored"),
            ([], "", 202, "ignored"),
            (b"", "", 400, "malformed"),
            (b"x=1", "", 400, "malformed"),
        ]:
            before = place.counted(result)
            answer = await place.post(body, BEARER, below)
            assert (body, answer.status) == (body, status)
            assert answer.body == (b"accepted\n" if status == 202 else answer.body)
            assert place.counted(result) == before + 1


@KINDS
@pytest_twisted.ensureDeferred
async def test_methods(tmp_path: Path, kind: str) -> None:
    """Only POST is answered."""
    async with serving(tmp_path, kind) as place:
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"):
            answer = await place.post(b"", BEARER, method=method)
            assert (method, answer.status) == (method, 405)
            assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("kind", ["path", "listen"])
@pytest_twisted.ensureDeferred
async def test_before_the_body(tmp_path: Path, kind: str) -> None:
    """A wrong secret, a body that is too large or without a size is refused before it is read."""
    async with serving(tmp_path, kind) as place:
        for fields, status in [
            ("Content-Length: 100\r\n", 401),
            ("Content-Length: 100\r\nAuthorization: wrong\r\n", 401),
            (f"Content-Length: 104857600\r\nAuthorization: {SECRET}\r\n", 413),
            (f"Content-Length: {'9' * 400}\r\nAuthorization: {SECRET}\r\n", 413),
            (f"Content-Length: {MOST_BYTES + 1}\r\nX-Hub-Signature-256: sha256=0\r\n", 413),
            (f"Transfer-Encoding: chunked\r\nAuthorization: {SECRET}\r\n", 411),
            ("Transfer-Encoding: chunked\r\n", 401),
            (f"Content-Length: 5\r\nAuthorization: {SECRET}\r\nAuthorization: x\r\n", 400),
        ]:
            answer = await place.raw(f"POST {place.path} {HEAD}{fields}\r\n".encode())
            assert (fields, answer.status) == (fields, status)
        put = f"PUT {place.path} {HEAD}Content-Length: 5\r\nAuthorization: {SECRET}\r\n\r\n"
        assert (await place.raw(put.encode())).status == 405


@KINDS
@pytest_twisted.ensureDeferred
async def test_largest(tmp_path: Path, kind: str) -> None:
    """A body of one MiB is read; one more byte is 413."""
    async with serving(tmp_path, kind) as place:
        body = json.dumps({"x": ""}).encode()
        body = body[:-2] + b"x" * (MOST_BYTES - len(body)) + body[-2:]
        assert (await place.post(body)).status == 202
        assert (await place.post(body, signature(body))).status == 202
        assert (await place.post(body + b" ")).status == 413


@pytest.mark.parametrize("kind", ["path", "listen"])
@pytest_twisted.ensureDeferred
async def test_slow_body(tmp_path: Path, kind: str) -> None:
    """A body that is not complete in time is 408, and its place is free again."""
    limits = {"clientHeadTimeout": "300ms"}
    async with serving(tmp_path, kind, limits=limits) as place:
        start = f"POST {place.path} {HEAD}Content-Length: 50\r\n"
        for fields in (f"Authorization: {SECRET}\r\n", "X-Hub-Signature-256: sha256=00\r\n"):
            for _ in range(15):
                client = await place.door.connect()
                client.send(f"{start}{fields}\r\n{{".encode())
                last = client
            assert Response.parse(await last.all()).status == 408
        assert (await place.post()).status == 202
        assert place.counted("too-slow") == 30
        assert " 408 " in await place.logged()


@pytest.mark.parametrize("kind", ["path", "listen"])
@pytest_twisted.ensureDeferred
async def test_many_bodies(tmp_path: Path, kind: str) -> None:
    """Unchecked bodies take a bounded part of the places, and those with a secret are received."""
    async with serving(tmp_path, kind) as place:
        start = f"POST {place.path} {HEAD}Content-Length: 50\r\n"
        unchecked = [await place.door.connect() for _ in range(40)]
        for client in unchecked:
            client.send(f"{start}X-Hub-Signature-256: sha256=00\r\n\r\n".encode())
        answers = await gatherResults([each.some(1) for each in unchecked[16:]])
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in answers)
        assert not any(each.received for each in unchecked[:16])
        assert (await place.post()).status == 202
        for client in unchecked:
            client.transport.abortConnection()
        body = json.dumps(PUSH).encode()
        for _ in range(50):
            answer = await place.post(body, signature(body))
            if answer.status == 202:
                break
        assert answer.status == 202


@pytest_twisted.ensureDeferred
async def test_keep_alive(tmp_path: Path) -> None:
    """Several notifications, and requests for files, follow each other on one connection."""
    async with serving(tmp_path) as place:
        body = json.dumps(PUSH)
        post = f"POST /-/hooks HTTP/1.1\r\nHost: a\r\nAuthorization: {SECRET}\r\n"
        post += f"Content-Length: {len(body)}\r\n\r\n{body}"
        get = "GET / HTTP/1.1\r\nHost: a\r\n"
        client = await place.door.connect()
        client.send(f"{post}{get}\r\n{post}{get}Connection: close\r\n\r\n".encode())
        statuses = re.findall(rb"HTTP/1.1 (\d+)", await client.all())
        assert statuses == [b"202", b"200", b"202", b"200"]


@pytest_twisted.ensureDeferred
async def test_before_sites(tmp_path: Path) -> None:
    """The path is that of notifications at every host; other paths stay those of the site."""
    async with serving(tmp_path) as place:
        for path, status in [("", 401), ("/", 401), ("/x", 401), ("x", 405), ("/../x", 401)]:
            answer = await place.post(PUSH, {}, path)
            assert (path, answer.status) == (path, status)
        assert (await place.door.fetch("-/hooks")).status == 405
        assert (await place.door.fetch("-/hooksx")).body == b"one"
        assert (await place.door.fetch("")).body == b"one"


@pytest_twisted.ensureDeferred
async def test_expect(tmp_path: Path) -> None:
    """A sender that waits for 100 Continue gets it, or the refusal."""
    async with serving(tmp_path) as place:
        body = json.dumps(PUSH).encode()
        head = f"POST /-/hooks {HEAD}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n"
        client = await place.door.connect()
        client.send(f"{head}Authorization: {SECRET}\r\n\r\n".encode())
        assert (await client.some(25)).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(body)
        assert b"HTTP/1.1 202 " in await client.all()
        assert (await place.raw(f"{head}\r\n".encode())).status == 401


@KINDS
@pytest_twisted.ensureDeferred
async def test_masked(tmp_path: Path, kind: str) -> None:
    """No secret is in the access log, however it is written in a URL; wrong ones are masked too."""
    encoded = "".join(f"%{ord(each):02x}" for each in SECRET)
    async with serving(tmp_path, kind) as place:
        for below in (f"/{SECRET}", f"/{SECRET}/", f"//{SECRET}?registry=r.example", f"/{encoded}"):
            await place.post(PUSH, {}, below)
            await place.post(b"", {}, below, "GET")
        await place.post(PUSH, {}, "/almost-kestrel-8")
        if kind == "path":
            for target in (
                f"http://h.example/-/hooks/{SECRET}",
                f"/%2d/hooks/{SECRET}",
                f"//-//hooks/{SECRET}",
                f"/old/hooks/{SECRET}",
            ):
                await place.raw(f"POST {target} {HEAD}Content-Length: 1\r\n\r\nx".encode())
        log = await place.logged()
        for word in (SECRET, encoded, "kestrel"):
            assert word not in log
        assert log.count("/***") >= 9
        assert log.count("\n") == 9 + (4 if kind == "path" else 0)
        assert "registry=r.example" in log


@pytest_twisted.ensureDeferred
async def test_rotation(tmp_path: Path) -> None:
    """A new secret is valid soon after the file has changed, and the old one no longer."""
    async with serving(tmp_path) as place:
        place.secret_file.write_text("fresh\n")
        for _ in range(100):
            answer = await place.post(PUSH, {"Authorization": "fresh"})
            if answer.status == 202:
                break
            await until(lambda: False, 0.05, fails=False)
        assert answer.status == 202
        assert (await place.post()).status == 401


@pytest_twisted.ensureDeferred
async def test_reload(tmp_path: Path) -> None:
    """A reload changes path and secrets at once; the listener needs a restart."""
    async with serving(tmp_path) as place:
        service, own = place.serving.service, place.config["blobserve"]
        other = tmp_path / "other"
        other.write_text("fresh")
        hooks = {"path": "/new", "secretFile": str(other)}
        service.reload({**place.config, "blobserve": {**own, "webhooks": hooks}})
        await until(lambda: service._secret_file.secrets.has_any([b"fresh"]))
        assert (await place.post(PUSH, {"Authorization": "fresh"})).status == 405
        moved = attrs.evolve(place, path="/new")
        assert (await moved.post(PUSH, {"Authorization": "fresh"})).status == 202
        assert (await moved.post()).status == 401
        with pytest.raises(ConfigError, match=r"webhooks\.listen: needs a restart"):
            service.reload(
                {
                    **place.config,
                    "blobserve": {**own, "webhooks": {**hooks, "listen": "tcp:0"}},
                }
            )
        plain = {key: value for key, value in own.items() if key != "webhooks"}
        service.reload({**place.config, "blobserve": plain})
        assert (await moved.post(PUSH, {"Authorization": "fresh"})).status == 405


@pytest_twisted.ensureDeferred
async def test_off(tmp_path: Path) -> None:
    """Without webhooks in the configuration, the resource is 404."""
    async with serving(tmp_path, "resource") as place:
        own = {k: v for k, v in place.config["blobserve"].items() if k != "webhooks"}
        place.serving.service.reload({**place.config, "blobserve": own})
        assert (await place.post()).status == 404


@pytest_twisted.ensureDeferred
async def test_stop_during_a_body(tmp_path: Path) -> None:
    """The stop of the service does not wait for a body that is incomplete."""
    for kind in ("path", "listen"):
        directory = tmp_path / kind
        directory.mkdir()
        async with serving(directory, kind) as place:
            client = await place.door.connect()
            client.send(
                f"POST {place.path} {HEAD}Content-Length: 9\r\nAuthorization: {SECRET}\r\n\r\n"
                "{".encode()
            )
            await until(lambda: False, 0.2, fails=False)
            await place.serving.service.stopService()
            await client.all()
            assert client.received == b""


async def until(condition: Any, seconds: float = 5.0, fails: bool = True) -> None:
    """Wait until a condition holds."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    for _ in range(max(1, int(seconds / 0.02))):
        if condition():
            return
        waited: Deferred[None] = deferLater(reactor, 0.02)
        await waited
    assert not fails
