"""Conversations with a server: requests whole or in pieces, many on a connection.

Each reply is checked by `tests.support.parts.wire.lint`.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.task import deferLater

from tests.support.parts.wire import NotWhole, Reply, lint
from tests.support.sites import Client, Serving
from tests.traps.cases_http import Case


class Conversation:
    """One connection to a site."""

    def __init__(self, site: Serving, client: Client) -> None:
        self._site = site
        self._client = client
        self._read = 0
        client.transport.setTcpNoDelay(True)

    @classmethod
    async def begin(cls, site: Serving) -> Conversation:
        """Open a connection."""
        return cls(site, await site.connect())

    async def send(self, raw: bytes, cuts: Sequence[int] = ()) -> None:
        """Send bytes in one segment, or in several divided at `cuts`."""
        for start, stop in zip((0, *cuts), (*cuts, len(raw)), strict=True):
            if start:
                await self._gone()
            self._client.send(raw[start:stop])

    async def _gone(self) -> None:
        """Wait until the server, which runs in the same reactor, has read the bytes."""
        for _ in range(3):  # one iteration to write, one to read
            await deferLater(self._site.reactor, 0)

    async def reply(self, method: str = "GET") -> Reply:
        """Return the next reply, to a request by this method."""
        while True:
            try:
                reply = Reply.read(self._client.received[self._read :], method)
            except NotWhole:
                assert not self._client.ended, "the connection has ended"
                await self._client.some(len(self._client.received) + 1)
            else:
                self._read += reply.size
                lint(reply, method)
                return reply

    async def ask(self, raw: bytes, method: str = "GET", cuts: Sequence[int] = ()) -> Reply:
        """Send a request and return its reply."""
        await self.send(raw, cuts)
        return await self.reply(method)

    async def is_over(self) -> bool:
        """Wait until the server has closed; return whether all received bytes have been read."""
        return len(await self._client.all()) == self._read

    def leave(self) -> None:
        """Close the connection."""
        self._client.transport.loseConnection()


def places(raw: bytes) -> dict[str, tuple[int, ...]]:
    """Return places to cut a request, by name."""
    end = len(raw)
    return {
        "after a byte": (1,),
        "in the middle": (end // 2,),
        "before the end": (end - 1,),
        "in three": (end // 3, end - 2),
    }


async def asked_every_way(site: Serving, case: Case, method: str) -> dict[str, Reply]:
    """Return the replies to one request: alone, in pieces, and on a reused connection."""
    raw = case.request(method)
    found: dict[str, Reply] = {}
    for way, cuts in (("alone", ()), ("alone, in two", (len(raw) // 2,))):
        conversation = await Conversation.begin(site)
        found[way] = await conversation.ask(raw, method, cuts)
        conversation.leave()
    conversation = await Conversation.begin(site)
    before = [await conversation.ask(case.plain) for _ in range(2)]
    found["kept"] = await conversation.ask(raw, method)
    for place, cuts in places(raw).items():
        found[f"kept, cut {place}"] = await conversation.ask(raw, method, cuts)
    found["kept, again"] = await conversation.ask(raw, method)
    after = await conversation.ask(case.plain)
    conversation.leave()
    for other in (before[1], after):
        assert (other.status, other.timeless, other.body) == (
            before[0].status,
            before[0].timeless,
            before[0].body,
        )
    return found


async def hold(site: Serving, case: Case) -> None:
    """Check a case in each way of asking, and that the replies are the same."""
    heads = {}
    for method in case.methods:
        found = await asked_every_way(site, case, method)
        for way, reply in found.items():
            assert (way, reply.status, reply.timeless) == (
                way,
                found["alone"].status,
                found["alone"].timeless,
            )
            case.check(reply, method)
        heads[method] = found["alone"]
    if len(heads) == 2 and case.head is None:
        get, head = heads["GET"], heads["HEAD"]
        assert (get.status, get.timeless) == (head.status, head.timeless)
