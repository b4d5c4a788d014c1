"""Conditional requests over real sockets, with and without the fast path: rows H01 to H13."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobserve.errors import DiskFull, ImageNotFound, QueueFull, RegistryBusy, RegistryFailed
from tests.support.raw_http import Conversation, hold
from tests.support.sites import REPOSITORY, TAG, Serving, serving
from tests.support.within import within
from tests.traps.cases_http import ASKED, CONDITIONAL, FILES, Case


@pytest.mark.parametrize("case", CONDITIONAL, ids=lambda case: case.name)
@within(30)
async def test_conditional(answering: Serving, case: Case) -> None:
    """Conditions are evaluated by RFC 9110 §13, with and without the fast path."""
    await hold(answering, case)


@pytest.mark.parametrize("hot_path", [True, False], ids=["hot", "parsed"])
@within(30)
async def test_h13_failures_are_told_apart(tmp_path: Path, hot_path: bool) -> None:
    """Missing, broken and temporary failures are 404, 502 and 503, without an ETag."""
    async with serving(tmp_path, FILES, hot_path=hot_path) as site:
        conversation = await Conversation.begin(site)
        for status, error, again in (
            (404, ImageNotFound("x"), None),
            (502, RegistryFailed("x", "it is down"), None),
            (503, RegistryBusy("x", 7.0), "7"),
            (503, QueueFull(), "5"),
            (507, DiskFull(), None),
            (500, ZeroDivisionError(), None),
        ):
            assert (await conversation.ask(ASKED)).status == 200
            raw = ASKED.replace(TAG.encode(), f"{REPOSITORY}:{type(error).__name__}".encode())
            raw = raw[:-2] + b"If-None-Match: *\r\nRange: bytes=0-1\r\n\r\n"
            for cuts in ((), (9,)):
                site.source.fail("resolve", error)  # type: ignore[arg-type]
                site.store.reload()  # clears the negative cache
                reply = await conversation.ask(raw, cuts=cuts)
                assert (reply.status, reply.headers.get("retry-after")) == (status, again)
                assert reply.headers["content-type"] == "text/plain; charset=utf-8"
        conversation.leave()
