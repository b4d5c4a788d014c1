"""Random mutations of the other layers, reproducible by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache

from blobserve.errors import BadLayer
from blobserve.store.extract.decompress import Decompressor
from tests.faults.hostile import CORPUS
from tests.faults.hostile.case import Case
from tests.support.layers import BLOCK, Compression, compress

LARGEST = 64 << 10
"""The largest stream to mutate, in bytes; in longer ones few mutations would hit a header."""


def mutations(count: int, seed: int = 1) -> Iterator[Case]:
    """Yield `count` layers without an expected result."""
    chance = random.Random(seed)
    streams = _streams()
    compressions: tuple[Compression, ...] = ("none", "none", "gzip", "zstd")
    for number in range(count):
        stream = chance.choice(streams)
        for _ in range(chance.randint(1, 4)):
            stream = chance.choice(_WAYS)(stream, chance.choice(streams), chance)
        compression = chance.choice(compressions)
        blob = compress(stream, compression) or b"\0"
        if chance.random() < 0.2:
            blob = _flip(blob, b"", chance)
        yield Case(f"mutation {number}", blob, compression=compression)


@cache
def _streams() -> list[bytes]:
    return [stream for case in CORPUS if 0 < len(stream := _stream(case)) <= LARGEST]


def _stream(case: Case) -> bytes:
    """Return the tar stream of a case, as far as it can be decompressed."""
    stage, stream = Decompressor(), b""
    stage.feed(case.blob)
    try:
        while len(stream) <= LARGEST and (piece := stage.read()):
            stream += piece
    except BadLayer:
        pass
    return stream


def _flip(stream: bytes, _: bytes, chance: random.Random) -> bytes:
    changed = bytearray(stream or b"\0")
    for _each in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _set(stream: bytes, _: bytes, chance: random.Random) -> bytes:
    """Set a byte of a header, and correct its checksum."""
    at = chance.randrange(0, len(stream) + 1, BLOCK)
    block = bytearray(stream[at : at + BLOCK].ljust(BLOCK, b"\0"))
    field = chance.choice((0, 100, 108, 124, 124, 136, 156, 156, 157, 257, 345))
    block[field] = chance.choice((0, 0x2F, 0x2E, 0x30, 0x35, 0x80, 0xFF, 0x53, 0x67, 0x78))
    total = sum(block[:148]) + sum(block[156:]) + 8 * 0x20
    block[148:156] = b"%06o\0 " % total
    return stream[:at] + bytes(block) + stream[at + BLOCK :]


def _cut(stream: bytes, _: bytes, chance: random.Random) -> bytes:
    return stream[: chance.randrange(len(stream) + 1)]


def _splice(stream: bytes, other: bytes, chance: random.Random) -> bytes:
    at, there = (chance.randrange(0, len(each) + 1, BLOCK) for each in (stream, other))
    return (stream[:at] + other[there:])[:LARGEST]


def _insert(stream: bytes, other: bytes, chance: random.Random) -> bytes:
    at, there = (chance.randrange(0, len(each) + 1, BLOCK) for each in (stream, other))
    return (stream[:at] + other[there : there + 2 * BLOCK] + stream[at:])[:LARGEST]


_Way = Callable[[bytes, bytes, random.Random], bytes]
_WAYS: tuple[_Way, ...] = (_flip, _set, _set, _cut, _splice, _insert, _insert)
