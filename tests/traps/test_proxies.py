"""Requests through proxies that share connections among all clients: row R10."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted

from tests.support.parts.haproxy import HAProxy
from tests.support.parts.nginx import Nginx
from tests.support.parts.programs import own_directory
from tests.support.parts.wire import Reply, replies
from tests.support.sites import Serving, serving
from tests.support.within import within
from tests.traps.cases_http import FILES, LAST, NEXT, PLAIN, Raw

PROXIES: dict[str, Callable[[Path, int], Any]] = {
    "nginx": Nginx.proxying,
    "haproxy": HAProxy,
}
CLOSING = NEXT[:-2] + b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest) -> str:
    """The name of one of the proxies."""
    return request.param


@pytest_twisted.async_yield_fixture(scope="module", params=[True, False], ids=["hot", "parsed"])
async def proxied(request: pytest.FixtureRequest, proxy: str, tmp_path_factory: Any) -> Any:
    """A site behind a proxy; the port of the Serving is the proxy's."""
    with own_directory() as directory:
        where = tmp_path_factory.mktemp("site")
        async with serving(where, FILES, hot_path=request.param) as site:
            part = PROXIES[proxy](directory, site.port)
            try:
                part.start()
                yield attrs.evolve(site, port=part.port)
            finally:
                part.stop()


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
@within(30)
async def test_r10_through_a_proxy(proxied: Serving, case: Raw) -> None:
    """Each client of a proxy gets the reply to its own request, also after one with a body."""
    await ask(proxied, LAST)
    before = len(proxied.log)
    raw = await proxied.exchange(case.raw + CLOSING)
    first, *rest = replies(raw, (case.method, "GET"))
    assert first.status == case.status
    assert first.body == b"this is asked" or case.status != 200
    assert [reply.body for reply in rest] in ([], [b"this is next"])
    # A connection ends after a refusal, and before HTTP/1.1 after any reply.
    assert rest or first.status >= 400 or b" HTTP/1.1\r\n" not in case.raw
    # A body was never read as another request.
    assert len(proxied.log) - before == 1 + len(rest)
    for _ in range(2):
        assert (await ask(proxied, LAST)).body == b"this is last"


async def ask(site: Serving, raw: bytes) -> Reply:
    """Send one request on a connection of its own; return the reply."""
    [reply] = replies(await site.exchange(raw[:-2] + b"Connection: close\r\n\r\n"), ["GET"])
    return reply
