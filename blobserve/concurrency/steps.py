"""Blocking work in steps, so that other work and reservations can come between two of them.

The work is a generator. Each step runs in a thread and yields the bytes that must be reserved
before it can go on, or 0 if the next step can run at once. The generator returns the result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Generic, Protocol, TypeVar

import attrs

T = TypeVar("T")
R = TypeVar("R")

Steps = Generator[int, None, T]


class Run(Protocol):
    """A function that calls another one in a thread."""

    def __call__(self, f: Callable[[], R], /) -> Awaitable[R]: ...


async def drive(steps: Steps[T], run: Run, reserve: Callable[[int], Awaitable[object]]) -> T:
    """Run all steps, and return their result. The caller closes the generator after an error."""
    while True:
        step = await run(partial(advance, steps))
        if isinstance(step, Result):
            return step.value
        if step:
            await reserve(step)


@attrs.frozen
class Result(Generic[T]):
    """The result of the last step."""

    value: T


def advance(steps: Steps[T]) -> int | Result[T]:
    """Run the next step. Blocks."""
    try:
        return next(steps)
    except StopIteration as end:
        return Result(end.value)
