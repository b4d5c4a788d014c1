"""Clients that take their responses slowly, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from twisted.internet.task import Clock

from blobserve.testing import InlineThreads
from blobserve.web.http.response import Answer, BytesBody
from blobserve.web.server.send import PIECE
from blobserve.web.server.slow_clients import PATIENCE, SlowClients
from blobserve.web.site import make_site
from tests.support.sites import TAG, Serving, serving
from tests.support.twisted_answers import (
    GET,
    FileBody,
    ReadableBody,
    SlowBody,
    SlowReader,
    connected,
    sending,
    stored,
    until,
)
from tests.support.within import within

BIG = bytes(range(256)) * 20_000
SECONDS = int(PATIENCE) + 5
"""The time after which a client that takes nothing is certainly dropped."""


class Slow:
    """A response on a transport that the test drains, under a clock that the test moves."""

    def __init__(self, body: Any, minimum: int = 1024) -> None:
        self.clock = Clock()
        self.counted = Counter("slow", "", registry=CollectorRegistry())
        self.minimum = minimum
        self.pace = SlowClients(lambda: self.minimum, self.clock, self.counted)
        self.channel, self.wire, self.site = connected(Answer(200, (), body), pace=self.pace)
        self.channel.dataReceived(GET)

    def wait(self, seconds: int) -> None:
        """Let this much time pass."""
        self.clock.pump([1] * seconds)

    @property
    def is_dropped(self) -> bool:
        """Return whether the connection was aborted, and so counted once."""
        dropped = self.wire.disconnected
        assert self.counted._value.get() == int(dropped)
        return dropped


def test_one_that_takes_nothing() -> None:
    """A client that takes nothing for half a minute is dropped, and not before."""
    slow = Slow(BytesBody(BIG))
    slow.wait(int(PATIENCE) - 1)
    assert not slow.is_dropped
    slow.wait(6)
    assert slow.is_dropped


def test_one_that_pauses() -> None:
    """A client with shorter pauses that takes some bytes in between is served."""
    slow = Slow(BytesBody(BIG))
    while slow.wire.drain():
        slow.wait(int(PATIENCE) - 5)
        assert not slow.is_dropped
    assert slow.site.outcomes == [None]


def test_one_that_is_too_slow_on_average() -> None:
    """A client that takes less than the minimum on average is dropped."""
    slow = Slow(BytesBody(BIG), minimum=8192)
    pieces = 0
    while not slow.is_dropped and pieces < 100:
        slow.wait(25)
        slow.wire.drain()
        pieces += 1
    # Bytes for eight seconds at the minimum, every 25 seconds.
    assert 1 < pieces < 5


def test_one_that_is_just_fast_enough() -> None:
    """A client that takes just the minimum is served to the end."""
    slow = Slow(BytesBody(BIG), minimum=PIECE // 5)
    while slow.wire.drain():
        slow.wait(5)
        assert not slow.is_dropped
    assert slow.site.outcomes == [None]


def test_a_minimum_that_changes() -> None:
    """The minimum of the configuration in force applies; 0 means no minimum."""
    slow = Slow(BytesBody(BIG), minimum=0)
    slow.wait(1000)
    assert not slow.is_dropped
    slow.minimum = 1
    slow.wait(SECONDS)
    assert slow.is_dropped


def test_a_slow_disk() -> None:
    """The time of waiting for the disk does not count."""
    body = SlowBody(BIG)
    slow = Slow(body)
    slow.wait(1000)
    body.answer()
    slow.wire.drain()
    body.answer()
    body.answer()
    slow.wait(25)
    slow.wire.drain()
    slow.wait(1000)
    assert not slow.is_dropped
    body.answer()
    body.answer()
    slow.wait(SECONDS)
    assert slow.is_dropped


def test_fast_clients_cost_nothing() -> None:
    """A response that never waits starts no timer, and one that has ended stops it."""
    fast = Slow(BytesBody(b"small"))
    assert (fast.site.outcomes, fast.clock.getDelayedCalls()) == ([None], [])
    slow = Slow(BytesBody(BIG))
    while slow.wire.drain():
        pass
    slow.wait(6)
    assert (slow.site.outcomes, slow.clock.getDelayedCalls()) == ([None], [])


def test_stopping() -> None:
    """No timer is left when the check is stopped."""
    slow = Slow(BytesBody(BIG))
    slow.pace.stop()
    assert slow.clock.getDelayedCalls() == []
    slow.wait(SECONDS)
    assert not slow.is_dropped


# --- Real sockets ---------------------------------------------------------------------------------


async def is_slow_at(
    directory: Path, kind: type[FileBody], each_look: int, minimum: int = 20_000, looks: int = 40
) -> bool:
    """Return whether a client that takes this many bytes between two looks is dropped."""
    clock = Clock()
    counted = Counter("slow", "", registry=CollectorRegistry())
    pace = SlowClients(lambda: minimum, clock, counted)
    with stored(directory, BIG * 6, kind=kind) as body:
        async with sending(Answer(200, (), body), pace=pace) as (site, port):
            with SlowReader(port.getHost().port) as reader:
                await reader.send(GET)
                await until(clock.getDelayedCalls)
                for _ in range(looks):
                    assert await reader.take(each_look) == each_look or site.outcomes
                    clock.advance(5)
                    if counted._value.get():
                        await until(lambda: site.outcomes)
                        assert body.closed == 1
                        return True
                assert site.outcomes == []
    return False


@within(60)
@pytest.mark.parametrize("kind", [FileBody, ReadableBody])
async def test_by_what_a_socket_has_taken(tmp_path: Path, kind: type[FileBody]) -> None:
    """The measure is the number of bytes that the client's TCP accepts."""
    assert await is_slow_at(tmp_path, kind, 0)
    assert await is_slow_at(tmp_path, kind, 40_000)
    assert not await is_slow_at(tmp_path, kind, 110_000)
    assert not await is_slow_at(tmp_path, kind, 2_000_000, looks=10)


@asynccontextmanager
async def by_a_clock(site: Serving) -> AsyncIterator[tuple[Clock, int]]:
    """Serve the same images on another port, under a clock that the test moves."""
    clock = Clock()
    other = make_site(
        site.store,
        lambda: site.config,
        clock,  # type: ignore[arg-type]
        InlineThreads(),
        site.metrics,
        site.log,
    )
    port = site.reactor.listenTCP(0, other, interface="127.0.0.1")
    try:
        yield clock, port.getHost().port
    finally:
        await port.stopListening()
        await other.drain(1)
    assert clock.getDelayedCalls() == [], "a server that has drained waits for nothing"


@within(30)
@pytest.mark.parametrize("is_dropped", [True, False])
async def test_one_that_is_dropped_by_a_server(tmp_path: Path, is_dropped: bool) -> None:
    """A client that is dropped is logged and counted, and leaves no wait."""
    async with serving(tmp_path, {"big": BIG}) as site:
        sample = site.metrics.registry.get_sample_value
        async with by_a_clock(site) as (clock, port):
            with SlowReader(port) as reader:
                await reader.send(f"GET /{TAG}/big HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert await reader.take(1000) == 1000
                if not is_dropped:
                    reader.reset()
                clock.pump([5] * (8 if is_dropped else 1))
                await until(lambda: not sample("blobserve_requests_in_flight"))
        assert sample("blobserve_slow_clients_total") == int(is_dropped)
        assert [served.status for served in site.log] == [200]
        assert 0 < site.log[0].sent < len(BIG)
