"""Digests."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.errors import MalformedReference
from blobserve.names.digest import Digest

HEX = "0123456789abcdef"


@given(
    st.sampled_from([("sha256", 64), ("sha512", 128)]).flatmap(
        lambda kind: st.text(HEX, min_size=kind[1], max_size=kind[1]).map(f"{kind[0]}:".__add__)
    )
)
def test_round_trip(text: str) -> None:
    """The text of a digest parses to the same digest."""
    assert str(Digest.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "٣" * 64,
        "sha256:" + "a" * 64 + "\n",
        "SHA256:" + "a" * 64,
        "sha512:" + "a" * 64,
        "md5:" + "a" * 32,
        "sha256:../../../../etc/passwd",
        "a" * 64,
    ],
)
def test_malformed(text: str) -> None:
    """Unknown algorithms, wrong lengths, upper case and paths are refused (C30, N05)."""
    with pytest.raises(MalformedReference):
        Digest.parse(text)


@given(st.text())
def test_hostile(text: str) -> None:
    """Any text parses to a digest or raises `MalformedReference`."""
    try:
        digest = Digest.parse(text)
    except MalformedReference:
        return
    assert str(digest) == text


@given(st.sampled_from(["sha256", "sha512"]), st.binary())
def test_of_content(algorithm: str, content: bytes) -> None:
    """The digest of content is that of its hash, computed whole or in parts."""
    digest = Digest.of(content, algorithm)
    assert digest.hex == hashlib.new(algorithm, content).hexdigest()
    hasher = digest.hasher()
    hasher.update(content[:3])
    hasher.update(content[3:])
    assert Digest.parse(str(digest)) == digest
    assert hasher.hexdigest() == digest.hex
