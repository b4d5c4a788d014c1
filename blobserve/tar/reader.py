"""A strict reader of tar streams: takes pieces of any size, returns members.

Each member has the position and the hash of its body. Framing follows Go's reader, which container
tools share: links, directories and devices have no body even if their header gives a size, and
global PAX headers have no effect. A stream that cannot be read this way is refused as a whole.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from blobserve.errors import BadLayer
from blobserve.tar import header
from blobserve.tar.header import (
    BLOCK,
    BODILESS,
    DIRECTORY,
    EXTENSIONS,
    OLD_SPARSE,
    REGULAR,
    ZEROS,
    Header,
)

if TYPE_CHECKING:
    from hashlib import _Hash

    from blobserve.config import Limits


class Member(NamedTuple):
    """One entry of a tar stream, with its extension headers applied.

    `name` and `link` are raw bytes. `offset` and `size` give the place of the body in the stream.
    `sha256` is the hash of the body of a regular file, else None. Links are types ``1`` and ``2``.
    """

    seq: int
    name: bytes
    type: bytes
    mode: int
    mtime: int | None
    link: bytes
    offset: int
    size: int
    sha256: bytes | None
    is_text: int | None = None
    """Whether a regular file starts as text does (see `starts_as_text`): 1 or 0. None: unknown."""


_LOOK = 512


def starts_as_text(start: bytes, size: int) -> bool:
    """Return whether the first 512 bytes of a file are UTF-8 without NUL.

    `start` has at least so many bytes, or all `size` of a smaller file. A character that byte 512
    cuts in two is no error.
    """
    start = start[:_LOOK]
    if b"\0" in start:
        return False
    try:
        getincrementaldecoder("utf-8")().decode(start, final=size <= _LOOK)
    except UnicodeDecodeError:
        return False
    return True


class TarReader:
    """A reader of one tar stream. After an error it must not be used again."""

    def __init__(self, limits: Limits) -> None:
        self.size = 0
        """Bytes of the archive that were read so far; bytes after its end do not count."""
        self._limits = limits
        self._ended = False
        self._zeros = False  # The last block was all zeros.
        self._block = b""  # The part of a header block that was read.
        self._left = 0  # The bytes of the body that are still missing.
        self._padding = 0  # The missing zeros that fill its last block.
        self._entry: Member | None = None  # The entry whose body is being read.
        self._mapped: int | None = None  # The body behind the map of an old GNU sparse file.
        self._hash: _Hash | None = None
        self._start = b""  # The first bytes of the body that is hashed.
        self._extension = bytearray()
        self._kind = b""
        self._extensions = 0  # The count of extension headers before the next entry.
        self._pax: dict[bytes, bytes] = {}
        self._gnu: dict[bytes, bytes] = {}  # GNU's long names, by their PAX keys.
        self._count = 0
        self._names = 0

    def feed(self, piece: bytes) -> list[Member]:
        """Read the next bytes of the stream; return the members that end in them.

        :raises BadLayer: when the stream is invalid, or exceeds a limit.
        """
        members: list[Member] = []
        view, at, start = memoryview(piece), 0, self.size
        while at < len(piece) and not self._ended:
            if self._left:
                part = view[at : at + self._left]
                at += len(part)
                self._take(part, members)
            elif self._padding:
                skipped = min(self._padding, len(piece) - at)
                self._padding -= skipped
                at += skipped
            else:
                block = self._block + piece[at : at + BLOCK - len(self._block)]
                at += len(block) - len(self._block)
                self._block = b"" if len(block) == BLOCK else block
                if not self._block:
                    self._begin(block, start + at, members)
        self.size = start + at
        return members

    @property
    def claimed(self) -> int:
        """The least size of the stream: the bytes so far and the rest of the current body."""
        return self.size + self._left

    def finish(self) -> None:
        """Check that the stream may end here.

        :raises BadLayer: when it is incomplete.
        """
        if self._block and self.size < BLOCK:
            raise BadLayer(header.describe(self._block))
        # The zeros after the last entry may be missing, as with `umoci insert`.
        if self._block or self._left or self._extensions or self._mapped is not None:
            raise BadLayer("its tar archive is cut short")

    def _begin(self, block: bytes, offset: int, members: list[Member]) -> None:
        """Process a complete header block; its body begins at `offset`."""
        if self._mapped is not None:
            self._skip_map(block, members)
            return
        if block == ZEROS:
            if self._extensions:
                raise BadLayer("an extension header has no entry after it")
            self._ended = self._zeros
            self._zeros = True
            return
        if self._zeros:
            raise BadLayer("one block of zeros is followed by more data")
        if not header.is_intact(block):
            first = offset == BLOCK
            raise BadLayer(header.describe(block) if first else "the checksum of a header is wrong")
        head = header.parse(block)
        if head.type in EXTENSIONS:
            self._begin_extension(head)
        else:
            self._begin_entry(head, offset)
            if head.type == OLD_SPARSE and header.map_goes_on(block, is_header=True):
                self._mapped, self._left = self._left, 0
                return
        self._padding = -self._left % BLOCK
        if not self._left:
            self._end(members)

    def _skip_map(self, block: bytes, members: list[Member]) -> None:
        """Skip a block of the map that an old GNU sparse file has between header and body."""
        if header.map_goes_on(block, is_header=False):
            return
        self._left, self._mapped = self._mapped or 0, None
        self._padding = -self._left % BLOCK
        if not self._left:
            self._end(members)

    def _begin_extension(self, head: Header) -> None:
        self._extensions += 1
        if self._extensions > self._limits.extensions_in_a_row:
            raise BadLayer("an entry has too many extension headers")
        if head.size > self._limits.extension_size:
            raise BadLayer("an extension header is too large")
        self._left = head.size
        self._extension.clear()
        self._kind = head.type
        self._entry = None

    def _begin_entry(self, head: Header, offset: int) -> None:
        name, type_, mode, mtime, link, size = head
        if self._extensions:
            records = self._pax | self._gnu
            name, link = records.get(b"path", name), records.get(b"linkpath", link)
            if b"size" in records:
                size = header.parse_pax_size(records[b"size"])
            if b"mtime" in records:
                mtime = header.parse_pax_mtime(records[b"mtime"])
            self._extensions, self._pax, self._gnu = 0, {}, {}
        if type_ in BODILESS:
            size = 0
        elif type_ == REGULAR and name.endswith(b"/"):
            # In the v7 format such a name is a directory, which has no body.
            if size:
                raise BadLayer("a directory has a body")
            type_ = DIRECTORY
        self._check_limits(name, link, offset + size)
        self._entry = Member(self._count, name, type_, mode, mtime, link, offset, size, None)
        self._count += 1
        self._left = size
        self._hash = sha256() if type_ == REGULAR else None
        self._start = b""

    def _check_limits(self, name: bytes, link: bytes, end: int) -> None:
        limits = self._limits
        self._names += len(name) + len(link)
        if self._count >= limits.entries:
            raise BadLayer(f"it has more than {limits.entries} entries")
        if len(name) > limits.name_size or len(link) > limits.name_size:
            raise BadLayer(f"a name in it is longer than {limits.name_size} bytes")
        if self._names > limits.names_size:
            raise BadLayer(f"its names take more than {limits.names_size} bytes")
        if limits.unpacked_size is not None and end > limits.unpacked_size:
            raise BadLayer(f"it unpacks to more than {limits.unpacked_size} bytes")

    def _take(self, part: memoryview, members: list[Member]) -> None:
        """Process a part of a body."""
        if self._hash is not None:
            self._hash.update(part)
            if len(self._start) < _LOOK:
                self._start += part[:_LOOK]
        elif self._entry is None:
            self._extension += part
        self._left -= len(part)
        if not self._left:
            self._end(members)

    def _end(self, members: list[Member]) -> None:
        """Finish the entry or extension header, when its body is complete."""
        if self._entry is None:
            self._apply(bytes(self._extension))
        elif self._hash is None:
            members.append(self._entry)
        else:
            is_text = int(starts_as_text(self._start, self._entry.size))
            digest, self._hash = self._hash.digest(), None
            members.append(self._entry._replace(sha256=digest, is_text=is_text))

    def _apply(self, body: bytes) -> None:
        """Keep an extension header for the next entry; the last one of a type counts."""
        if self._kind == b"L":
            self._gnu[b"path"] = body.partition(b"\0")[0]
        elif self._kind == b"K":
            self._gnu[b"linkpath"] = body.partition(b"\0")[0]
        else:
            is_global = self._kind == b"g"
            records = header.parse_pax(body, is_global)
            if not is_global:
                self._pax = records
                self._gnu = {key: name for key, name in self._gnu.items() if key not in records}
