"""Digests: names of content by its hash.

Pure. Supports the two algorithms that OCI image-spec registers.
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

    Create it with `parse` or `of`. See OCI image-spec descriptor.md, "Digests".
    """

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``sha256:<64 hex digits>`` or ``sha512:<128 hex digits>``.

        :raises MalformedReference: for another algorithm, length or character, upper case included.
        """
        algorithm, colon, hex_ = text.partition(":")
        length = _HEX_LENGTHS.get(algorithm)
        if not colon or length is None:
            raise MalformedReference(text, "a digest begins with sha256: or sha512:")
        if len(hex_) != length or not _HEX.fullmatch(hex_):
            raise MalformedReference(
                text, f"a {algorithm} digest has {length} lower-case hex digits"
            )
        return cls(algorithm, hex_)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Digest:
        """Return the digest of `content`."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def hasher(self) -> _Hash:
        """Return a new hash object for this algorithm; compare its result with `hex`."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
