"""Image leases: the files of one image, for the code of an application that embeds blobserve."""

from __future__ import annotations

from contextlib import closing
from types import TracebackType

from twisted.internet.defer import Deferred

from blobserve.errors import BlobDamaged, PathNotFound
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.web.content.leased_body import FileBody, SharedLease

_PIECE = 1 << 20
"""Bytes that are read in one job, so that requests have their turn in between."""


class ImageLease:
    """An image that stays readable until `release`; also a context manager that releases.

    `Blobserve.blob_for` makes it. Paths are relative to the root of the image, and links are
    followed as in a chroot; ``workdir`` and rules of the configuration do not apply. Names that
    are not UTF-8 have surrogate escapes, as in `os.fsdecode`. A stop of the service releases all
    leases.
    """

    def __init__(self, shared: SharedLease, held: set[ImageLease]) -> None:
        """Take over `shared`. `held` has this lease until it is released."""
        self._shared: SharedLease | None = shared
        self._all_held = held
        held.add(self)
        self.digest = str(shared.lease.digest)
        """The digest of the manifest or index: ``<repository>@<digest>`` is constant."""

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Deferred[bytes]:
        """Read a file from `offset` on, up to its end or `length` bytes.

        Cancelling ends the read.

        :raises PathNotFound: when there is no such file.
        :raises ValueError: after `release`, also during the read; or for a negative number.
        :raises BlobDamaged: when the disk has lost or changed bytes; a new lease pulls them again.
        :raises UpstreamError: when the file is not in the blob space yet and cannot be fetched.
        """
        return Deferred.fromCoroutine(self._read(path, offset, length))

    def size(self, path: str) -> int:
        """Return the size of a file in bytes.

        :raises PathNotFound: when there is no such file.
        :raises ValueError: after `release`.
        """
        return self._found(path, EntryKind.FILE).size

    def names(self, path: str = "") -> list[str]:
        """Return the names in a directory, sorted by bytes.

        Links that lead nowhere and special files are among them.

        :raises PathNotFound: when there is no such directory.
        :raises ValueError: after `release`.
        """
        directory = self._found(path, EntryKind.DIRECTORY)
        names = self._held.lease.filesystem.names(directory)
        return [name.decode("utf-8", "surrogateescape") for name in names]

    def release(self) -> None:
        """Release the image. Idempotent."""
        shared, self._shared = self._shared, None
        self._all_held.discard(self)
        if shared is not None:
            shared.release()

    def __enter__(self) -> ImageLease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def _held(self) -> SharedLease:
        if self._shared is None:
            raise ValueError("the lease was released")
        return self._shared

    def _found(self, path: str, kind: EntryKind) -> Entry:
        lease = self._held.lease
        try:
            entry = lease.filesystem.lookup(path.encode("utf-8", "surrogateescape").lstrip(b"/"))
        except BlobDamaged as damage:
            lease.report(damage)
            raise
        if entry.kind is not kind:
            raise PathNotFound(path)
        return entry

    async def _read(self, path: str, offset: int, length: int | None) -> bytes:
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length must not be negative")
        entry, shared = self._found(path, EntryKind.FILE), self._held
        end = entry.size if length is None else min(entry.size, offset + length)
        pieces = []
        with closing(FileBody(shared, shared.lease.filesystem.file(entry))) as body:
            while offset < end:
                pieces.append(piece := await body.read(offset, min(end - offset, _PIECE)))
                offset += len(piece)
                self._held  # noqa: B018 - raises after `release`
        return b"".join(pieces)
