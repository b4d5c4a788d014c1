"""Members: the names and positions of the files in a tar archive.

Pure. Reads headers through a function, and skips bodies. A damaged archive is refused as a whole.
Names are cleaned, and links lead to members of the same archive, never to the host's file system.
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
    OLD_SPARSE,
    REGULAR,
    SYMLINK,
    ZEROS,
    Header,
    clean,
    describe,
    is_intact,
    parse,
    parse_pax,
    parse_pax_size,
)

MOST = 100_000
"""The limit of members; a few images with a hundred layers each have a hundredth of it."""

_GNU_NAMES = {b"L": b"path", b"K": b"linkpath"}

Read = Callable[[int, int], bytes]
"""Reads at an offset up to a number of bytes; returns fewer only at the end of the archive."""


@attrs.frozen
class ArchiveMember:
    """The body of a member: `size` bytes of the archive, from `offset` on."""

    offset: int
    size: int


@attrs.frozen
class Members:
    """The files of an archive, and the targets of its links; all names are cleaned."""

    files: Mapping[bytes, ArchiveMember]
    links: Mapping[bytes, bytes]

    @classmethod
    def read(cls, read: Read, size: int, limits: Limits) -> Members:
        """Find the members of an archive of `size` bytes; the last member of a name counts.

        :raises BadLayer: when it is not a complete tar archive, or exceeds a limit.
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
        """Return the file of a name, through links; None if there is none.

        :raises BadLayer: when links do not lead to a file.
        """
        seen = {name}
        while (target := self.links.get(name)) is not None:
            if target in seen:
                raise BadLayer("a link in it leads back to itself")
            seen.add(name := target)
        if name not in self.files and len(seen) > 1:
            raise BadLayer("a link in it leads to a file that it does not have")
        return self.files.get(name)


def _entries(read: Read, size: int, limits: Limits) -> Iterator[tuple[Header, int]]:
    """Yield the entries of an archive in order, each with the offset of its body."""
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
                raise BadLayer("it has too many extension headers, or too large ones")
            records |= _extension(head, read(body, head.size))
        elif len(head.name) > limits.name_size:
            raise BadLayer(f"a name in it is longer than {limits.name_size} bytes")
        else:
            yield head, body
        at = body + head.size + -head.size % BLOCK


def _header(block: bytes, at: int) -> Header:
    if len(block) == BLOCK and is_intact(block):
        if (head := parse(block)).type == OLD_SPARSE:
            raise BadLayer("it has a sparse file of a kind that cannot be read")
        return head
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
    """Return the header of an entry with the extension headers before it applied."""
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
