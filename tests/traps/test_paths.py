"""Paths, methods and framing over real sockets, with and without the fast path: rows H40 to H48."""

from __future__ import annotations

import pytest

from blobserve.web.http.request_head import MAX_LINE, MAX_SIZE
from tests.support.raw_http import Conversation, hold, places
from tests.support.sites import Serving
from tests.support.within import within
from tests.traps.cases_http import ASKED, NEXT, PATHS, Case


@pytest.mark.parametrize("case", PATHS, ids=lambda case: case.name)
@within(30)
async def test_path(answering: Serving, case: Case) -> None:
    """A target has one meaning and never leaves the image, with and without the fast path."""
    await hold(answering, case)


@pytest.mark.parametrize(
    "fields",
    [
        b"Connection: close",
        b"Connection: Close",
        b"Connection: keep-alive, close",
        b"Connection: close, TE",
        b"Connection: close,keep-alive",
        b"Connection: TE\r\nConnection: close",
    ],
    ids=repr,
)
@within(30)
async def test_h47_a_client_that_wants_no_more(answering: Serving, fields: bytes) -> None:
    """After a request with Connection: close the answer has it too, and the connection ends."""
    for warmings in (0, 2):
        conversation = await Conversation.begin(answering)
        for _ in range(warmings):
            await conversation.ask(ASKED)
        await conversation.send(ASKED[:-2] + fields + b"\r\n\r\n" + NEXT)
        reply = await conversation.reply()
        assert (reply.body, reply.headers.get("connection")) == (b"this is asked", "close")
        assert await conversation.is_over()


@pytest.mark.parametrize("fields", [b"", b"Connection: keep-alive\r\n", b"Connection: close\r\n"])
@within(30)
async def test_h47_http_1_0(answering: Serving, fields: bytes) -> None:
    """An HTTP/1.0 connection gets one answer, with a length and never in chunks."""
    raw = ASKED.replace(b"HTTP/1.1", b"HTTP/1.0")[:-2] + fields + b"\r\n"
    for method in ("GET", "HEAD"):
        for warmings, cuts in ((0, ()), (0, (9,)), (2, ()), (2, (9,))):
            conversation = await Conversation.begin(answering)
            for _ in range(warmings):
                await conversation.ask(ASKED)
            reply = await conversation.ask(raw.replace(b"GET", method.encode()), method, cuts)
            assert (reply.status, reply.headers["content-length"]) == (200, "13")
            assert reply.headers.get("connection", "close") == "close"
            assert await conversation.is_over()


@within(30)
async def test_h45_targets_and_heads_that_are_too_long(answering: Serving) -> None:
    """A target that is too long gets a 414, a head that is too long a 431; the connections end."""
    long = ASKED.replace(b".txt", b".txt?" + b"x" * MAX_LINE)
    for status, raw in ((414, long), (431, ASKED[:-2] + b"A: " + b"x" * MAX_SIZE + b"\r\n\r\n")):
        for warmings in (0, 2):
            conversation = await Conversation.begin(answering)
            for _ in range(warmings):
                await conversation.ask(ASKED)
            reply = await conversation.ask(raw + NEXT)
            assert (reply.status, reply.headers["connection"]) == (status, "close")
            assert await conversation.is_over()
    nearly = ASKED.replace(b".txt", b".txt?" + b"x" * (MAX_LINE - len(ASKED)))
    conversation = await Conversation.begin(answering)
    for cuts in ((), (), *places(nearly).values()):
        assert (await conversation.ask(nearly, cuts=cuts)).body == b"this is asked"
    conversation.leave()
