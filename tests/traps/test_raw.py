"""Raw bytes over real sockets, with and without the fast path: rows R01 to R09."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest

from blobserve.web.server.access_log import LogRecord
from tests.support.parts.wire import Reply
from tests.support.raw_http import Conversation, places
from tests.support.sites import TAG, Serving, serving
from tests.support.within import within
from tests.traps.cases_http import ASKED, CONDITIONAL, FILES, NEXT, PATHS, RANGES, RAW, Raw
from tests.web.test_site import MARKER

EVERY = [*CONDITIONAL, *RANGES, *PATHS]
PATH = f"/{TAG}/asked.txt".encode()


@pytest.mark.parametrize("case", RAW, ids=lambda case: case.name)
@within(30)
async def test_what_is_no_request(answering: Serving, case: Raw) -> None:
    """Anything but a single plain request is refused, and ends its connection (R07)."""
    ways: dict[str, tuple[int, Sequence[int]]] = {
        "alone": (0, ()),
        "kept": (2, ()),
        **{f"kept, cut {place}": (2, cuts) for place, cuts in places(case.raw).items()},
    }
    for way, (warmings, cuts) in ways.items():
        conversation = await Conversation.begin(answering)
        for _ in range(warmings):
            assert (await conversation.ask(ASKED)).body == b"this is asked"
        await conversation.send(case.raw + MARKER, cuts)
        reply = await conversation.reply(case.method)
        assert (way, reply.status, reply.headers["connection"]) == (way, case.status, "close")
        assert await conversation.is_over()
    conversation = await Conversation.begin(answering)
    assert (await conversation.ask(ASKED + case.raw + MARKER)).body == b"this is asked"
    assert (await conversation.reply(case.method)).status == case.status
    assert await conversation.is_over()


@pytest.mark.parametrize(
    "target", ["http://x{}", "HTTP://other:81{}", "https://u@x{}", "{}", "http://x{}?a=b"]
)
@within(30)
async def test_r08_targets_in_absolute_form(answering: Serving, target: str) -> None:
    """A target in absolute form stands for its path; its host does not matter."""
    raw = ASKED.replace(PATH, target.format(PATH.decode()).encode())
    conversation = await Conversation.begin(answering)
    for cuts in ((), (), *places(raw).values()):
        assert (await conversation.ask(raw, cuts=cuts)).body == b"this is asked"
    conversation.leave()


@pytest.mark.parametrize("warmings", [0, 2])
@within(30)
async def test_r09_a_hundred_at_once(answering: Serving, warmings: int) -> None:
    """A hundred requests in one segment are answered in order, each as if alone (H47)."""
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
    """A stream of requests gets the same answers in pieces of any size."""
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
    """A head cut at any byte is understood, on a new connection and on a reused one."""
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
    """Requests before a bad head are answered, and those behind it are not."""
    for number in range(4):
        conversation = await Conversation.begin(answering)
        await conversation.send(ASKED * number + b"\0\r\n\r\n" + NEXT * 1000)
        for _ in range(number):
            assert (await conversation.reply()).body == b"this is asked"
        assert (await conversation.reply()).status == 400
        assert await conversation.is_over()


async def account_of(site: Serving) -> tuple[list[Reply], list[LogRecord], dict[str, float]]:
    """Send every case twice on one connection; return the replies, log records and counts."""
    conversation, found = await Conversation.begin(site), []
    for case in EVERY:
        for method in (*case.methods, *case.methods):
            found.append(await conversation.ask(case.request(method), method))
    conversation.leave()
    for raw in (each for each in RAW if each.method == "GET"):
        conversation = await Conversation.begin(site)
        found.append(await conversation.ask(raw.raw + MARKER, raw.method))
        assert await conversation.is_over()
    counted = {
        f"{sample.labels}": sample.value
        for metric in site.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "http_server_requests_total"
    }
    return found, list(site.log), counted


@within(60)
async def test_the_hot_path_changes_nothing(tmp_path: Path) -> None:
    """With and without the fast path, replies, log and counts are the same for every case."""
    accounts = []
    for hot_path in (True, False):
        async with serving(tmp_path / str(hot_path), FILES, hot_path=hot_path) as site:
            accounts.append(await account_of(site))
    (hot, hot_log, hot_counts), (parsed, parsed_log, parsed_counts) = accounts
    for one, other in zip(hot, parsed, strict=True):
        assert (one.status, one.timeless, one.body) == (other.status, other.timeless, other.body)
    for line, other_line in zip(hot_log, parsed_log, strict=True):
        own = {"time": 0.0, "duration": 0.0, "request_id": ""}
        assert attrs.evolve(line, **own) == attrs.evolve(other_line, **own)
    assert len({line.request_id for line in hot_log}) == len(hot_log)
    assert hot_counts == parsed_counts
