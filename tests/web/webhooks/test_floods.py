"""Floods of notifications, wrong secrets, and bodies that are much too large."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import capturedLogs, formatEvent

from tests.web.webhooks.test_places import BEARER, HEAD, KINDS, PUSH, SECRET, serving, until


@KINDS
@pytest_twisted.ensureDeferred
async def test_wrong_secrets(tmp_path: Path, kind: str) -> None:
    """A flood of wrong secrets is one line of the server log, which names none of them."""
    async with serving(tmp_path, kind) as place:
        with capturedLogs() as events:
            for number in range(10):
                posts = [
                    Deferred.fromCoroutine(place.post(PUSH, {"Authorization": f"word-{number}"}))
                    for _ in range(20)
                ]
                answers = await gatherResults(posts)
                assert {answer.status for answer in answers} == {401}
        lines = [line for each in events if "webhooks" in (line := str(formatEvent(each)))]
        assert lines == [
            "webhooks: refused notifications: 1, the last one from 127.0.0.1:"
            " a notification needs a valid secret"
        ]
        assert place.counted("unauthorized") == 200


@KINDS
@pytest_twisted.ensureDeferred
async def test_replays(tmp_path: Path, kind: str) -> None:
    """A notification that is repeated many times causes one series of look-ups."""
    async with serving(tmp_path, kind) as place:
        await place.serving.fetch("")
        for _ in range(10):
            await gatherResults([Deferred.fromCoroutine(place.post()) for _ in range(20)])
            watches = place.serving.service._store._pushes._watches
            assert len(watches) <= 2  # the tag of the site, which has a scope of its own
        assert place.counted("accepted") == 200


@pytest.mark.parametrize("kind", ["path", "listen"])
@pytest.mark.parametrize("authorization", ["wrong", SECRET])
@pytest_twisted.ensureDeferred
async def test_large_bodies(tmp_path: Path, kind: str, authorization: str) -> None:
    """A body of 100 MB is refused by its announced size, and its sender is cut off."""
    async with serving(tmp_path, kind) as place:
        client = await place.door.connect()
        head = f"POST {place.path} {HEAD}Content-Length: 100000000\r\n"
        client.send(f"{head}Authorization: {authorization}\r\n\r\n".encode())
        piece = b"x" * 65_536
        for _ in range(1500):
            if client.ended:
                break
            client.send(piece)
            await until(lambda: False, 0.02, fails=False)
        status = b" 413 " if authorization == SECRET else b" 401 "
        assert status in client.received[:20]
        assert client.ended
        assert (await place.post()).status == 202


@KINDS
@pytest_twisted.ensureDeferred
async def test_deep_bodies(tmp_path: Path, kind: str) -> None:
    """Bodies that nest deeply, or have very many members, are answered and harm nothing."""
    wide = json.dumps({"events": [{"action": "push", "target": {}}] * 20_000}).encode()
    async with serving(tmp_path, kind) as place:
        assert (await place.post(b"[" * 1_000_000)).status == 400
        assert (await place.post(b'{"a":' * 200_000)).status == 400
        assert (await place.post(wide)).status == 202
        assert (await place.post(PUSH, BEARER)).status == 202
