"""The requests: files, request heads, and the cells of the table. Pure values."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

import attrs

REPOSITORY = "bench.example/site"
ROOT = f"/{REPOSITORY}:v1"
"""The path of the files on every server, so that all get the same request heads."""

MANY, HEADS = 10_000, 30_000
RANGE = slice(100, 1124)

_CHROME = """\
Host: {host}
Connection: keep-alive
sec-ch-ua: "Chromium";v="140", "Not=A?Brand";v="24", "Google Chrome";v="140"
sec-ch-ua-mobile: ?0
sec-ch-ua-platform: "Linux"
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
Chrome/140.0.0.0 Safari/537.36
Accept: */*
Sec-Fetch-Site: same-origin
Sec-Fetch-Mode: no-cors
Sec-Fetch-Dest: script
Referer: http://{host}{root}/{page}
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-GB,en;q=0.9,de;q=0.8
"""


def files() -> dict[str, bytes]:
    """Return every served file by its path below `ROOT`; the same bytes at each call.

    All but ``app.js`` are random, so that no server compresses them.
    """
    chance = random.Random(1)
    made = {
        "2k.png": chance.randbytes(2_048),
        "64k.png": chance.randbytes(65_536),
        "5m.png": chance.randbytes(5_000_000),
        "app.js": _script(chance, 60_000),
    }
    return made | {f"many/{number:05}.png": chance.randbytes(2_048) for number in range(MANY)}


def _script(chance: random.Random, size: int) -> bytes:
    names = ["".join(chance.choices("abcdefghijklmnoprstuvw", k=7)) for _ in range(400)]
    text = ""
    while len(text) < size:
        one, two, three = chance.choices(names, k=3)
        text += f"export function {one}({two}) {{ return {three}.{one}({two}, {len(text)}); }}\n"
    return text[:size].encode()


Head = Literal["browser", "bare"]


@attrs.frozen
class Case:
    """A kind of request; `status` is the expected status, a 304 for the server's own entity tag."""

    name: str
    title: str
    paths: Sequence[str] = attrs.field(repr=False)
    status: int = 200
    heads: int = 1
    """The number of different heads for each path, in turn."""
    is_large: bool = False
    """Whether responses are so large that received bytes are counted, not whole responses."""
    without: frozenset[str] = frozenset()
    """Servers that do not support it."""


CASES = {
    case.name: case
    for case in (
        Case("hot", "2 KB hot", ["2k.png"]),
        Case("heads", f"2 KB hot, {HEADS:,} different heads", ["2k.png"], heads=HEADS),
        Case(
            "many", f"2 KB over {MANY:,} files", [f"many/{number:05}.png" for number in range(MANY)]
        ),
        Case("64k", "64 KB", ["64k.png"]),
        Case("5m", "5 MB", ["5m.png"], is_large=True),
        Case("304", "304 of 2 KB", ["2k.png"], status=304),
        Case("206", "206, 1 KB of 64 KB", ["64k.png"], status=206, without=frozenset({"twisted"})),
        Case("text", "negotiated text, 60 KB", ["app.js"]),
    )
}


QUICK = ("hot", "many", "5m", "304")
"""The names of the cases of a quick run."""


@attrs.frozen
class Cell:
    """A case with one set of conditions: a block of the table."""

    case: Case
    logs: bool = True
    head: Head = "browser"
    connections: int = 32
    is_paced: bool = False
    """Whether latency at a fixed rate is measured as well."""

    def __str__(self) -> str:
        log = "access log" if self.logs else "no access log"
        head = "browser's head" if self.head == "browser" else "bare head"
        plural = "" if self.connections == 1 else "s"
        return f"{self.case.title}: {log}, {head}, {self.connections} connection{plural}"


def plan(names: Sequence[str], *, is_quick: bool) -> list[Cell]:
    """Return the cells of the cases `names`, in the order of the table; one for each if quick."""
    cells = _quick() if is_quick else _full()
    return [cell for cell in cells if cell.case.name in names]


def _quick() -> list[Cell]:
    return [Cell(case, is_paced=case.name == "hot") for case in CASES.values()]


def _full() -> list[Cell]:
    cells = []
    for case in CASES.values():
        cells.append(Cell(case, is_paced=True))
        if case.name in ("hot", "5m"):
            cells.append(Cell(case, connections=1))
        if case.name in ("hot", "many", "5m", "304", "text"):
            cells.append(Cell(case, connections=256, is_paced=case.name == "hot"))
        if case.name == "hot":
            cells += [Cell(case, logs=False), Cell(case, head="bare")]
        if case.name not in ("heads", "text"):
            cells.append(Cell(case, logs=False, head="bare"))
    return cells


def requests(cell: Cell, host: str, conditions: Mapping[str, str]) -> list[bytes]:
    """Return the whole requests of `cell` for `host`, with the fields `conditions` in each."""
    case = cell.case
    added = {**conditions, **({"Range": _range()} if case.status == 206 else {})}
    extra = "".join(f"{name}: {value}\n" for name, value in added.items())
    return [
        _request(f"GET {ROOT}/{path} HTTP/1.1\n{_head(cell.head, host, page)}{extra}\n")
        for path in case.paths
        for page in range(case.heads)
    ]


def _head(head: Head, host: str, page: int) -> str:
    if head == "bare":
        return f"Host: {host}\n"
    return _CHROME.format(host=host, root=ROOT, page=f"page-{page:05}.html")


def _range() -> str:
    return f"bytes={RANGE.start}-{RANGE.stop - 1}"


def _request(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()
