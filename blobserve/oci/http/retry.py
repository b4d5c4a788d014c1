"""Retries: transient failures, and the delay before the next try.

Delays grow exponentially, with full jitter, so that clients of one registry do not retry together.

`rate_limit_pause` reads fields such as ``ratelimit-remaining: 76;w=21600`` of Docker Hub, which
follow an IETF draft (draft-polli-ratelimit-headers).
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from blobserve.errors import BlobserveError, RegistryBusy, RegistryFailed

_AMOUNT = re.compile(r"([0-9]{1,9})(?:\s*;\s*w=([0-9]{1,9}))?")
_LOW_SHARE, _LOW_REMAINDER = 0.2, 20
_USUAL_WINDOW, _LONGEST_PAUSE = 600, 3600

T = TypeVar("T")

TRIES = 5
_DEADLINE = 60.0
_LONGEST_WAIT = 10.0  # A waiting pull holds a permit for a download.
_FIRST_DELAY = 0.25
_LONGEST_RETRY_AFTER = 60.0
_DOWN_FOR = 10.0
_HOSTS = 64


@attrs.define(slots=False)
class Transient(Exception):
    """A failure that may pass; `problem` is the text for the final error.

    With `is_busy`, the host itself asked for a retry, perhaps after `retry_after` seconds.
    `was_asked` is False if the request cannot have reached the host.
    """

    host: str
    problem: str
    is_busy: bool = False
    retry_after: float | None = None
    was_asked: bool = True

    def final(self, registry: str) -> BlobserveError:
        """Return the error to raise when there are no more tries."""
        if not self.is_busy:
            return RegistryFailed(registry, self.problem)
        if self.retry_after is None:
            return RegistryBusy(registry)
        return RegistryBusy(registry, self.retry_after)


class RetryPolicy:
    """The retries for one registry and the hosts that it redirects to.

    After one caller has used up its tries on a host, the others try only once, until the host
    answers or some seconds have passed. So a hundred requests do not all wait for a host that is
    down.
    """

    def __init__(self, clock: IReactorTime, registry: str) -> None:
        self._clock = clock
        self._registry = registry
        self._down: dict[str, float] = {}

    async def persist(self, attempt: Callable[[], Awaitable[T]], tries: int = TRIES) -> T:
        """Return the result of `attempt`; call it again after each `Transient` that it raises.

        :raises RegistryBusy: when a host keeps asking for a retry, or for one too late.
        :raises RegistryFailed: when another failure does not pass.
        """
        deadline = self._clock.seconds() + _DEADLINE
        for tried in range(tries):
            try:
                return await attempt()
            except Transient as failure:
                delay = max(jitter(tried), failure.retry_after or 0.0)
                too_long = delay > _LONGEST_WAIT or self._clock.seconds() + delay > deadline
                if too_long or tried + 1 == tries or self._is_down(failure.host):
                    if tried:
                        self._went_down(failure.host)
                    raise failure.final(self._registry) from failure
            await sleep(self._clock, delay)
        raise RegistryFailed(self._registry, "it was never asked")  # tries < 1

    def answered(self, host: str) -> None:
        """Note that this host is up."""
        self._down.pop(host, None)

    def _is_down(self, host: str) -> bool:
        return self._clock.seconds() < self._down.get(host, 0.0)

    def _went_down(self, host: str) -> None:
        if len(self._down) >= _HOSTS:
            self._down.clear()
        self._down[host] = self._clock.seconds() + _DOWN_FOR


async def sleep(clock: IReactorTime, seconds: float) -> None:
    """Wait; cancellable."""
    await deferLater(clock, seconds)


def jitter(tried: int) -> float:
    """Return a random delay in seconds after `tried` + 1 failures in a row."""
    return random.uniform(0.0, _FIRST_DELAY * 2**tried)


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds in a Retry-After field, RFC 9110 §10.2.3; at most a minute.

    None for a field that is absent, malformed or in the past. `now` is in seconds since 1970.
    """
    if value is None:
        return None
    if re.fullmatch(r"[0-9]+", value, re.ASCII):
        return min(float(value[:9]), _LONGEST_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    seconds = date.timestamp() - now
    return min(seconds, _LONGEST_RETRY_AFTER) if seconds > 0 else None


def rate_limit_pause(field: Callable[[str], str | None]) -> float:
    """Return the seconds to wait so that the rest of a rate limit lasts; 0 while enough remains.

    :param field: the value of a header field by its name.
    """
    remaining, window = _amount(field("ratelimit-remaining"))
    limit, _ = _amount(field("ratelimit-limit"))
    reset, _ = _amount(field("ratelimit-reset"))
    low = _LOW_REMAINDER if limit is None else limit * _LOW_SHARE
    if remaining is None or remaining >= low:
        return 0.0
    return min((reset or window or _USUAL_WINDOW) / (remaining + 1), _LONGEST_PAUSE)


def _amount(value: str | None) -> tuple[int | None, int | None]:
    """Return an amount and the seconds of its window."""
    found = _AMOUNT.fullmatch(value or "")
    if found is None:
        return None, None
    return int(found[1]), int(found[2]) if found[2] else None
