"""Retries and waits, with their bounds."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from blobserve.errors import RegistryBusy, RegistryFailed
from blobserve.oci.http.retry import RetryPolicy, Transient, retry_after
from blobserve.oci.http.stall_watch import StallWatch

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("2", 2),
        ("0", 0),
        ("1000000000000", 60),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("\u0662", None),
        ("Tue, 14 Nov 2023 22:13:30 GMT", 10),
        ("Tue, 14 Nov 2023 22:13:10 GMT", None),
        ("Tue, 14 Nov 2028 22:13:10 GMT", 60),
        ("Tue, 99 Nov 2023 22:13:10 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """Retry-After is a number of seconds or a date, up to a minute; anything else is ignored.

    Row C22.
    """
    assert retry_after(value, NOW) == seconds


class _Tries:
    """An operation that fails as often as the test says."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.made = 0

    async def __call__(self) -> str:
        self.made += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def _failing(**fields: Any) -> Transient:
    return Transient("storage.example", "it failed", **fields)


def _outcome(clock: Clock, patience: RetryPolicy, tries: _Tries) -> list[Any]:
    """Return the result or error of persisting, after 100 seconds."""
    outcome: list[Any] = []
    persisting = Deferred.fromCoroutine(patience.persist(tries))
    persisting.addCallbacks(outcome.append, lambda failure: outcome.append(failure.value))
    clock.pump([0.5] * 200)
    return outcome


def test_backs_off() -> None:
    """Four failures are retried within four seconds in all (C23)."""
    clock = Clock()
    tries = _Tries(*[_failing() for _ in range(4)])
    persisting = Deferred.fromCoroutine(RetryPolicy(clock, "r.example").persist(tries))
    outcome: list[str] = []
    persisting.addCallback(outcome.append)
    clock.pump([0.25, 0.5, 1.0, 2.0])
    assert outcome == ["done"]


def test_gives_up() -> None:
    """The fifth failure is final, and leaves no timer."""
    clock = Clock()
    tries = _Tries(*[_failing() for _ in range(9)])
    (error,) = _outcome(clock, RetryPolicy(clock, "r.example"), tries)
    assert isinstance(error, RegistryFailed)
    assert str(error) == "registry r.example failed: it failed"
    assert tries.made == 5
    assert not clock.getDelayedCalls()


def test_other_errors() -> None:
    """A permanent error is not retried."""
    clock = Clock()
    tries = _Tries(ValueError())
    assert isinstance(_outcome(clock, RetryPolicy(clock, "r.example"), tries)[0], ValueError)
    assert tries.made == 1


def test_busy() -> None:
    """A short Retry-After is waited for, and a long one is reported to the caller."""
    clock = Clock()
    patience = RetryPolicy(clock, "r.example")
    assert _outcome(clock, patience, _Tries(_failing(is_busy=True, retry_after=9.0))) == ["done"]
    (error,) = _outcome(clock, patience, _Tries(_failing(is_busy=True, retry_after=60.0)))
    assert isinstance(error, RegistryBusy)
    assert error.retry_after == 60.0


def test_deadline() -> None:
    """No attempt begins more than a minute after the first."""
    clock = Clock()
    made = []

    async def slow() -> None:
        made.append(clock.seconds())
        await _pause(clock, 25.0)
        raise _failing()

    Deferred.fromCoroutine(RetryPolicy(clock, "r.example").persist(slow)).addErrback(lambda _: None)
    clock.pump([0.5] * 400)
    assert len(made) == 3


async def _pause(clock: Clock, seconds: float) -> None:
    waiting: Deferred[None] = Deferred()
    clock.callLater(seconds, waiting.callback, None)
    await waiting


def test_down_and_up() -> None:
    """A host that is down gets one attempt from each caller until it answers (C24)."""
    clock = Clock()
    patience = RetryPolicy(clock, "r.example")
    Deferred.fromCoroutine(patience.persist(_Tries(*[_failing()] * 5))).addErrback(lambda _: None)
    clock.pump([0.25, 0.5, 1.0, 2.0])
    hopeless = _Tries(*[_failing()] * 5)
    failed: list[object] = []
    Deferred.fromCoroutine(patience.persist(hopeless)).addErrback(failed.append)
    assert (hopeless.made, len(failed)) == (1, 1)
    patience.answered("storage.example")
    assert _outcome(clock, patience, _Tries(_failing())) == ["done"]


def test_down_for_ten_seconds() -> None:
    """Ten seconds after a host went down it gets five attempts again, despite other failures."""
    clock = Clock()
    patience = RetryPolicy(clock, "r.example")
    Deferred.fromCoroutine(patience.persist(_Tries(*[_failing()] * 5))).addErrback(lambda _: None)
    while not patience._down:
        clock.advance(0.25)
    for _ in range(9):
        clock.advance(1)
        meanwhile = _Tries(*[_failing()] * 5)
        Deferred.fromCoroutine(patience.persist(meanwhile)).addErrback(lambda _: None)
        assert meanwhile.made == 1
    clock.advance(1)
    assert _outcome(clock, patience, _Tries(*[_failing()] * 4)) == ["done"]


def _watch(clock: Clock, silence: float = 10.0, rate: int = 100) -> tuple[StallWatch, list[str]]:
    stalled: list[str] = []
    watch = StallWatch(clock, silence, rate, stalled.append)
    watch.start()
    return watch, stalled


def test_silence() -> None:
    """Silence beyond the limit is a stall, reported once (C18)."""
    clock = Clock()
    watch, stalled = _watch(clock)
    for _ in range(5):
        clock.advance(9)
        watch.saw(100_000)
    assert stalled == []
    clock.advance(10)
    assert stalled == ["it sent nothing for 10 s"]
    watch.stop()
    clock.advance(100)
    assert len(stalled) == 1
    assert not clock.getDelayedCalls()


def test_trickle() -> None:
    """A rate below the limit for as long is a stall as well (C19)."""
    clock = Clock()
    watch, stalled = _watch(clock)
    for _ in range(12):
        clock.advance(1)
        watch.saw(1)
    assert stalled == ["it sends less than 100 bytes per second"]
    assert not clock.getDelayedCalls()


def test_paused() -> None:
    """A pause of the consumer counts neither for silence nor for the rate."""
    clock = Clock()
    watch, stalled = _watch(clock)
    for _ in range(12):
        clock.advance(1)
        watch.saw(100)
        watch.stop()
        clock.advance(1000)
        watch.start()
    assert stalled == []
    watch.stop()
    assert not clock.getDelayedCalls()
