"""READY blobs and merged indexes, and the leases to read them."""

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
    """The state of a digest in the blob space."""

    UNKNOWN = enum.auto()
    """The blob is missing."""
    UNREADY = enum.auto()
    """The blob is being pulled."""
    READY = enum.auto()
    """The blob is complete and verified."""


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
        """Release the lease. Idempotent."""
        ...


class ReadyBlob:
    """A READY blob of the blob space."""

    table: ClassVar[Table] = "blobs"
    """The table of the metadata database that has its record."""
    has_content: ClassVar[bool] = True
    """Whether it has a content, from which its index can be rebuilt, and codings."""

    def __init__(self, record: Record, size: int) -> None:
        self.record = record
        self.size = size
        """Bytes that count towards the quota."""
        self.filesystem: ImageFilesystem | None = None
        """The open blob; None while it is closed. Only some unleased blobs stay open."""
        self.leases = 0
        """The number of leases."""
        self.files = threading.Lock()
        """A lock that a thread holds while it syncs, adds or removes files of the blob."""
        self.is_removed = False
        """Whether its files have been moved away; guarded by `files`."""
        self.is_doubted = False
        """Whether its index was found damaged, so that it must be opened again."""
        self.is_gone = False
        """Whether it has been removed; its bytes count until it is closed."""
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
        """The coded variants; None while the blob is closed, or if it has no content."""
        if self.filesystem is None or not self.has_content:
            return None
        return self.filesystem.codings

    @property
    def digest(self) -> Digest:
        """The digest of the compressed layer, or of the merged index."""
        return self.record.digest


class ReadyMergedIndex(ReadyBlob):
    """A READY merged index of several layers; it has no content of its own."""

    table = "trees"
    has_content = False


class Variants(Protocol):
    """A provider of coded variants of the files of READY blobs."""

    def lend(self, kept: ReadyBlob, entry: Entry, coding: bytes) -> BlobLease | NoCoding | None:
        """Lease another blob that has the same file in a coding.

        Returns `NoCoding.NEVER` if another blob found that coding useless, and None if no blob has
        a result.
        """
        ...

    def want(self, kept: ReadyBlob, entry: Entry, coding: bytes) -> NoCoding:
        """Request a coded variant of a file, to be stored with its blob. Does not block."""
        ...

    def is_coding(self, kept: ReadyBlob, coded: Entry, coding: bytes, plain: Entry) -> bool | None:
        """See `Lease.is_coding`; `coded` is a file of `kept`."""
        ...


class BlobLease:
    """A lease of a READY blob. See `Readable`."""

    def __init__(
        self,
        kept: ReadyBlob,
        filesystem: ImageFilesystem,
        released: Callable[[ReadyBlob], None],
        variants: Variants,
        damaged: Callable[[ReadyBlob, BlobDamaged], None],
    ) -> None:
        """`variants` provides codings that this blob lacks; `damaged` is called with damage."""
        self.filesystem = filesystem
        self._kept = kept
        self._released: Callable[[ReadyBlob], None] | None = released
        self._variants = variants
        self._damaged = damaged
        self._lenders: dict[ReadyBlob, BlobLease] = {}
        """Leases of other blobs that provide coded bytes."""
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
        # A copy with the file's own blob stays after the other blob is evicted.
        wanted = self._variants.want(self._kept, entry, coding)
        return wanted if found is None else found

    def is_coding(self, coded: Entry, coding: bytes, plain: Entry) -> bool | None:
        """See `Lease.is_coding`."""
        return self._variants.is_coding(self._kept, coded, coding, plain)

    def has(self, digest: str) -> bool:
        """Return whether this lease reads the blob with this digest."""
        return digest in map(str, (self._kept.digest, *(each.digest for each in self._lenders)))

    def report(self, damage: BlobDamaged) -> None:
        """See `Lease.report`."""
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
        """Return a coded file of another blob that is equal to a file of this one."""
        lender = self._variants.lend(self._kept, entry, coding)
        if not isinstance(lender, BlobLease):
            return lender
        if self._lenders.setdefault(lender.kept, lender) is not lender:
            lender.release()
        coded = lender.filesystem.file(entry).coded(coding)
        codings = lender.filesystem.codings
        return attrs.evolve(coded, codings=codings) if isinstance(coded, Entry) else coded
