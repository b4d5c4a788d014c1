"""Leases: the right to read an image for as long as it is held."""

from __future__ import annotations

from types import TracebackType
from typing import Literal

from blobserve.errors import BlobDamaged
from blobserve.names.digest import Digest
from blobserve.store.blobs.filesystem import Filesystem
from blobserve.store.blobspace import Readable
from blobserve.store.disk.codings_file import NoCoding
from blobserve.store.index.entry import Entry

Result = Literal["hit", "pull", "wait", "stale"]


class Lease:
    """An image that stays readable until `release`; also a context manager that releases."""

    def __init__(
        self, image: Readable, digest: Digest, layers: int, result: Result, trusted_until: float
    ) -> None:
        self._image: Readable | None = image
        self.filesystem: Filesystem = image.filesystem
        self.digest = digest
        """The digest of the manifest or index; ``<repository>@<digest>`` is constant."""
        self.layers = layers
        """The number of layers of the image, served or not."""
        self.result = result
        """How the lease came about: READY image, own pull, another pull, or stale image."""
        self.trusted_until = trusted_until
        """The time, by the reactor's clock, after which the tag needs a new lease."""

    def coded(self, entry: Entry, coding: bytes, is_wanted: bool = True) -> Entry | NoCoding | None:
        """Return a file of the image in a content coding; it is read like any entry of this lease.

        Coded bytes belong to the content of a file, so those of an equal file in any READY layer
        are given at once. If no layer has them and the coding `is_wanted`, they are made once in
        the background. None: they neither exist nor are being made. Files that are coded already,
        too small or too large are not coded, and none is after `release`.
        """
        if self._image is None:
            return NoCoding.NEVER
        return self._image.coded(entry, coding, is_wanted)

    def is_coding(self, coded: Entry, coding: bytes, plain: Entry) -> bool | None:
        """Return whether a file of the image is another file in a content coding.

        None while that is not known: the file is then decoded in the background, once for all
        layers that have both contents. False for a coding that not every client decodes.
        """
        return None if self._image is None else self._image.is_coding(coded, coding, plain)

    def report(self, damage: BlobDamaged) -> None:
        """Report damage in the leased image, so that it is repaired or pulled again.

        Later requests for the image wait until it is whole. This lease does not change. A report
        after `release` has no effect.
        """
        if self._image is not None:
            self._image.report(damage)

    def release(self) -> None:
        """Release the image. Idempotent."""
        image, self._image = self._image, None
        if image is not None:
            image.release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
