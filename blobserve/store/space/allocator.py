"""Room for what is about to be written: who gets it, what goes for it, who gives up.

Requests are served one at a time, the oldest pull's first. To serve one, READY blobs that nobody
reads are removed by last use; when none is left, the youngest pull gives up, so the oldest always
gets on and no two wait for each other. The parts of one image are as old as the image, and must fit
together. Knows neither files nor how to evict.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from blobserve.errors import BlobserveError, DiskFull, ImageTooLarge, SpaceContended
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import ReadyBlob
from blobserve.store.space.quota import BlobLru, Quota


class ReservationOwner(Protocol):
    """What asks for room again and again, and can be told to give all of it back."""

    digest: Digest
    held: int
    """Bytes that were given to it."""

    async def give_up(self, error: BlobserveError) -> None:
        """Fail with `error`; returns when its bytes are back, or it has succeeded after all."""
        ...


@attrs.frozen(eq=False)
class ImageGroup:
    """The parts of an image that is being pulled: its layers, and their tree."""

    image: Digest
    parts: frozenset[Digest]
    since: int
    """When it began, in the count by which pulls enter."""


@attrs.frozen(eq=False)
class _Reservation:
    owner: ReservationOwner | None
    minimum: int
    preferred: int
    expected: int
    answer: Deferred[int]


class Allocator:
    """Gives out the bytes of a blob space."""

    def __init__(
        self,
        bound: Quota,
        shelf: BlobLru,
        evict: Callable[[list[ReadyBlob]], Awaitable[None]],
    ) -> None:
        self._bound = bound
        self._shelf = shelf
        self._evict = evict
        self._pulls: dict[ReservationOwner, float] = {}
        """When each entered; those that give way are the youngest for ever."""
        self._images: list[ImageGroup] = []
        self._entered = 0
        self._requests: list[_Reservation] = []
        self._serving = False

    def enter(self, pull: ReservationOwner, gives_way: bool = False) -> None:
        """Let a pull ask from now on; it is the youngest.

        One that `gives_way` is no pull, and counts as younger than every pull, those to come too.
        """
        self._entered += 1
        self._pulls[pull] = math.inf if gives_way else self._entered

    def leave(self, pull: ReservationOwner, kept: int) -> None:
        """Take back all that a pull holds but the bytes it has `kept` on disk; once only."""
        del self._pulls[pull]
        self._bound.give(pull.held - kept)

    def begin(self, image: Digest, parts: frozenset[Digest]) -> ImageGroup:
        """Have the pulls of these parts count as one image's, from now on until `end`."""
        self._entered += 1
        together = ImageGroup(image, parts, self._entered)
        self._images.append(together)
        return together

    def end(self, together: ImageGroup) -> None:
        """The image is READY, or has failed; once only."""
        self._images.remove(together)

    def reserve(
        self, owner: ReservationOwner | None, minimum: int, preferred: int = 0, expected: int = 0
    ) -> Deferred[int]:
        """Reserve between `minimum` and `preferred` bytes; fires with the number.

        Fails at once if `expected`, the total still to come, can never fit: nothing is evicted
        then. `owner` None is for something small. It is served before every pull, and no pull gives
        up for it. Cancelling withdraws the request.

        :raises ImageTooLarge: when the owner could not go on in an otherwise empty blob space.
        :raises SpaceContended: when older pulls have the rest.
        :raises DiskFull: when all that is left is being read, or the disk has no more.
        """
        request = _Reservation(
            owner, minimum, max(minimum, preferred), expected, Deferred(self._withdraw)
        )
        self._requests.append(request)
        if not self._serving:
            Deferred.fromCoroutine(self._serve())
        return request.answer

    async def shrink(self) -> None:
        """Have go what is beyond the bound, as after it was lowered: blobs, then young pulls."""
        while missing := self._bound.missing():
            if victims := self._shelf.victims(missing):
                await self._evict(victims)
            elif self._pulls:
                youngest = max(self._pulls, key=self._since)
                await youngest.give_up(SpaceContended())
            else:
                return

    async def relieve(self, size: int) -> bool:
        """Evict `size` bytes because the disk itself is full; whether anything could go."""
        victims = self._shelf.victims(size)
        await self._evict(victims)
        return bool(victims)

    def _withdraw(self, answer: Deferred[int]) -> None:
        self._requests = [each for each in self._requests if each.answer is not answer]

    def _age(self, request: _Reservation) -> float:
        return -1.0 if request.owner is None else self._since(request.owner)

    def _since(self, pull: ReservationOwner) -> float:
        entered = self._pulls[pull]
        images = () if entered == math.inf else self._images_of(pull)
        return min([entered, *(each.since for each in images)])

    def _images_of(self, pull: ReservationOwner) -> list[ImageGroup]:
        return [each for each in self._images if pull.digest in each.parts]

    async def _serve(self) -> None:
        self._serving = True
        while self._requests:
            request = min(self._requests, key=self._age)
            outcome: int | Failure
            try:
                outcome = await self._room_for(request)
            except Exception:  # noqa: BLE001 - whatever it is, the asker must hear of it
                outcome = Failure()
            if request in self._requests:  # not withdrawn meanwhile
                self._requests.remove(request)
                self._answer(request, outcome)
        self._serving = False

    def _answer(self, request: _Reservation, outcome: int | Failure) -> None:
        if isinstance(outcome, int):
            self._bound.take(outcome)
            if request.owner is not None:
                request.owner.held += outcome
        request.answer.callback(outcome)

    async def _room_for(self, request: _Reservation) -> int:
        while request in self._requests:
            await self._refuse_if_too_large(request)
            for size in (request.preferred, request.minimum):
                if await self._make(size):
                    return size
            youngest = max(self._pulls, key=self._since, default=None)
            if request.owner is None or youngest is None:
                raise SpaceContended if len(self._pulls) > 1 else DiskFull
            since = self._since(request.owner)
            if self._since(youngest) == since:  # it is itself, or of the same image
                is_alone = all(self._since(each) == since for each in self._pulls)
                raise DiskFull if is_alone else SpaceContended
            await youngest.give_up(SpaceContended())
        return 0

    async def _refuse_if_too_large(self, request: _Reservation) -> None:
        """Nothing is evicted for what would not fit even if everything else were."""
        pull, limit = request.owner, self._bound.limit
        if limit is None or pull is None:
            return
        images = [] if self._pulls[pull] == math.inf else self._images_of(pull)
        held = min(map(self._held_by, images), default=pull.held)
        removable = self._shelf.size + sum(each.held for each in self._pulls)
        most = limit - (self._bound.size - removable)
        # What is taken beside blobs and pulls may be free by the time that all of it is due.
        if held + request.minimum <= most and held + request.expected <= limit:
            return
        error = ImageTooLarge(str(images[0].image if images else pull.digest), limit)
        for each in list(self._pulls):
            others = self._images_of(each)
            if each is not pull and others and all(other in images for other in others):
                await each.give_up(error)
        raise error

    def _held_by(self, image: ImageGroup) -> int:
        """Bytes that the parts of an image take so far, READY or not."""
        ready = filter(None, map(self._shelf.get, image.parts))
        pulls = [pull for pull, since in self._pulls.items() if since != math.inf]
        coming = (pull.held for pull in pulls if pull.digest in image.parts)
        return sum(kept.size for kept in ready) + sum(coming)

    async def _make(self, size: int) -> bool:
        """Evict until `size` bytes are free; evict nothing if there is not enough to evict."""
        while missing := self._bound.missing(size):
            victims = self._shelf.victims(missing)
            if sum(blob.size for blob in victims) < missing:
                return False
            await self._evict(victims)
        return True
