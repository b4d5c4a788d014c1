"""One READY blob or tree, and the right to read it. Knows nothing of where it lies."""

from __future__ import annotations

import enum
import math
import threading
from collections.abc import Callable
from typing import ClassVar, Protocol

import attrs

from blobserve.errors import BlobDamaged
from blobserve.names.digest import Digest
from blobserve.store.blobs.filesystem import Filesystem, ImageFilesystem
from blobserve.store.disk.codings_file import CodingsFile, NoCoding
from blobserve.store.disk.metadata_db import Record, Table
from blobserve.store.index.entry import Entry


class BlobState(enum.Enum):
    """What the blob space has of a digest."""

    UNKNOWN = enum.auto()
    """Nothing."""
    UNREADY = enum.auto()
    """It is being pulled."""
    READY = enum.auto()
    """All of it, verified."""


class Readable(Protocol):
    """The right to read an image until `release`; its files stay open that long."""

    @property
    def filesystem(self) -> Filesystem:
        """The files of the image."""
        ...

    def coded(self, entry: Entry, coding: bytes, is_wanted: bool = True) -> Entry | NoCoding | None:
        """See `Lease.coded`."""
        ...

    def is_coding(self, coded: Entry, coding: bytes, plain: Entry) -> bool | None:
        """See `Lease.is_coding`."""
        ...

    def report(self, damage: BlobDamaged) -> None:
        """See `Lease.report`."""
        ...

    def release(self) -> None:
        """Give it up; once is enough, more is harmless."""
        ...


class ReadyBlob:
    """A READY blob as the blob space keeps it."""

    table: ClassVar[Table] = "blobs"
    """The table of the metadata database that has its record."""
    has_content: ClassVar[bool] = True
    """Whether it has a content, from which its index can be rebuilt, and codings."""

    def __init__(self, record: Record, size: int) -> None:
        self.record = record
        self.size = size
        """Bytes it is charged with."""
        self.filesystem: ImageFilesystem | None = None
        """None while it is closed: of the blobs nobody reads, only so many stay open."""
        self.leases = 0
        """How many read it."""
        self.files = threading.Lock()
        """Held, in threads only, by whoever syncs, adds or removes its files."""
        self.is_removed = False
        """Whether its files have been moved away; read and set under `files`."""
        self.is_doubted = False
        """Whether its index was found damaged while it was open: it is to be opened anew."""
        self.is_gone = False
        """Whether it is off the books but for what is still open."""
        self.is_touched = False
        """Whether it was used since its `BlobLru` last put the blobs in order."""
        self.counted = -math.inf
        """When `MergedIndexes` last counted a use of it, by the reactor's clock."""

    def close(self) -> None:
        """Close its files, if they are open."""
        filesystem, self.filesystem = self.filesystem, None
        if filesystem is not None:
            filesystem.close()

    @property
    def codings(self) -> CodingsFile | None:
        """Its codings, while it is open; None also if it has no content."""
        if self.filesystem is None or not self.has_content:
            return None
        return self.filesystem.codings

    @property
    def digest(self) -> Digest:
        """Of the layer as it is pulled; of what makes it, if this is a tree."""
        return self.record.digest


class ReadyMergedIndex(ReadyBlob):
    """The READY tree of several layers: it has an index, and no content of its own."""

    table = "trees"
    has_content = False


class Variants(Protocol):
    """Makes the files of READY blobs available in content codings."""

    def lend(self, kept: ReadyBlob, entry: Entry, coding: bytes) -> BlobLease | NoCoding | None:
        """Lease another blob that has the same file in a coding.

        NEVER where coding that file turned out useless, None where no blob knows anything.
        """
        ...

    def want(self, kept: ReadyBlob, entry: Entry, coding: bytes) -> NoCoding:
        """Have a file coded beside its own blob. Does not block."""
        ...

    def is_coding(self, kept: ReadyBlob, coded: Entry, coding: bytes, plain: Entry) -> bool | None:
        """See `Lease.is_coding`; `coded` is a file of `kept`."""
        ...


class BlobLease:
    """The right to read a READY blob. See `Readable`."""

    def __init__(
        self,
        kept: ReadyBlob,
        filesystem: ImageFilesystem,
        released: Callable[[ReadyBlob], None],
        variants: Variants,
        damaged: Callable[[ReadyBlob, BlobDamaged], None],
    ) -> None:
        """`variants` has the codings that this blob lacks; `damaged` is told of damage."""
        self.filesystem = filesystem
        self._kept = kept
        self._released: Callable[[ReadyBlob], None] | None = released
        self._variants = variants
        self._damaged = damaged
        self._lenders: dict[ReadyBlob, BlobLease] = {}
        """Other blobs, each leased once, that coded bytes are read from."""
        kept.leases += 1

    @property
    def kept(self) -> ReadyBlob:
        """The blob that is leased."""
        return self._kept

    def coded(self, entry: Entry, coding: bytes, is_wanted: bool = True) -> Entry | NoCoding | None:
        """See `Lease.coded`."""
        known = self.filesystem.file(entry).coded(coding)
        if known is not None or self._released is None:
            return known
        found = self._borrowed(entry, coding)
        if found is NoCoding.NEVER or not is_wanted:
            return found
        # A copy beside the file's own blob outlives the lender.
        wanted = self._variants.want(self._kept, entry, coding)
        return wanted if found is None else found

    def is_coding(self, coded: Entry, coding: bytes, plain: Entry) -> bool | None:
        """See `Lease.is_coding`."""
        return self._variants.is_coding(self._kept, coded, coding, plain)

    def has(self, digest: str) -> bool:
        """Return whether bytes are read from the blob of this digest by this lease."""
        return digest in map(str, (self._kept.digest, *(each.digest for each in self._lenders)))

    def report(self, damage: BlobDamaged) -> None:
        """See `Readable.report`."""
        for kept in self._lenders:
            if str(kept.digest) == damage.digest != str(self._kept.digest):
                self._damaged(kept, damage)
                return
        self._damaged(self._kept, damage)

    def release(self) -> None:
        """See `Readable.release`."""
        released, self._released = self._released, None
        if released is not None:
            self._kept.leases -= 1
            released(self._kept)
            for lender in self._lenders.values():
                lender.release()

    def _borrowed(self, entry: Entry, coding: bytes) -> Entry | NoCoding | None:
        """Return a file of this blob in a coding that lies beside another blob."""
        lender = self._variants.lend(self._kept, entry, coding)
        if not isinstance(lender, BlobLease):
            return lender
        if self._lenders.setdefault(lender.kept, lender) is not lender:
            lender.release()
        coded = lender.filesystem.file(entry).coded(coding)
        codings = lender.filesystem.codings
        return attrs.evolve(coded, codings=codings) if isinstance(coded, Entry) else coded
