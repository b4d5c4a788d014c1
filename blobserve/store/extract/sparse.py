"""Sparse files in PAX archives, expanded: a tar stream in, the same stream with plain files out.

GNU tar and libarchive write a file with holes as a map and the data between the holes (formats
0.0, 0.1 and 1.0; GNU tar manual, "Storing Sparse Files"). The content of a blob has each file in
one piece, so the holes become zeros and the header gets the real size. All other bytes of the
stream pass unchanged, damage included: `TarReader` reports that.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

from blobserve.config import Limits
from blobserve.errors import BadLayer
from blobserve.store.extract.decompress import PIECE, Stage
from blobserve.tar.header import (
    BLOCK,
    BODILESS,
    EXTENSIONS,
    OLD_SPARSE,
    SPARSE,
    ZEROS,
    describe,
    map_goes_on,
    parse_pax_size,
    pax_records,
    size_of,
)
from blobserve.tar.writer import pax_header, pax_record

_ZERO_PIECE = bytes(PIECE)
_BAD_MAP = "the map of a sparse file cannot be read"

Extents = list[tuple[int, int]]
"""Offset and length of each run of data in an expanded file."""


class _Records(NamedTuple):
    """The PAX records of one header, as far as they change the body of the entry."""

    size: int | None = None
    """The size of the body in the stream, if a record has it."""
    sparse: _Sparse | None = None
    plain: bytes = b""
    """The records of the same file, expanded."""


class _Sparse(NamedTuple):
    size: int
    """The size of the expanded file."""
    extents: Extents | None
    """None if the map is at the start of the body (format 1.0)."""


class SparseExpander:
    """Expands the sparse files in the tar stream of another stage. See `Stage`."""

    def __init__(self, stage: Stage, limits: Limits) -> None:
        self.feed = stage.feed
        self._stage = stage
        self._limits = limits
        self._held = bytearray()  # The start of a header that is not complete yet.
        self._is_at_start = True
        self._pieces = self._expanded()

    def read(self) -> bytes:
        """See `Stage.read`."""
        return next(self._pieces)

    def finish(self) -> None:
        """See `Stage.finish`."""
        self._stage.finish()
        if self._held and self._is_at_start and len(self._held) < BLOCK:
            raise BadLayer(describe(bytes(self._held)))
        if self._held:
            raise BadLayer("its tar archive is cut short")

    def _expanded(self) -> Iterator[bytes]:
        """Yield the expanded stream without end; an empty piece asks for more input."""
        data, start, at = b"", 0, 0  # What was read, what of it was yielded, the next header.
        records = _Records()
        while True:
            if at >= len(data):
                if start < len(data):
                    yield data[start:]
                start, at = 0, at - len(data)
                data = yield from self._more()
                continue
            wanted, block = BLOCK, data[at : at + BLOCK]
            try:
                if block == ZEROS:
                    break
                size = size_of(block) if len(block) == BLOCK else 0
                is_pax = block[156:157] == b"x"
                if is_pax and size > self._limits.extension_size:
                    break
                wanted += size + -size % BLOCK if is_pax else 0
                if len(data) - at < wanted:
                    if start < at:
                        yield data[start:at]
                    data, start, at = (yield from self._hold(data[at:], wanted)), 0, 0
                    continue
                if is_pax:
                    records = _read_records(data[at + BLOCK : at + BLOCK + size])
            except BadLayer:  # `TarReader` says the same, once it knows that the header is whole.
                break
            self._is_at_start = False
            type_ = block[156:157]
            if is_pax:
                if records.sparse is not None:
                    if start < at:
                        yield data[start:at]
                    yield pax_header(records.plain)
                    start = at + wanted
                at += wanted
                continue
            at += BLOCK
            if type_ not in EXTENSIONS:
                size = size if records.size is None else records.size
                size = 0 if type_ in BODILESS else size
                sparse, records = records.sparse, _Records()
                if sparse is not None and (type_ in BODILESS or type_ == OLD_SPARSE):
                    raise BadLayer("an entry that is no file is said to be sparse")
                is_more = type_ == OLD_SPARSE and map_goes_on(block, is_header=True)
                while is_more:
                    if len(data) - at < BLOCK:
                        yield data[start:at]
                        data, start, at = (yield from self._hold(data[at:], BLOCK)), 0, 0
                    is_more = map_goes_on(data[at : at + BLOCK], is_header=False)
                    at += BLOCK
                if sparse is not None:
                    yield data[start:at]
                    data, start, at = (yield from self._body(sparse, size, data[at:])), 0, 0
                    continue
            at += size + -size % BLOCK
        while True:
            yield data[start:]
            data, start = (yield from self._more()), 0

    def _body(self, sparse: _Sparse, stored: int, data: bytes) -> Generator[bytes, None, bytes]:
        """Yield the body of a sparse file, expanded; return what follows it of what was read."""
        extents = sparse.extents
        if extents is None:
            data, extents, taken = yield from self._map(data, stored)
            stored -= taken
        gaps = _gaps(sparse.size, extents, stored)
        view, out = memoryview(data), bytearray()
        for gap, length in gaps:
            while gap:
                zeros = min(gap, PIECE - len(out))
                out += _ZERO_PIECE[:zeros]
                gap -= zeros
                if len(out) == PIECE:
                    yield bytes(out)
                    out.clear()
            while length:
                if not view:
                    if out:
                        yield bytes(out)
                        out.clear()
                    view = memoryview((yield from self._more()))
                part = view[: min(length, PIECE - len(out))]
                out += part
                view = view[len(part) :]
                length -= len(part)
                if len(out) == PIECE:
                    yield bytes(out)
                    out.clear()
        if out:
            yield bytes(out)
        padding = -stored % BLOCK
        while padding:
            if not view:
                view = memoryview((yield from self._more()))
            skipped = min(padding, len(view))
            view = view[skipped:]
            padding -= skipped
        return bytes(view)

    def _map(self, data: bytes, stored: int) -> Generator[bytes, None, tuple[bytes, Extents, int]]:
        """Read the map of format 1.0: its count of extents, then numbers, one in each line.

        Return what follows of what was read, the map, and the bytes that it took of the body.
        """
        taken = lines = 0
        wanted = 1
        while lines < wanted:
            taken += BLOCK
            if taken > min(stored + -stored % BLOCK, self._limits.extension_size):
                raise BadLayer(_BAD_MAP)
            data = yield from self._hold(data, taken)
            lines += data.count(b"\n", taken - BLOCK, taken)
            if lines:
                wanted = 1 + 2 * _number(data[: data.index(b"\n")])
        numbers = data[:taken].split(b"\n", wanted)[1:wanted]
        return data[taken:], _pairs(map(_number, numbers)), min(taken, stored)

    def _hold(self, data: bytes, size: int) -> Generator[bytes, None, bytes]:
        """Read on until there are at least `size` bytes."""
        if len(data) >= size:
            return data
        self._held += data
        while len(self._held) < size:
            self._held += yield from self._more()
        data = bytes(self._held)
        self._held.clear()
        return data

    def _more(self) -> Generator[bytes, None, bytes]:
        """Return the next piece of the stream, once there is one."""
        while not (piece := self._stage.read()):
            yield b""
        return piece


def _read_records(body: bytes) -> _Records:
    """Return what the records of a PAX header say of the body of the entry.

    :raises BadLayer: when they cannot be read, or describe a sparse file of an unknown kind.
    """
    if SPARSE not in body and b"size=" not in body:
        return _Records()
    records = list(pax_records(body))
    last = dict(records)
    size = parse_pax_size(last[b"size"]) if last.get(b"size") else None
    version = last.get(SPARSE + b"major"), last.get(SPARSE + b"minor")
    extents: Extents | None = None
    if version == (b"1", b"0"):
        pass
    elif version not in ((None, None), (b"0", b"0"), (b"0", b"1")):
        return _Records(size)
    elif SPARSE + b"map" in last:
        numbers = last[SPARSE + b"map"].split(b",") if last[SPARSE + b"map"] else []
        extents = _pairs(map(_number, numbers))
    elif SPARSE + b"numblocks" in last:
        keys = (SPARSE + b"offset", SPARSE + b"numbytes")
        found = [(key, value) for key, value in records if key in keys]
        if any(key != keys[number % 2] for number, (key, _) in enumerate(found)):
            raise BadLayer(_BAD_MAP)
        extents = _pairs(_number(value) for _, value in found)
    else:
        return _Records(size)
    blocks = last.get(SPARSE + b"numblocks")
    if extents is not None and blocks is not None and _number(blocks) != len(extents):
        raise BadLayer(_BAD_MAP)
    real = parse_pax_size(last.get(SPARSE + b"realsize") or last.get(SPARSE + b"size") or b"")
    name = last.get(SPARSE + b"name")
    dropped = {b"size", b"path"} if name else {b"size"}
    kept = [each for each in records if each[0] not in dropped and not each[0].startswith(SPARSE)]
    kept += [(b"path", name)] if name else []
    kept.append((b"size", b"%d" % real))
    return _Records(size, _Sparse(real, extents), b"".join(pax_record(*each) for each in kept))


def _gaps(size: int, extents: Extents, stored: int) -> list[tuple[int, int]]:
    """Return the runs of an expanded file: zeros, then data; its padding is in the last one.

    :raises BadLayer: when the map does not fit the size of the file, or that of its data.
    """
    gaps, at = [], 0
    for offset, length in extents:
        if offset < at or offset + length > size:
            raise BadLayer("the map of a sparse file does not fit its size")
        gaps.append((offset - at, length))
        at = offset + length
    if sum(length for _, length in extents) != stored:
        raise BadLayer("a sparse file has more or less data than its map says")
    gaps.append((size - at + -size % BLOCK, 0))
    return gaps


def _pairs(numbers: Iterable[int]) -> Extents:
    listed = list(numbers)
    if len(listed) % 2:
        raise BadLayer(_BAD_MAP)
    return list(zip(listed[::2], listed[1::2], strict=True))


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise BadLayer(_BAD_MAP)
    return int(text)
