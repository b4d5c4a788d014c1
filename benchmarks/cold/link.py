"""A slow link to a server on 127.0.0.1, with a delay and a limited rate.

All connections share one line in each direction, like the clients of one access network. A new
connection takes a round trip before its first byte is sent. There are no packet losses and no slow
start. It runs as a process: see `Link`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from benchmarks.warm.process import Process
from tests.support.parts.server import ROOT

RATE, ROUND_TRIP = 12_500_000, 0.020
"""100 Mbit/s in bytes a second, and the round trip in seconds."""
_READ = 16 * 1024
_WAITING = 512 * 1024  # More than the line holds, so that it is never idle.


class Link(Process):
    """The process of a link to `port`; clients connect to `host`."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory)
        self._behind = port

    @property
    def host(self) -> str:
        """Return its address, as in the name of a repository."""
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
        """Return the arrival time of the last of `size` bytes that are sent now."""
        self._free = max(now, self._free) + size / RATE
        return self._free + ROUND_TRIP / 2


async def carry(
    line: Line, come: asyncio.StreamReader, go: asyncio.StreamWriter, late: float
) -> None:
    """Copy bytes from `come` to `go`; the first of them waits for `late` seconds more."""
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
    """Listen on `port`, and copy bytes to the port `behind` and back, until cancelled."""
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
