"""Portions: little work is done at once, much of it in turns, and all of it in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from blobserve.concurrency.fair_queue import PORTION, FairQueue, a_later_turn
from blobserve.concurrency.singleflight import Call, SingleFlight


class Desk:
    """Where work is done, each piece of which takes its time."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.portions = FairQueue(self.clock)
        self.done: list[object] = []

    def work(self, name: object, seconds: float = 0.0) -> Callable[[], None]:
        """A piece of work."""

        def work() -> None:
            self.done.append(name)
            self.clock.rightNow += seconds

        return work

    def turn(self) -> list[object]:
        """What the reactor does between two looks at its sockets, which bring all work here."""
        before = len(self.done)
        due, self.clock.calls = self.clock.calls, []
        for call in due:
            call.called = True
            call.func(*call.args, **call.kw)
        return self.done[before:]


def test_little_is_done_at_once() -> None:
    """As long as no more than a portion has been done, nothing waits."""
    desk = Desk()
    assert all(desk.portions.do(desk.work(n, PORTION / 4)) for n in range(4))
    assert desk.done == [0, 1, 2, 3]
    assert not desk.clock.calls


def test_much_is_done_in_turns() -> None:
    """What is more waits for later turns, of which each does a portion, in the order it came.

    Sockets are looked at before the first of these, and between any two of them.
    """
    desk = Desk()
    said = [desk.portions.do(desk.work(n, PORTION * 0.4)) for n in range(10)]
    assert said == [True] * 3 + [False] * 7
    assert [desk.turn() for _ in range(5)] == [[], [3, 4, 5], [6, 7, 8], [9], []]


def test_what_is_long_is_done_whole() -> None:
    """Each turn does a piece, however long one is."""
    desk = Desk()
    for n in range(3):
        desk.portions.do(desk.work(n, PORTION * 9))
    assert [desk.turn() for _ in range(4)] == [[], [1], [2], []]


def test_rest_makes_up_for_work() -> None:
    """After as long a pause as was worked, there is a portion again."""
    desk = Desk()
    desk.portions.do(desk.work("long", PORTION * 3))
    desk.clock.rightNow += PORTION * 1.5
    assert not desk.portions.do(desk.work("early"))
    assert desk.turn() + desk.turn() == ["early"]
    desk.portions.do(desk.work("long", PORTION * 3))
    desk.clock.rightNow += PORTION * 3
    assert desk.portions.do(desk.work("late"))


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    """Time that runs backwards is no work and no rest."""
    desk = Desk()
    assert desk.portions.do(desk.work("first", -3600))
    assert desk.portions.do(desk.work("second", PORTION * 2))
    desk.clock.rightNow -= 3600
    desk.portions.do(desk.work("third"))
    assert desk.turn() + desk.turn() == ["third"]


def test_work_that_makes_work() -> None:
    """What is asked for meanwhile comes behind what waits, and is counted once."""
    desk = Desk()

    def both() -> None:
        desk.portions.do(desk.work("inner", PORTION * 0.4))
        desk.done.append("outer")

    assert desk.portions.do(both)
    assert desk.portions.do(desk.work("next", PORTION * 0.7))
    desk.portions.do(both)
    desk.portions.do(desk.work("last"))
    assert desk.done == ["inner", "outer", "next"]
    assert desk.turn() + desk.turn() == ["outer", "last", "inner"]


def test_an_error_is_told_to_who_can_hear_it(failures: list[type[BaseException]]) -> None:
    """What fails at once fails there; what fails later is logged, and the rest is done."""
    desk = Desk()
    with pytest.raises(ZeroDivisionError):
        desk.portions.do(lambda: 1 / 0)
    desk.portions.do(desk.work("long", PORTION * 2))
    desk.portions.do(lambda: 1 / 0)
    desk.portions.do(desk.work("rest"))
    assert desk.turn() + desk.turn() == ["rest"]
    assert failures == [ZeroDivisionError]


def test_many_who_wait_for_one_thing() -> None:
    """Of a flight each who waits is told in his turn; then comes what was to come after them."""
    desk = Desk()
    flights: SingleFlight[str, str] = SingleFlight(lambda: desk.portions.do)
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
    """What goes on in a later turn does so once the sockets have been looked at; or never."""
    desk = Desk()
    turn, other = a_later_turn(desk.clock), a_later_turn(desk.clock)
    other.addErrback(lambda failure: failure.trap(CancelledError))
    desk.turn()
    assert not turn.called
    other.cancel()
    desk.turn()
    assert turn.called
