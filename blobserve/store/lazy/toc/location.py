"""The position and digest of a layer's table of contents: annotations and footers.

A table is used only if the manifest has its digest. eStargz (docs/estargz.md of
containerd/stargz-snapshotter) has the position of the table at the end of the layer, zstd:chunked
(of containers/storage) in another annotation.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from blobserve.errors import BadToc, MalformedReference
from blobserve.names.digest import Digest
from blobserve.oci.manifest import Descriptor

if TYPE_CHECKING:
    from blobserve.config import Limits

_ESTARGZ_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
_CHUNKED = "io.github.containers.zstd-chunked."
_CHUNKED_DIGEST = _CHUNKED + "manifest-checksum"
_CHUNKED_POSITION = _CHUNKED + "manifest-position"

_POSITION = re.compile(r"([0-9]{1,18}):([0-9]{1,18}):([0-9]{1,18}):1", re.ASCII)
# An empty gzip member, RFC 1952; its extra field has the offset of the table. In the older footer
# the field has no subfield header.
_HEX = rb"([0-9a-f]{16})STARGZ"
_MEMBER = rb"\x1f\x8b\x08\x04.{4}.\xff"
_EMPTY = rb"\x01\x00\x00\xff\xff\x00{8}"
_FOOTERS = (
    re.compile(_MEMBER + rb"\x1a\x00SG\x16\x00" + _HEX + _EMPTY, re.DOTALL),
    re.compile(_MEMBER + rb"\x16\x00" + _HEX + _EMPTY, re.DOTALL),
)
_FOOTER_SIZES = (51, 47)

_RATIO = 4
"""The factor by which a compressed table must be smaller than its limit."""


@attrs.frozen
class TocLocation:
    """The position of a compressed table of contents in its layer, and its digest."""

    start: int
    length: int
    digest: Digest
    is_gzip: bool
    """Whether it is eStargz: the JSON is the only file of a tar, and has the digest."""
    end: int
    """The largest possible end of a chunk."""


@attrs.frozen
class TocDescriptor:
    """The digest of a layer's table; `place` is its position if the annotations have it."""

    digest: Digest
    place: TocLocation | None = None

    @classmethod
    def of(cls, layer: Descriptor, limits: Limits) -> TocDescriptor | None:
        """Read the annotations of a layer; return None if it has no usable table.

        :raises BadToc: when the annotations are invalid.
        """
        annotations = layer.annotations
        if _CHUNKED_DIGEST in annotations and _CHUNKED_POSITION in annotations:
            digest = _digest(annotations[_CHUNKED_DIGEST])
            found = _POSITION.fullmatch(annotations[_CHUNKED_POSITION])
            if found is None:
                raise BadToc("its annotation has no valid position")
            start, length, unpacked = (int(found[n]) for n in (1, 2, 3))
            if unpacked > limits.published_index_size:
                raise BadToc(f"it is larger than {limits.published_index_size} bytes")
            return cls(digest, _place(start, start + length, digest, False, layer, limits))
        if _ESTARGZ_DIGEST in annotations:
            return cls(_digest(annotations[_ESTARGZ_DIGEST]))
        return None

    def found(self, tail: bytes, layer: Descriptor, limits: Limits) -> TocLocation:
        """Return the position of the table from the last bytes of an eStargz layer.

        :raises BadToc: when these are not an eStargz footer.
        """
        for footer, size in zip(_FOOTERS, _FOOTER_SIZES, strict=True):
            found = footer.fullmatch(tail[-size:])
            if found is not None:
                end = layer.size - size
                return _place(int(found[1], 16), end, self.digest, True, layer, limits)
        raise BadToc("its layer has no eStargz footer")


def _place(
    start: int, end: int, digest: Digest, is_gzip: bool, layer: Descriptor, limits: Limits
) -> TocLocation:
    if not 0 < start < end <= layer.size:
        raise BadToc("its position is outside of its layer")
    if end - start > limits.published_index_size // _RATIO:
        raise BadToc(f"it is larger than {limits.published_index_size // _RATIO} bytes, compressed")
    return TocLocation(start, end - start, digest, is_gzip, start)


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except MalformedReference as error:
        raise BadToc("its annotation is not a digest") from error
