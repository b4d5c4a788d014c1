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
        """Of the manifest or index: ``<repository>@<digest>`` names the same bytes for ever."""
        self.layers = layers
        """How many layers the image has, whether they are served or not."""
        self.result = result
        """How it came about: found ready, pulled for this call, waited for, or found stale."""
        self.trusted_until = trusted_until
        """When, by the reactor's clock, a new one must be asked for although this is still held."""

    def coded(self, entry: Entry, coding: bytes, is_wanted: bool = True) -> Entry | NoCoding | None:
        """Return a file of the image in a content coding, to be read like any entry of this lease.

        Coded bytes belong to the content of a file: those made for an equal file of any other READY
        layer are given at once. What no layer has is made in the background, once however many ask,
        if it `is_wanted`; None says that it is neither there nor being made. Nothing is made of a
        file that is coded already, too small or too large, or after `release`.
        """
        if self._image is None:
            return NoCoding.NEVER
        return self._image.coded(entry, coding, is_wanted)

    def is_coding(self, coded: Entry, coding: bytes, plain: Entry) -> bool | None:
        """Return whether a file of the image is another file in a content coding.

        None while that is not known: then the file is decoded in the background, once for all
        layers that have both contents. A coding that not every client decodes is none.
        """
        return None if self._image is None else self._image.is_coding(coded, coding, plain)

    def report(self, damage: BlobDamaged) -> None:
        """Have it seen to that this damage was met in what is leased.

        Who asks for the image from then on gets it whole, or waits until it is; what is leased
        stays as it is. Nothing is done about it after `release`.
        """
        if self._image is not None:
            self._image.report(damage)

    def release(self) -> None:
        """Give the image up; once is enough, more is harmless."""
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
