"""The quota of a blob space: the bytes that are taken, the order of eviction, and reservations.

All of it runs on one thread. Bytes are counted before they are written, and until they are removed,
so `Quota.size` is never less than the bytes on disk.

Reservations are served one at a time, those of the oldest pull first. A reservation evicts READY
blobs that are not being read, in the order of `BlobLru.victims`. When none is left, the youngest
pull gives up. So two pulls never wait for each other, and the oldest never gives up for another.
The parts of one image are as old as the image, and must fit together. See
docs/reference/blob-space.md, "Quota".
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Mapping
from functools import partial
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from blobserve.errors import BlobserveError, DiskFull, ImageTooLarge, SpaceContended
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import ReadyBlob
from blobserve.store.blobs.filesystem import ImageFilesystem


class Quota:
    """A count of bytes against a limit. If `limit` is None, only the disk sets one."""

    def __init__(self, limit: int | None, measured: Callable[[], int] = lambda: 0) -> None:
        """`measured` returns further bytes, which another object counts."""
        self.limit = limit
        self._taken = 0
        self._measured = measured

    @property
    def size(self) -> int:
        """The bytes that are on disk, or may be at any moment."""
        return self._taken + self._measured()

    def missing(self, size: int = 0) -> int:
        """Return the bytes to free before `size` more may be taken."""
        return 0 if self.limit is None else max(0, self.size + size - self.limit)

    def take(self, size: int) -> None:
        """Count bytes that are, or may be from now on, on disk."""
        self._taken += size

    def give(self, size: int) -> None:
        """Stop counting bytes that were removed, or will not be written."""
        self._taken -= size


class BlobLru:
    """The READY blobs, the least recently used first."""

    def __init__(self) -> None:
        self.current: Container[Digest] = ()
        """The blobs that a tag currently serves, which are evicted last."""
        self.kept: Mapping[Digest, float] = {}
        """The blobs of earlier versions of tags, with the time when the newest one ended."""
        self.size = 0
        """The bytes that all of them take."""
        self._blobs: OrderedDict[Digest, ReadyBlob] = OrderedDict()
        self._open: OrderedDict[Digest, ReadyBlob] = OrderedDict()

    def __iter__(self) -> Iterator[ReadyBlob]:
        return iter(self._blobs.values())

    def __contains__(self, blob: ReadyBlob) -> bool:
        return self._blobs.get(blob.digest) is blob

    def get(self, digest: Digest) -> ReadyBlob | None:
        """Return the READY blob of this digest."""
        return self._blobs.get(digest)

    def add(self, blob: ReadyBlob) -> None:
        """Add a blob as the most recently used; none of this digest may be present."""
        self._blobs[blob.digest] = blob
        self.size += blob.size
        if blob.filesystem is not None:
            self._open[blob.digest] = blob

    def remove(self, blob: ReadyBlob) -> None:
        """Remove a blob."""
        del self._blobs[blob.digest]
        self.size -= blob.size
        self._open.pop(blob.digest, None)

    def grow(self, blob: ReadyBlob, size: int) -> None:
        """Count `size` bytes more for a blob, present or already removed."""
        blob.size += size
        if blob in self:
            self.size += size

    def touch(self, blob: ReadyBlob) -> None:
        """Move a blob to the recently used end."""
        self._blobs.move_to_end(blob.digest)
        if blob.filesystem is not None:
            self._open.move_to_end(blob.digest)

    def touch_for(self, digests: Iterable[Digest]) -> Callable[[], None]:
        """Return a callback that counts a use of these blobs.

        The callback only marks the blobs, so that a response from memory can afford it. `victims`
        and `close` move the marked blobs to the recently used end. Blobs that are not READY now
        are left out.
        """
        return partial(_touch, list(filter(None, map(self._blobs.get, digests))))

    def opened(self, blob: ReadyBlob, filesystem: ImageFilesystem) -> None:
        """Record that a closed blob was opened."""
        blob.filesystem = filesystem
        self._open[blob.digest] = blob

    def open_blobs(self) -> Iterator[ReadyBlob]:
        """Iterate over the open blobs, the most recently used first.

        No blob may be added, removed, opened or closed meanwhile.
        """
        return reversed(self._open.values())

    def close(self, most: int) -> None:
        """Close the least recently used of the open blobs without a lease, all but `most`."""
        self._apply_touches(self._open)
        idle = [blob for blob in self._open.values() if not blob.leases]
        for blob in idle[: max(0, len(idle) - most)]:
            del self._open[blob.digest]
            blob.close()

    def victims(self, size: int) -> list[ReadyBlob]:
        """Return the blobs to evict for `size` bytes; all without a lease if they are too few.

        Blobs that no tag serves or keeps come first, the least recently used before the others.
        Then come those of `kept`, the oldest version first. Those in `current` are the last.
        """
        self._apply_touches(self._blobs)
        victims: list[ReadyBlob] = []
        for blob in self._in_order():
            if size <= 0:
                break
            victims.append(blob)
            size -= blob.size
        return victims

    def _in_order(self) -> Iterator[ReadyBlob]:
        """Yield all blobs without a lease, in the order of eviction."""
        kept, current = list[ReadyBlob](), list[ReadyBlob]()
        for blob in self:
            if blob.leases:
                continue
            if blob.digest in self.current:
                current.append(blob)
            elif blob.digest in self.kept:
                kept.append(blob)
            else:
                yield blob
        yield from sorted(kept, key=lambda each: self.kept[each.digest])
        yield from current

    def _apply_touches(self, blobs: Mapping[Digest, ReadyBlob]) -> None:
        for blob in [each for each in blobs.values() if each.is_touched]:
            blob.is_touched = False
            self.touch(blob)


def _touch(blobs: Iterable[ReadyBlob]) -> None:
    for blob in blobs:
        blob.is_touched = True


class ReservationOwner(Protocol):
    """A piece of work that makes reservations, and returns all of them when it must give up."""

    digest: Digest
    held: int
    """Bytes that are reserved for it."""

    async def give_up(self, error: BlobserveError) -> None:
        """Fail with `error`; return when its bytes are returned, or when it has succeeded."""
        ...


@attrs.frozen(eq=False)
class ImageGroup:
    """The parts of an image that is being pulled: its layers, and their merged index."""

    image: Digest
    parts: frozenset[Digest]
    since: int
    """Its age, on the scale of `Allocator.enter`: the highest is the youngest."""


@attrs.frozen(eq=False)
class _Reservation:
    owner: ReservationOwner | None
    minimum: int
    preferred: int
    expected: int
    answer: Deferred[int]


class Allocator:
    """The reservations of a blob space."""

    def __init__(
        self,
        quota: Quota,
        lru: BlobLru,
        evict: Callable[[list[ReadyBlob]], Awaitable[None]],
    ) -> None:
        self._quota = quota
        self._lru = lru
        self._evict = evict
        self._owners: dict[ReservationOwner, float] = {}
        """The age of each; infinity for those that give way, so that they stay the youngest."""
        self._images: list[ImageGroup] = []
        self._entered = 0
        self._requests: list[_Reservation] = []
        self._serving = False

    def enter(self, owner: ReservationOwner, gives_way: bool = False) -> None:
        """Admit an owner, as the youngest.

        An owner that `gives_way` stays younger than all others, also those that enter later.
        """
        self._entered += 1
        self._owners[owner] = math.inf if gives_way else self._entered

    def leave(self, owner: ReservationOwner, kept: int) -> None:
        """Return all bytes that an owner holds except those it has `kept` on disk; call it once."""
        del self._owners[owner]
        self._quota.give(owner.held - kept)

    def begin(self, image: Digest, parts: frozenset[Digest]) -> ImageGroup:
        """Treat the pulls of these parts as one image until `end`."""
        self._entered += 1
        group = ImageGroup(image, parts, self._entered)
        self._images.append(group)
        return group

    def end(self, group: ImageGroup) -> None:
        """End a group when its image is READY or has failed; call it once."""
        self._images.remove(group)

    def reserve(
        self, owner: ReservationOwner | None, minimum: int, preferred: int = 0, expected: int = 0
    ) -> Deferred[int]:
        """Reserve between `minimum` and `preferred` bytes; fires with the number.

        `expected` is the total that the owner still has to write, if known. An image that can never
        fit fails before anything is evicted for this request. `owner` None is for small files:
        these requests are served before every pull, and no pull gives up for them. Cancelling
        withdraws the request.

        :raises ImageTooLarge: when the image does not fit into an otherwise empty blob space.
        :raises SpaceContended: when nothing is left to evict, and an older pull is running. For
            `owner` None: when more than one pull is running.
        :raises DiskFull: when nothing is left to evict, in all other cases.
        """
        request = _Reservation(
            owner, minimum, max(minimum, preferred), expected, Deferred(self._withdraw)
        )
        self._requests.append(request)
        if not self._serving:
            Deferred.fromCoroutine(self._serve())
        return request.answer

    async def shrink(self) -> None:
        """Evict blobs, then stop the youngest pulls, until a lowered quota is kept."""
        while missing := self._quota.missing():
            if victims := self._lru.victims(missing):
                await self._evict(victims)
            elif self._owners:
                youngest = max(self._owners, key=self._since)
                await youngest.give_up(SpaceContended())
            else:
                return

    async def relieve(self, size: int) -> bool:
        """Evict blobs to free `size` bytes of a full disk; return whether it evicted any."""
        victims = self._lru.victims(size)
        await self._evict(victims)
        return bool(victims)

    def _withdraw(self, answer: Deferred[int]) -> None:
        self._requests = [each for each in self._requests if each.answer is not answer]

    def _since(self, owner: ReservationOwner) -> float:
        entered = self._owners[owner]
        images = () if entered == math.inf else self._images_of(owner)
        return min([entered, *(each.since for each in images)])

    def _images_of(self, owner: ReservationOwner) -> list[ImageGroup]:
        return [each for each in self._images if owner.digest in each.parts]

    async def _serve(self) -> None:
        self._serving = True
        while self._requests:
            request = min(
                self._requests,
                key=lambda each: -1.0 if each.owner is None else self._since(each.owner),
            )
            outcome: int | Failure
            try:
                outcome = await self._grant(request)
            except Exception:  # noqa: BLE001 - the caller gets any error
                outcome = Failure()
            if request in self._requests:  # not withdrawn meanwhile
                self._requests.remove(request)
                if isinstance(outcome, int):
                    self._quota.take(outcome)
                    if request.owner is not None:
                        request.owner.held += outcome
                request.answer.callback(outcome)
        self._serving = False

    async def _grant(self, request: _Reservation) -> int:
        while request in self._requests:
            await self._refuse_if_too_large(request)
            for size in (request.preferred, request.minimum):
                if await self._evict_for(size):
                    return size
            youngest = max(self._owners, key=self._since, default=None)
            if request.owner is None or youngest is None:
                raise SpaceContended if len(self._owners) > 1 else DiskFull
            since = self._since(request.owner)
            if self._since(youngest) == since:  # it is the owner, or a part of the same image
                is_alone = all(self._since(each) == since for each in self._owners)
                raise DiskFull if is_alone else SpaceContended
            await youngest.give_up(SpaceContended())
        return 0

    async def _refuse_if_too_large(self, request: _Reservation) -> None:
        """Refuse a request that would not fit even if everything else were evicted."""
        owner, limit = request.owner, self._quota.limit
        if limit is None or owner is None:
            return
        images = [] if self._owners[owner] == math.inf else self._images_of(owner)
        held = min(map(self._held_by, images), default=owner.held)
        removable = self._lru.size + sum(each.held for each in self._owners)
        most = limit - (self._quota.size - removable)
        # Bytes outside blobs and pulls may be free by the time that all of it is written.
        if held + request.minimum <= most and held + request.expected <= limit:
            return
        error = ImageTooLarge(str(images[0].image if images else owner.digest), limit)
        for each in list(self._owners):
            others = self._images_of(each)
            if each is not owner and others and all(other in images for other in others):
                await each.give_up(error)
        raise error

    def _held_by(self, image: ImageGroup) -> int:
        """Return the bytes that the parts of an image take so far, READY or not."""
        ready = filter(None, map(self._lru.get, image.parts))
        pulls = [owner for owner, since in self._owners.items() if since != math.inf]
        coming = (owner.held for owner in pulls if owner.digest in image.parts)
        return sum(kept.size for kept in ready) + sum(coming)

    async def _evict_for(self, size: int) -> bool:
        """Return whether `size` bytes are free, after evicting blobs if that suffices."""
        while missing := self._quota.missing(size):
            victims = self._lru.victims(missing)
            if sum(blob.size for blob in victims) < missing:
                return False
            await self._evict(victims)
        return True
