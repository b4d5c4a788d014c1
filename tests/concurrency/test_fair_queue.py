"""The fair queue: a little work runs at once, much work in several iterations, all in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from blobserve.concurrency.fair_queue import PORTION, FairQueue, a_later_turn
from blobserve.concurrency.singleflight import Call, SingleFlight


class Desk:
    """A fair queue under a clock that each piece of work moves forward."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.queue = FairQueue(self.clock)
        self.done: list[object] = []

    def work(self, name: object, seconds: float = 0.0) -> Callable[[], None]:
        """Return a piece of work that takes this time."""

        def work() -> None:
            self.done.append(name)
            self.clock.rightNow += seconds

        return work

    def turn(self) -> list[object]:
        """Run the calls that are due in one reactor iteration; return the names of that work."""
        before = len(self.done)
        due, self.clock.calls = self.clock.calls, []
        for call in due:
            call.called = True
            call.func(*call.args, **call.kw)
        return self.done[before:]


def test_little_is_done_at_once() -> None:
    """Work runs at once until it has taken a whole portion of time."""
    desk = Desk()
    assert all(desk.queue.do(desk.work(n, PORTION / 4)) for n in range(4))
    assert desk.done == [0, 1, 2, 3]
    assert not desk.clock.calls


def test_much_is_done_in_turns() -> None:
    """Work beyond a portion is done in later iterations, a portion in each, in order.

    The reactor polls its sockets before the first of these iterations and between them.
    """
    desk = Desk()
    said = [desk.queue.do(desk.work(n, PORTION * 0.4)) for n in range(10)]
    assert said == [True] * 3 + [False] * 7
    assert [desk.turn() for _ in range(5)] == [[], [3, 4, 5], [6, 7, 8], [9], []]


def test_what_is_long_is_done_whole() -> None:
    """A piece of work that takes long is done whole, one in an iteration."""
    desk = Desk()
    for n in range(3):
        desk.queue.do(desk.work(n, PORTION * 9))
    assert [desk.turn() for _ in range(4)] == [[], [1], [2], []]


def test_rest_makes_up_for_work() -> None:
    """After a pause as long as the work, a whole portion of time is available again."""
    desk = Desk()
    desk.queue.do(desk.work("long", PORTION * 3))
    desk.clock.rightNow += PORTION * 1.5
    assert not desk.queue.do(desk.work("early"))
    assert desk.turn() + desk.turn() == ["early"]
    desk.queue.do(desk.work("long", PORTION * 3))
    desk.clock.rightNow += PORTION * 3
    assert desk.queue.do(desk.work("late"))


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    """A clock that is set back counts neither as work nor as a pause."""
    desk = Desk()
    assert desk.queue.do(desk.work("first", -3600))
    assert desk.queue.do(desk.work("second", PORTION * 2))
    desk.clock.rightNow -= 3600
    desk.queue.do(desk.work("third"))
    assert desk.turn() + desk.turn() == ["third"]


def test_work_that_makes_work() -> None:
    """Work that is added by other work comes behind the waiting work, and is counted once."""
    desk = Desk()

    def both() -> None:
        desk.queue.do(desk.work("inner", PORTION * 0.4))
        desk.done.append("outer")

    assert desk.queue.do(both)
    assert desk.queue.do(desk.work("next", PORTION * 0.7))
    desk.queue.do(both)
    desk.queue.do(desk.work("last"))
    assert desk.done == ["inner", "outer", "next"]
    assert desk.turn() + desk.turn() == ["outer", "last", "inner"]


def test_an_error_is_told_to_who_can_hear_it(failures: list[type[BaseException]]) -> None:
    """An error of work that runs at once is raised, and one of delayed work is logged."""
    desk = Desk()
    with pytest.raises(ZeroDivisionError):
        desk.queue.do(lambda: 1 / 0)
    desk.queue.do(desk.work("long", PORTION * 2))
    desk.queue.do(lambda: 1 / 0)
    desk.queue.do(desk.work("rest"))
    assert desk.turn() + desk.turn() == ["rest"]
    assert failures == [ZeroDivisionError]


def test_many_who_wait_for_one_thing() -> None:
    """The waiters of a single flight continue in order, and then its cleanup runs."""
    desk = Desk()
    flights: SingleFlight[str, str] = SingleFlight(lambda: desk.queue.do)
    work: Deferred[str] = Deferred()

    async def working(_: Call[str]) -> str:
        return await work

    flight = flights.start("key", working, after=lambda _: desk.done.append("after"))

    def told(n: int, _: str) -> None:
        desk.work(n, PORTION * 0.6)()

    waits = [flight.wait().addCallback(partial(told, n)) for n in range(5)]
    waits[4].addErrback(lambda _: desk.done.append("left"))
    work.callback("here")
    assert desk.done == [0, 1]
    waits[4].cancel()
    assert [desk.turn(), desk.turn()] == [[], [2, 3]]
    late = flight.wait()
    assert late.called
    assert desk.turn() == ["after"]
    assert flights.get("key") is None


def test_a_turn_of_its_own() -> None:
    """`a_later_turn` fires in the iteration after the next, unless it is cancelled."""
    desk = Desk()
    turn, other = a_later_turn(desk.clock), a_later_turn(desk.clock)
    other.addErrback(lambda failure: failure.trap(CancelledError))
    desk.turn()
    assert not turn.called
    other.cancel()
    desk.turn()
    assert turn.called
