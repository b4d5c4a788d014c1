"""Look-ups of names: in their own threads, once at a time, and within a time limit."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, gatherResults

from blobserve.concurrency.threads import OwnThreads
from blobserve.oci.http.connect_errors import problem_of
from blobserve.oci.http.name_lookup import Names, NameTooSlow, TooManyNames
from tests.support.source_fixtures import until
from tests.support.within import within


@attrs.define
class SlowResolver:
    """A resolver that gives no answer for names that end in ``.slow`` until the test says so."""

    asked: list[str] = attrs.field(factory=list)
    answer: threading.Event = attrs.field(factory=threading.Event)

    def getaddrinfo(self, host: bytes, port: int, *_: Any, **__: Any) -> list[Any]:
        """See `socket.getaddrinfo`."""
        name = host.decode()
        self.asked.append(name)
        if name.endswith(".slow"):
            self.answer.wait(30)
        if name.startswith("absent"):
            raise socket.gaierror
        four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))
        six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2606:4700::1", port, 0, 0))
        return [six, four]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowResolver]:
    """Install a fake of the system's resolver."""
    resolver = SlowResolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    yield resolver
    resolver.answer.set()


@pytest.fixture
def threads() -> Iterator[OwnThreads]:
    """Start two threads."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    threads = OwnThreads(reactor, 2, "names", is_awaited=False)  # type: ignore[arg-type]
    threads.start()
    yield threads
    threads.stop()


@pytest.fixture
def names(threads: OwnThreads) -> Names:
    """Return a look-up of names in two threads."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    return Names(reactor, threads)


def looking(names: Names, host: str, seconds: float = 20.0) -> Deferred[list[str]]:
    """Look up a name; the Deferred fires with its addresses as text, or with the error as text."""
    found = Deferred.fromCoroutine(names.addresses(host, 443, seconds))
    return found.addCallbacks(
        lambda addresses: [f"{each.host} {each.port}" for each in addresses],
        lambda failure: [problem_of(failure.value)],
    )


@within(20)
async def test_addresses(names: Names, resolver: SlowResolver) -> None:
    """A name gives all its addresses, a missing one none, and an address is not looked up."""
    assert await looking(names, "a.example") == ["2606:4700::1 443", "93.184.216.34 443"]
    assert await looking(names, "absent.example") == []
    assert await looking(names, "192.0.2.1") == ["192.0.2.1 443"]
    assert await looking(names, "::1") == ["::1 443"]
    assert resolver.asked == ["a.example", "absent.example"]


@within(20)
async def test_a_look_up_has_an_end(names: Names, resolver: SlowResolver) -> None:
    """A name that is not resolved in time is an error, and is not looked up a second time.

    Callers that need the same name share a running look-up.
    """
    with pytest.raises(NameTooSlow):
        await names.addresses("a.slow", 443, 0.05)
    assert await looking(names, "a.slow", 0.05) == ["its name was not resolved within 0.05 s"]
    waiting = looking(names, "a.slow")
    assert await looking(names, "other.example") != []
    resolver.answer.set()
    assert await waiting == ["2606:4700::1 443", "93.184.216.34 443"]
    assert resolver.asked == ["a.slow", "other.example"]


@within(20)
async def test_what_nothing_waits_for_is_not_begun(names: Names, resolver: SlowResolver) -> None:
    """A look-up takes no thread if nothing waits for it any more when its turn comes."""
    slow = [looking(names, "a.slow"), looking(names, "b.slow")]
    assert await looking(names, "given.up", 0.05) == ["its name was not resolved within 0.05 s"]
    given_up_and_wanted = looking(names, "wanted.again", 0.05)
    await given_up_and_wanted
    wanted = looking(names, "wanted.again")
    resolver.answer.set()
    await gatherResults(slow)
    assert await wanted == ["2606:4700::1 443", "93.184.216.34 443"]
    await until(lambda: not names._asking)
    assert sorted(resolver.asked) == ["a.slow", "b.slow", "wanted.again"]


@within(20)
async def test_waiting_names_are_bounded(names: Names, resolver: SlowResolver) -> None:
    """A thousand names may wait for a look-up; one more fails at once, and the others go on."""
    waiting = [looking(names, f"{n}.slow") for n in range(1000)]
    with pytest.raises(TooManyNames):
        await names.addresses("one.more", 443, 20)
    assert await looking(names, "one.more") == ["too many names are being looked up"]
    again = looking(names, "7.slow")
    resolver.answer.set()
    await gatherResults([*waiting, again])
    assert await looking(names, "one.more") != []


@within(20)
async def test_a_pool_that_asks_others_ends_at_once(
    names: Names, threads: OwnThreads, resolver: SlowResolver
) -> None:
    """The end of a pool of look-ups does not wait for one that hangs."""
    ended = looking(names, "a.slow")
    await until(lambda: resolver.asked)
    await threads.stopped()
    assert not ended.called
    resolver.answer.set()
    await ended
