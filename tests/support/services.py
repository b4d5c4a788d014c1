"""A whole service on its own ports in this process, and requests to it or other servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from blobserve import Blobserve
from tests.support.parts.programs import answers
from tests.support.sites import Client, Response


@attrs.frozen
class Door:
    """An HTTP server on a port of 127.0.0.1."""

    port: int

    async def connect(self) -> Client:
        """Open a connection."""
        from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

        return await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), Client())

    async def begin(
        self, target: str, method: str = "GET", headers: Mapping[str, str] = {}
    ) -> Client:
        """Send a request on its own connection; the caller reads the answer."""
        client = await self.connect()
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        client.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return client

    async def fetch(
        self, target: object, method: str = "GET", headers: Mapping[str, str] = {}
    ) -> Response:
        """Return the answer to one request."""
        client = await self.begin(f"/{target}", method, headers)
        return Response.parse(await client.all())

    def is_shut(self) -> bool:
        """Return whether connections are refused."""
        return not answers(self.port)

    async def fetch_all(self, *targets: object) -> list[Response]:
        """Send requests at once; return their answers."""
        return await gatherResults([Deferred.fromCoroutine(self.fetch(each)) for each in targets])


@attrs.frozen
class Running(Door):
    """A running service and its port."""

    service: Blobserve

    @property
    def probes(self) -> Door:
        """The address of its readiness probe."""
        return Door(self.service.probe_addresses[-1].port)  # type: ignore[attr-defined]

    def counted(self, name: str, **labels: str) -> float:
        """Return the value of one of its metrics."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0


def allowing(host: str, rules: Mapping[str, object] = {}, **own: object) -> dict[str, Any]:
    """Return a configuration under ``blobserve`` that serves all of a plain HTTP registry."""
    registries = {host: {"insecure": True}}
    return {"timeout": "30s", "repos": {f"{host}/*": rules}, "registries": registries, **own}


def configured(location: Path, own: Mapping[str, Any], **top: object) -> dict[str, Any]:
    """Return a configuration around `own`: a free port, a blob space at `location`, no log."""
    space = {"location": location, **own.get("blobSpace", {})}
    own = {"listen": "tcp:0:interface=127.0.0.1", **own, "blobSpace": space}
    probes = {"readinessProbeAddr": "127.0.0.1:0"}
    return {"blobserve": own, "accessLog": {"format": "off"}, **probes, **top}


@asynccontextmanager
async def running(config: Mapping[str, Any]) -> AsyncIterator[Running]:
    """Start a service, and stop it at the end."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    service = Blobserve(reactor, config)
    service.startService()
    try:
        await service.when_started()
        yield Running(service.addresses[0].port, service)  # type: ignore[attr-defined]
    finally:
        await service.stopService()
