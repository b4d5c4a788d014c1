"""A slow link before a server of 127.0.0.1: bytes come late, and at a bounded rate.

All connections share one line in each direction, as clients of one access network do; a new one
takes a round trip before its first byte goes out. Bytes, not packets: nothing is ever lost, and
there is no slow start. Knows nothing of HTTP. A process of its own, see `Link`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from benchmarks.warm.process import Process
from tests.support.parts.server import ROOT

RATE, ROUND_TRIP = 12_500_000, 0.020
"""100 Mbit/s, in bytes a second; seconds."""
_READ = 16 * 1024
_WAITING = 512 * 1024  # More than the line holds, so that it never runs dry.


class Link(Process):
    """The link, started before `port`; `host` is where its clients go."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory)
        self._behind = port

    @property
    def host(self) -> str:
        """As in the name of a repository."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        here = [sys.executable, "-m", "benchmarks.cold.link", str(self.port), str(self._behind)]
        self.run(here, {"PYTHONPATH": str(ROOT)})


class Line:
    """One direction, shared by all connections."""

    def __init__(self) -> None:
        self._free = 0.0

    def due(self, size: int, now: float) -> float:
        """When the last of `size` bytes that are sent now arrives."""
        self._free = max(now, self._free) + size / RATE
        return self._free + ROUND_TRIP / 2


async def carry(
    line: Line, come: asyncio.StreamReader, go: asyncio.StreamWriter, late: float
) -> None:
    """Carry bytes from `come` to `go`, the first of them `late`."""
    clock = asyncio.get_running_loop().time
    ready = clock() + late
    on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING // _READ)

    async def arrive() -> None:
        while True:
            due, piece = await on_the_way.get()
            await asyncio.sleep(max(0.0, due - clock()))
            if not piece:
                return
            go.write(piece)
            await go.drain()

    arriving = asyncio.create_task(arrive())
    try:
        while not arriving.done():
            piece = await come.read(_READ)
            await on_the_way.put((line.due(len(piece), max(clock(), ready)), piece))
            if not piece:
                break
        await arriving
    except ConnectionError:
        arriving.cancel()
    finally:
        go.close()


async def serve(port: int, behind: int) -> None:
    """Listen on `port`, and carry what comes to the port `behind` and back, until cancelled."""
    up, down = Line(), Line()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, there = await asyncio.open_connection("127.0.0.1", behind)
        except OSError:
            writer.close()
            return
        await asyncio.gather(carry(up, reader, there, ROUND_TRIP), carry(down, back, writer, 0.0))

    async with await asyncio.start_server(connected, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
