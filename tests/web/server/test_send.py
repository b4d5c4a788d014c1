"""The sending of answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from blobserve.names.digest import Digest
from blobserve.store.blobs.content import StoredFile
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.lease import Lease
from blobserve.web.content.derived import DerivedCache
from blobserve.web.content.leased_body import FileBody, SharedLease
from blobserve.web.content.rewrite import Edit, RewriteRecipe
from blobserve.web.http.conditional import Range
from blobserve.web.http.response import Answer, Body, BytesBody
from blobserve.web.server.send import PIECE
from tests.support.extraction import serve
from tests.support.layers import File, layer
from tests.support.stores import now
from tests.support.twisted_answers import GET, SlowBody, connected


def body_of(raw: bytes) -> bytes:
    """Return the bytes after the first head."""
    return raw.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 1_000_000])
def test_back_pressure(size: int) -> None:
    """At most two pieces of a file are in memory, for any size and any slow client."""
    content = bytes(index % 251 for index in range(size))
    channel, wire, resource = connected(Answer(200, (), BytesBody(content)))
    channel.dataReceived(GET)
    while wire.drain():
        pass
    assert body_of(wire.sent) == content
    assert b"Content-Length: %d\r\n" % size in wire.sent
    assert wire.most <= 2 * PIECE + 1024
    assert resource.outcomes == [None]


def test_not_finished_before_sent() -> None:
    """A response ends when its bytes are sent, so that no idle timeout cuts it off."""
    channel, wire, resource = connected(Answer(200, (), BytesBody(b"x" * PIECE)))
    channel.dataReceived(GET)
    assert resource.outcomes == []
    wire.drain()
    assert resource.outcomes == [None]


def test_pipelining() -> None:
    """The next answer is not sent to a client that does not read."""
    answers = [Answer(200, (), BytesBody(b"x" * PIECE)) for _ in range(20)]
    channel, wire, resource = connected(*answers)
    channel.dataReceived(GET * 20)
    assert wire.most < 2 * PIECE
    while wire.drain():
        pass
    assert len(resource.outcomes) == 20
    assert wire.sent.count(b"HTTP/1.1 200 OK") == 20


def test_cold_pieces() -> None:
    """Uncached bytes are read in threads, in order, and short reads are continued."""
    body = SlowBody(bytes(range(256)) * 1024)
    channel, wire, resource = connected(Answer(206, (), body, Range(1000, 2 * PIECE)))
    channel.dataReceived(GET)
    while body.reads:
        assert len(body.reads) == 1
        body.answer(at_most=50_000)
        wire.drain()
    assert body_of(wire.sent) == body.content[1000 : 1000 + 2 * PIECE]
    assert (resource.outcomes, body.closed) == ([None], 1)


@pytest.mark.parametrize("outcome", [OSError("EIO"), b""])
def test_lost_content(outcome: Exception | bytes) -> None:
    """Content that cannot be read to its end is an error, never an end."""
    body = SlowBody(b"x" * 100)
    channel, _wire, resource = connected(Answer(200, (), body))
    channel.dataReceived(GET)
    body.answer(at_most=10)
    wanted = body.reads[0][2]
    if isinstance(outcome, bytes):
        wanted.callback(outcome)
    else:
        wanted.errback(outcome)
    [failure] = resource.outcomes
    assert failure.check(OSError, EOFError)
    assert body.closed == 1


def test_client_leaves() -> None:
    """Reading stops when the client has left."""
    body = SlowBody(b"x" * 100)
    channel, _wire, resource = connected(Answer(200, (), body))
    channel.dataReceived(GET)
    channel.connectionLost(Failure(ConnectionLost()))
    assert (len(resource.outcomes), body.closed, len(body.reads)) == (1, 1, 1)
    body.answer()
    assert body.reads == []


@pytest.mark.parametrize(
    ("answer", "length"),
    [
        (Answer(200, (), BytesBody(b"12345")), b"5"),
        (Answer(206, (), BytesBody(b"12345"), Range(1, 2)), b"2"),
        (Answer(404, (), BytesBody(b"12345")), b"5"),
    ],
)
def test_head(answer: Answer, length: bytes) -> None:
    """HEAD has the Content-Length of GET and no body."""
    channel, wire, _ = connected(answer)
    channel.dataReceived(GET.replace(b"GET", b"HEAD"))
    assert b"Content-Length: " + length + b"\r\n" in wire.value()
    assert body_of(wire.value()) == b""


@pytest.mark.parametrize("status", [204, 304])
def test_bodiless(status: int) -> None:
    """204 and 304 have neither a body nor a length."""
    channel, wire, _ = connected(Answer(status))
    channel.dataReceived(GET)
    assert wire.value().endswith(b"\r\n\r\n")
    assert b"Content-Length" not in wire.value()
    assert b"Content-Type" not in wire.value()
    assert b"Transfer-Encoding" not in wire.value()


class HeldThreads:
    """Threads with jobs that end when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def run(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        ended: Deferred[Any] = Deferred()
        self.jobs.append(lambda: ended.callback(f(*args, **kwargs)))
        return ended


@attrs.define(eq=False)
class FakeBlob:
    """A blob that counts its releases."""

    filesystem: Any = None
    released: int = 0

    def release(self) -> None:
        self.released += 1


def held(filesystem: Any = None) -> tuple[SharedLease, FakeBlob, HeldThreads]:
    """Return a shared lease, its blob, and the threads that read it."""
    blob, threads = FakeBlob(filesystem), HeldThreads()
    lease = Lease(cast("Any", blob), Digest.of(b""), 1, "hit", 0.0)
    return SharedLease(lease, threads, Clock(), 0.0), blob, threads


def test_a_thread_keeps_the_lease() -> None:
    """A lease is kept while a thread reads, even if no client waits for the bytes."""
    hold, blob, threads = held()
    waiting = hold.run(lambda: b"late")
    failures: list[Failure] = []
    waiting.addErrback(failures.append)
    hold.release()
    waiting.cancel()
    assert (len(failures), blob.released) == (1, 0)
    threads.jobs.pop()()
    assert blob.released == 1


def test_a_body_keeps_the_lease() -> None:
    """A body can be read until it is closed, which releases its lease."""
    hold, blob, _ = held()
    body: Body = FileBody(hold, StoredFile(cast("Any", None), Entry(b"a", EntryKind.FILE, size=7)))
    hold.release()
    assert (blob.released, body.size) == (0, 7)
    body.close()
    assert blob.released == 1


def test_a_rewritten_file_keeps_the_lease(tmp_path: Path) -> None:
    """A lease lasts until a file is rewritten, although the first request was cancelled."""
    filesystem = serve(tmp_path, layer([File(b"a", b"one")], "none"))
    hold, blob, threads = held(filesystem)
    cache, recipe = DerivedCache(), RewriteRecipe((Edit(b"one", b"two", "replacements"),), 100)
    first, second = (
        Deferred.fromCoroutine(cache.get(hold, filesystem.lookup(b"a"), recipe)) for _ in range(2)
    )
    first.addErrback(lambda _: None)
    first.cancel()
    hold.release()
    while threads.jobs:
        assert blob.released == 0
        threads.jobs.pop()()
    assert (now(second).content, blob.released) == (b"two", 1)
    filesystem.close()
