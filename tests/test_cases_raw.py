"""Raw bytes over real sockets, with the hot path and without: rows R01 to R09."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests.cases_http import ASKED, CONDITIONAL, NEXT, PATHS, RANGES, RAW, Raw
from tests.conversing import Conversation, places
from tests.rig.within import within
from tests.sites import TAG, Serving

EVERY = [*CONDITIONAL, *RANGES, *PATHS]
PATH = f"/{TAG}/asked.txt".encode()


@pytest.mark.parametrize("case", RAW, ids=lambda case: case.name)
@within(30)
async def test_what_is_no_request(answering: Serving, case: Raw) -> None:
    """What is no single, plain request is refused, and ends its connection (R07)."""
    ways: dict[str, tuple[int, Sequence[int]]] = {
        "alone": (0, ()),
        "kept": (2, ()),
        **{f"kept, cut {place}": (2, cuts) for place, cuts in places(case.raw).items()},
    }
    for way, (warmings, cuts) in ways.items():
        conversation = await Conversation.begin(answering)
        for _ in range(warmings):
            assert (await conversation.ask(ASKED)).body == b"this is asked"
        await conversation.send(case.raw + NEXT, cuts)
        reply = await conversation.reply(case.method)
        assert (way, reply.status, reply.headers["connection"]) == (way, case.status, "close")
        assert await conversation.is_over()
    conversation = await Conversation.begin(answering)
    assert (await conversation.ask(ASKED + case.raw + NEXT)).body == b"this is asked"
    assert (await conversation.reply(case.method)).status == case.status
    assert await conversation.is_over()


@pytest.mark.parametrize(
    "target", ["http://x{}", "HTTP://other:81{}", "https://u@x{}", "{}", "http://x{}?a=b"]
)
@within(30)
async def test_r08_targets_in_absolute_form(answering: Serving, target: str) -> None:
    """A target in absolute form is the path in it, whatever host it names."""
    raw = ASKED.replace(PATH, target.format(PATH.decode()).encode())
    conversation = await Conversation.begin(answering)
    for cuts in ((), (), *places(raw).values()):
        assert (await conversation.ask(raw, cuts=cuts)).body == b"this is asked"
    conversation.leave()


@pytest.mark.parametrize("warmings", [0, 2])
@within(30)
async def test_r09_a_hundred_at_once(answering: Serving, warmings: int) -> None:
    """A hundred different requests in one segment are answered in order, each as if alone (H47)."""
    asked = [(case, method) for case in EVERY for method in case.methods]
    conversation = await Conversation.begin(answering)
    for _ in range(warmings):
        await conversation.ask(ASKED)
    for start in range(0, len(asked), 100):
        some = asked[start : start + 100]
        await conversation.send(b"".join(case.request(method) for case, method in some))
        for case, method in some:
            case.check(await conversation.reply(method), method)
    conversation.leave()


@within(30)
async def test_r09_a_stream_in_pieces(answering: Serving) -> None:
    """It does not matter where a stream of requests is cut, and how many are in a piece."""
    chance = random.Random(1)
    asked = [(case, method) for case in EVERY for method in case.methods]
    chance.shuffle(asked)
    asked = asked[:200]
    raw = b"".join(case.request(method) for case, method in asked)
    conversation = await Conversation.begin(answering)
    await conversation.send(raw, sorted(chance.sample(range(1, len(raw)), 300)))
    for case, method in asked:
        case.check(await conversation.reply(method), method)
    conversation.leave()


@within(30)
async def test_r09_a_head_cut_at_every_byte(answering: Serving) -> None:
    """A head is understood wherever it is cut, on a new connection and on one that was used."""
    kept = await Conversation.begin(answering)
    for cut in range(1, len(ASKED)):
        fresh = await Conversation.begin(answering)
        for conversation in (fresh, kept):
            assert (await conversation.ask(ASKED, cuts=[cut])).body == b"this is asked"
        fresh.leave()
    assert (await kept.ask(ASKED, cuts=range(1, len(ASKED)))).body == b"this is asked"
    kept.leave()


@within(30)
async def test_r07_requests_that_were_sent_with_a_bad_one(answering: Serving) -> None:
    """What stands before a bad head is answered; what stands behind it, however much, is not."""
    for number in range(4):
        conversation = await Conversation.begin(answering)
        await conversation.send(ASKED * number + b"\0\r\n\r\n" + NEXT * 1000)
        for _ in range(number):
            assert (await conversation.reply()).body == b"this is asked"
        assert (await conversation.reply()).status == 400
        assert await conversation.is_over()
