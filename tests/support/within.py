"""A time limit for asynchronous tests, since pytest-timeout does not work with pytest-twisted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest_twisted
from twisted.internet.defer import Deferred

from tests.support.slack import SLACK


def within(seconds: float) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Any]:
    """Make an `async def` a test on the running reactor that fails after `seconds` times `SLACK`.

    The failure is certain even if the cancelled test ends normally, since some tests expect a
    CancelledError.
    """

    limit = seconds * SLACK

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
        @functools.wraps(test)
        def bounded(*args: object, **kwargs: object) -> Deferred[None]:
            from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

            ended: Deferred[None] = Deferred()

            def end(result: object) -> None:
                if ended.called:
                    return
                if timer.active():
                    timer.cancel()
                    ended.callback(result)  # type: ignore[arg-type]
                else:
                    ended.errback(TimeoutError(f"the test took more than {limit:g} s"))

            def give_up() -> None:
                running.cancel()
                end(None)

            timer = reactor.callLater(limit, give_up)
            running = Deferred.fromCoroutine(test(*args, **kwargs))
            running.addBoth(end)
            return ended

        return pytest_twisted.ensureDeferred(bounded)

    return decorate
