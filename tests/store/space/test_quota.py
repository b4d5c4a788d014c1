"""The quota of a blob space, and the order of reservations and evictions."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from blobserve.errors import BlobserveError, DiskFull, ImageTooLarge, SpaceContended
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import ReadyBlob
from blobserve.store.disk.metadata_db import Record
from blobserve.store.space.quota import Allocator, BlobLru, Quota
from blobserve.store.space.stepped_job import SteppedJob
from blobserve.testing import InlineThreads
from tests.support.stores import now


def kept(name: str, size: int = 10) -> ReadyBlob:
    """Return a READY blob of `size` bytes."""
    return ReadyBlob(Record(Digest.of(name.encode()), 0, 0, b"", 0.0), size)


@attrs.define(eq=False)
class Asker:
    """A pull that gives everything back when asked."""

    allocator: Allocator
    digest: Digest = attrs.field(factory=lambda: Digest.of(b"a layer"))
    held: int = 0
    error: BlobserveError | None = None

    async def give_up(self, error: BlobserveError) -> None:
        """See `blobserve.store.space.quota.ReservationOwner`."""
        self.error = error
        self.allocator.leave(self, 0)

    def ask(self, least: int, wish: int = 0) -> Deferred[int]:
        """Request a reservation."""
        return self.allocator.reserve(self, least, wish)


class Stand:
    """An allocator with a quota of 100 bytes and READY blobs of 10 bytes, the oldest first."""

    def __init__(self, *blobs: str, limit: int | None = 100) -> None:
        self.quota, self.lru = Quota(limit), BlobLru()
        self.allocator = Allocator(self.quota, self.lru, self.evict)
        self.blobs = [kept(name) for name in blobs]
        self.evicting: Deferred[None] | None = None
        for blob in self.blobs:
            self.quota.take(blob.size)
            self.lru.add(blob)

    async def evict(self, victims: list[ReadyBlob]) -> None:
        """Remove blobs, after `evicting` fires if it is set."""
        for blob in victims:
            self.lru.remove(blob)
        if self.evicting is not None:
            await self.evicting
        self.quota.give(sum(blob.size for blob in victims))

    def pull(self) -> Asker:
        """Begin a pull, younger than all before it."""
        asker = Asker(self.allocator)
        self.allocator.enter(asker)
        return asker

    def left(self) -> list[int]:
        """Return the numbers of the remaining blobs."""
        return [n for n, blob in enumerate(self.blobs) if blob in self.lru]


def test_the_longest_unused_goes_first() -> None:
    """The least recently used blobs are evicted, and no more of them than needed."""
    stand = Stand(*"abcdefghij")
    stand.lru.touch(stand.blobs[0])
    assert now(stand.pull().ask(15)) == 15
    assert stand.left() == [0, 3, 4, 5, 6, 7, 8, 9]
    assert stand.quota.size == 95


def test_what_is_used_again_goes_last() -> None:
    """A blob that is used again without a new request is kept while that goes on."""
    stand = Stand(*"abcdefghij")
    touch = stand.lru.touch_for([stand.blobs[0].digest])
    for _ in range(3):
        touch()
        now(stand.pull().ask(10))
    assert stand.left() == [0, 4, 5, 6, 7, 8, 9]
    now(stand.pull().ask(70))
    assert stand.left() == []


def test_what_is_used_again_stays_open() -> None:
    """A blob that is used again is not closed if another can be."""
    stand = Stand(*"abc")
    for blob in stand.blobs:
        stand.lru.opened(blob, cast("Any", Nothing()))
    stand.lru.touch_for([stand.blobs[0].digest])()
    stand.lru.close(1)
    assert [blob.filesystem is not None for blob in stand.blobs] == [True, False, False]


class Nothing:
    """A filesystem that can be closed."""

    def close(self) -> None:
        """See `ImageFilesystem.close`."""


def test_what_is_read_stays() -> None:
    """A blob with a lease is never evicted."""
    stand = Stand(*"abcdefghij")
    stand.blobs[0].leases = stand.blobs[2].leases = 1
    now(stand.pull().ask(20))
    assert stand.left() == [0, 2, 4, 5, 6, 7, 8, 9]


def test_what_tags_serve_goes_last() -> None:
    """A blob that a tag serves is evicted after all others, even if it is the oldest."""
    stand = Stand(*"abcdefghij")
    stand.lru.current = frozenset(blob.digest for blob in stand.blobs[:9])
    now(stand.pull().ask(20))
    assert stand.left() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_too_large_flushes_nothing() -> None:
    """A pull that cannot fit into an empty blob space is refused before any eviction."""
    stand = Stand(*"abcdefghij")
    stand.quota.take(5)  # not evictable
    pull = stand.pull()
    with pytest.raises(ImageTooLarge):
        now(pull.ask(96))
    assert len(stand.left()) == 10


def test_nothing_goes_in_vain() -> None:
    """If evicting everything possible is not enough, nothing is evicted."""
    stand = Stand(*"abcdefghij")
    for blob in stand.blobs[:5]:
        blob.leases = 1
    with pytest.raises(DiskFull):
        now(stand.pull().ask(60))
    assert len(stand.left()) == 10


def test_a_wish_is_no_need() -> None:
    """A pull that prefers more than is available gets the bytes that it needs."""
    stand = Stand(*"abcdefghij")
    for blob in stand.blobs[:8]:
        blob.leases = 1
    pull = stand.pull()
    assert now(pull.ask(11, 64)) == 11
    assert pull.held == 11


def test_the_youngest_gives_up() -> None:
    """When pulls compete for space the youngest fails and the oldest goes on."""
    stand = Stand()
    old, middle, young = stand.pull(), stand.pull(), stand.pull()
    for pull in (old, middle, young):
        now(pull.ask(30))
    assert now(old.ask(20)) == 20
    assert isinstance(young.error, SpaceContended)
    assert middle.error is None
    with pytest.raises(SpaceContended):
        now(middle.ask(60))
    assert old.error is None


def test_the_oldest_is_served_first() -> None:
    """The oldest of the waiting pulls gets space first."""
    stand = Stand(*"abcdefghij")
    stand.evicting = gate = Deferred()
    old, middle, young = stand.pull(), stand.pull(), stand.pull()
    order: list[Any] = []
    for pull in (middle, young, old):
        pull.ask(10).addCallback(lambda _, pull=pull: order.append(pull))
    stand.evicting = None
    gate.callback(None)
    assert order == [middle, old, young]


def test_a_cancelled_wait_takes_nothing() -> None:
    """A cancelled request takes no space, and the next one is served."""
    stand = Stand(*"abcdefghij")
    stand.evicting = gate = Deferred()
    first, second = stand.pull(), stand.pull()
    given_up, waiting = first.ask(10), second.ask(10)
    given_up.addErrback(lambda _: None)
    given_up.cancel()
    stand.evicting = None
    gate.callback(None)
    assert now(waiting) == 10
    assert first.held == 0
    assert stand.quota.size == 100


def test_without_a_bound_nothing_is_removed() -> None:
    """Without a quota every reservation is granted, and nothing is evicted."""
    stand = Stand(*"abcdefghij", limit=None)
    assert now(stand.pull().ask(1 << 60)) == 1 << 60
    assert len(stand.left()) == 10


def test_a_full_disk_is_relieved_by_last_use() -> None:
    """On a disk that is full before the quota is, blobs are evicted until none is left."""
    stand = Stand("a", "b", "c", limit=None)
    stand.blobs[2].leases = 1
    assert now(Deferred.fromCoroutine(stand.allocator.relieve(5)))
    assert stand.left() == [1, 2]
    assert now(Deferred.fromCoroutine(stand.allocator.relieve(50)))
    assert not now(Deferred.fromCoroutine(stand.allocator.relieve(5)))
    assert stand.left() == [2]


def test_a_lowered_bound_is_kept() -> None:
    """After the quota was lowered blobs are evicted down to it, the oldest first."""
    stand = Stand(*"abcdefghij")
    stand.quota.limit = 35
    now(Deferred.fromCoroutine(stand.allocator.shrink()))
    assert stand.left() == [7, 8, 9]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60), st.booleans()), max_size=60))
def test_the_books_balance(steps: list[tuple[int, int, bool]]) -> None:
    """For any requests and ends of pulls the quota holds and the counted size is right."""
    stand = Stand(*"abcdef")
    pulls: dict[int, Asker] = {}
    for who, size, ends in steps:
        pull = pulls.get(who)
        if pull is None or pull.error is not None:
            pull = pulls[who] = stand.pull()
        if ends:
            stand.allocator.leave(pulls.pop(who), 0)
        else:
            pull.ask(size // 2, size).addErrback(lambda failure: failure.trap(BlobserveError))
        held = sum(each.held for each in pulls.values() if each.error is None)
        assert stand.quota.size == held + stand.lru.size <= 100


def test_what_gives_way() -> None:
    """Work that gives way fails before every pull, even a younger one, and is served last."""
    stand = Stand(*"abcdefghij")
    lesser = Asker(stand.allocator)
    stand.allocator.enter(lesser, gives_way=True)
    now(lesser.ask(40))
    pull = stand.pull()
    stand.evicting = gate = Deferred()
    order: list[Any] = []
    for asker in (stand.pull(), lesser, pull):
        asker.ask(10).addCallback(lambda _, asker=asker: order.append(asker))
    stand.evicting = None
    gate.callback(None)
    assert order[1:] == [pull, lesser]
    assert now(pull.ask(60)) == 60
    assert isinstance(lesser.error, SpaceContended)
    assert pull.error is None


def test_work_that_waits_for_room() -> None:
    """Work that must give up does so at once, even while it waits for space, and closes."""
    stand = Stand(*"abcdefghij")
    stand.evicting = gate = Deferred()
    work, seen = SteppedJob(Digest.of(b"a layer"), stand.allocator, InlineThreads()), []

    def steps() -> Generator[int, None, None]:
        try:
            yield 0
            yield 10
        finally:
            seen.append("closed")

    async def do() -> None:
        stand.allocator.enter(work, gives_way=True)
        try:
            await work.run(steps())
        except SpaceContended:
            seen.append("gave up")
        stand.allocator.leave(work, 0)
        work.ended.succeed(None)

    done = Deferred.fromCoroutine(do())
    giving_up = Deferred.fromCoroutine(work.give_up(SpaceContended()))
    assert seen == ["closed", "gave up"]
    now(giving_up)
    now(done)
    gate.callback(None)
    assert (work.held, stand.quota.size) == (0, 90)


def test_a_blob_that_grows() -> None:
    """Additional files of a blob are counted with it."""
    stand = Stand("a", "b")
    stand.lru.grow(stand.blobs[0], 5)
    assert (stand.lru.size, stand.blobs[0].size) == (25, 15)
    stand.lru.remove(stand.blobs[0])
    stand.lru.grow(stand.blobs[0], 5)
    assert (stand.lru.size, stand.blobs[0].size) == (10, 20)


def test_the_parts_of_an_image_are_as_old_as_it() -> None:
    """A late layer has the age of its image, and layers of younger images give up first."""
    stand = Stand()
    parts = [Digest.of(name) for name in (b"one", b"two", b"other")]
    image = stand.allocator.begin(Digest.of(b"image"), frozenset(parts[:2]))
    younger = stand.allocator.begin(Digest.of(b"younger"), frozenset(parts[2:]))
    one, other, two = (Asker(stand.allocator, parts[n]) for n in (0, 2, 1))
    for asker in (one, other, two):
        stand.allocator.enter(asker)
        now(asker.ask(30))
    assert now(two.ask(30)) == 30
    assert isinstance(other.error, SpaceContended)
    assert (one.error, one.held, two.held) == (None, 30, 60)
    stand.allocator.end(younger)
    stand.allocator.end(image)


def test_the_parts_of_an_image_fit_together_or_all_end() -> None:
    """A layer that makes its image too large ends the image's other layers, and no others."""
    stand = Stand("ready", *"abcd")
    parts = [Digest.of(name) for name in (b"ready", b"one", b"two", b"shared")]
    large = stand.allocator.begin(Digest.of(b"large"), frozenset(parts))
    stand.allocator.begin(Digest.of(b"small"), frozenset(parts[3:]))
    one, two, shared, foreign = (Asker(stand.allocator, each) for each in (*parts[1:], parts[0]))
    foreign.digest = Digest.of(b"foreign")
    for asker in (one, two, shared, foreign):
        stand.allocator.enter(asker)
        now(asker.ask(10))
    with pytest.raises(ImageTooLarge, match=str(large.image)):
        now(one.ask(61))  # 10 bytes are READY, and 10 of each part are held: 101 in all
    assert isinstance(two.error, ImageTooLarge)
    assert shared.error is foreign.error is None
    assert len(stand.left()) == 5
    assert now(shared.ask(51)) == 51


def test_an_image_alone_among_readers() -> None:
    """For a single image that needs leased space the disk is full; there is no competitor."""
    stand = Stand(*"abcde")
    for blob in stand.blobs:
        blob.leases = 1
    parts = [Digest.of(b"one"), Digest.of(b"two")]
    stand.allocator.begin(Digest.of(b"image"), frozenset(parts))
    one, two = (Asker(stand.allocator, each) for each in parts)
    for asker in (one, two):
        stand.allocator.enter(asker)
        now(asker.ask(20))
    with pytest.raises(DiskFull):
        now(one.ask(20))
    assert two.error is None
