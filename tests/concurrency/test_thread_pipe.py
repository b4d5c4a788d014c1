"""The pipe between two threads."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from blobserve.concurrency.thread_pipe import ThreadPipe
from blobserve.config import KIB, MIB
from tests.support.slack import SLACK

WITHIN = 20 * SLACK
PIECE = bytes(256 * KIB)


def give(pipe: ThreadPipe, pieces: list[bytes]) -> list[bytes]:
    """Put pieces until the pipe is full; return the rest."""
    left = list(pieces)
    with pipe.giving():
        while left:
            if not pipe.put(left.pop(0)):
                break
    return left


def take(pipe: ThreadPipe) -> list[bytes]:
    """Take the pieces that are there, and those that arrive meanwhile."""
    with pipe.taking():
        return list(pipe.pieces())


def both(*jobs: Callable[[], list[bytes]]) -> list[list[bytes]]:
    """Run each job in a thread; return the results."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [job.result(WITHIN) for job in [pool.submit(job) for job in jobs]]


def test_nobody_is_waited_for_who_is_not_there() -> None:
    """Without its other side a writer ends when the pipe is full, a reader when it is empty."""
    pipe = ThreadPipe()
    assert take(pipe) == []
    left = give(pipe, [PIECE] * 40)
    assert 40 - len(left) == MIB // len(PIECE)
    assert len(take(pipe)) == 40 - len(left)
    assert pipe.is_empty


def test_all_of_it_arrives_in_order() -> None:
    """Pieces arrive once and in order, whichever side begins."""
    chance = random.Random(1)
    pieces = [b"%d" % n + bytes(chance.randrange(MIB)) for n in range(200)]
    pipe, left, got = ThreadPipe(), pieces, list[bytes]()
    giver_first = True
    while left or not pipe.is_empty:
        sides = [partial(give, pipe, left), partial(take, pipe)]
        outcomes = both(*(sides if giver_first else sides[::-1]))
        left, new = outcomes if giver_first else outcomes[::-1]
        got += new
        giver_first = not giver_first
    assert got == pieces


def test_who_takes_may_go_away() -> None:
    """A writer that waits for space ends when the reader ends."""
    pipe = ThreadPipe()

    def one_piece() -> list[bytes]:
        with pipe.taking():
            while pipe.is_empty:
                pass
            return [next(pipe.pieces())]

    left, got = both(partial(give, pipe, [PIECE] * 40), one_piece)
    assert len(got) == 1
    assert 40 - len(left) in (4, 5)


def test_cleared() -> None:
    """A cleared pipe has space again."""
    pipe = ThreadPipe()
    give(pipe, [PIECE] * 40)
    pipe.clear()
    assert pipe.is_empty
    assert len(give(pipe, [PIECE] * 40)) == 36
