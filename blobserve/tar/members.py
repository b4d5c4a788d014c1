"""Members: where the files of a tar archive lie in it.

Pure: bytes come from whatever can be read at an offset, and bodies are passed over. What is read
strictly is what `blobserve.tar.header` reads; in a damaged archive nothing is found rather than
half of it. Names are cleaned, and links lead to names of the same archive: none reaches a file
system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs

from blobserve.config import Limits
from blobserve.errors import BadLayer
from blobserve.tar.header import (
    BLOCK,
    BODILESS,
    EXTENSIONS,
    LINK,
    REGULAR,
    SYMLINK,
    ZEROS,
    Header,
    describe,
    is_intact,
    parse,
    parse_pax,
    parse_pax_size,
)
from blobserve.tar.names import clean

MOST = 100_000
"""Members of an archive: of a few images, each of some hundred layers, a hundredth of that."""

_GNU_NAMES = {b"L": b"path", b"K": b"linkpath"}

Read = Callable[[int, int], bytes]
"""Up to so many bytes, the second number, from an offset on, the first; fewer only at the end."""


@attrs.frozen
class ArchiveMember:
    """`size` bytes of an archive, from `offset` on."""

    offset: int
    size: int


@attrs.frozen
class Members:
    """The files of an archive, and its links by what they lead to, as cleaned names."""

    files: Mapping[bytes, ArchiveMember]
    links: Mapping[bytes, bytes]

    @classmethod
    def read(cls, read: Read, size: int, limits: Limits) -> Members:
        """Find the members of an archive of `size` bytes; of several of one name, the last counts.

        :raises BadLayer: when it is no tar archive, or not all of one, or beyond a limit.
        """
        files: dict[bytes, ArchiveMember] = {}
        links: dict[bytes, bytes] = {}
        for count, (head, offset) in enumerate(_entries(read, size, limits)):
            if count == MOST:
                raise BadLayer(f"it has more than {MOST} members")
            name = _cleaned(head.name)
            files.pop(name, None)
            links.pop(name, None)
            if head.type == REGULAR:
                files[name] = ArchiveMember(offset, head.size)
            elif head.type == LINK:
                links[name] = _cleaned(head.link)
            elif head.type == SYMLINK:
                start = b"" if head.link.startswith(b"/") else name.rpartition(b"/")[0]
                links[name] = _cleaned(start + b"/" + head.link)
        return cls(files, links)

    def find(self, name: bytes) -> ArchiveMember | None:
        """The file of a name, through links.

        :raises BadLayer: when those lead to no file.
        """
        seen = {name}
        while (target := self.links.get(name)) is not None:
            if target in seen:
                raise BadLayer("a link in it leads back to itself")
            seen.add(name := target)
        if name not in self.files and len(seen) > 1:
            raise BadLayer("a link in it leads to nothing that is there")
        return self.files.get(name)


def _entries(read: Read, size: int, limits: Limits) -> Iterator[tuple[Header, int]]:
    """The entries of an archive in their order, each with where its body begins."""
    at = extensions = 0
    records: dict[bytes, bytes] = {}
    while (block := read(at, BLOCK)) != ZEROS:
        head, body = _header(block, at), at + BLOCK
        is_extension = head.type in EXTENSIONS
        if not is_extension:
            head, extensions, records = _extended(head, records), 0, {}
        if body + head.size > size:
            raise BadLayer("it is cut short: the last file in it is not complete")
        if is_extension:
            extensions += 1
            if extensions > limits.extensions_in_a_row or head.size > limits.extension_size:
                raise BadLayer("its extension headers are too many or too large")
            records |= _extension(head, read(body, head.size))
        elif len(head.name) > limits.name_size:
            raise BadLayer(f"a name in it is longer than {limits.name_size} bytes")
        else:
            yield head, body
        at = body + head.size + -head.size % BLOCK


def _header(block: bytes, at: int) -> Header:
    if len(block) == BLOCK and is_intact(block):
        return parse(block)
    if not at:
        raise BadLayer(describe(block))
    if len(block) < BLOCK:
        raise BadLayer("it is cut short: it has no end")
    raise BadLayer("it is damaged: the checksum of a header is wrong")


def _extension(head: Header, body: bytes) -> dict[bytes, bytes]:
    if head.type in _GNU_NAMES:
        return {_GNU_NAMES[head.type]: body.partition(b"\0")[0]}
    return parse_pax(body) if head.type == b"x" else {}


def _extended(head: Header, records: Mapping[bytes, bytes]) -> Header:
    """The header of an entry, under the extension headers before it."""
    size = head.size
    if b"size" in records:
        size = parse_pax_size(records[b"size"])
    return head._replace(
        name=records.get(b"path", head.name),
        link=records.get(b"linkpath", head.link),
        size=0 if head.type in BODILESS else size,
    )


def _cleaned(name: bytes) -> bytes:
    return b"/".join(clean(name))
