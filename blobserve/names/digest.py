"""Digests: the names by which content is known and checked.

Pure. Knows the two algorithms that are registered for OCI content and nothing of where bytes come
from.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import attrs

from blobserve.errors import MalformedReference

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_LENGTHS = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)


@attrs.frozen(order=True, cache_hash=True)
class Digest:
    """An algorithm and the lower-case hexadecimal hash of some content.

    See OCI image-spec descriptor.md, "Digests". Made by `parse` or `of`.
    """

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``sha256:<64 hex digits>`` or ``sha512:<128 hex digits>``.

        :raises MalformedReference: for any other algorithm, length or letter, upper case included.
        """
        algorithm, colon, hex_ = text.partition(":")
        length = _HEX_LENGTHS.get(algorithm)
        if not colon or length is None:
            raise MalformedReference(text, "a digest begins with sha256: or sha512:")
        if len(hex_) != length or not _HEX.fullmatch(hex_):
            raise MalformedReference(
                text, f"after {algorithm}: come {length} lower-case hex digits"
            )
        return cls(algorithm, hex_)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of `content`."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def hasher(self) -> _Hash:
        """A fresh hash of this digest's algorithm, to be fed and compared with `hex`."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
