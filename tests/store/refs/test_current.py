"""The digests that tags currently serve."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.store.refs.reference_table import CurrentParts

TAGS = [Reference.parse(f"registry.example/site:v{n}") for n in range(4)]
DIGESTS = [Digest.of(bytes([n])) for n in range(6)]

CHANGES = st.lists(st.tuples(st.sampled_from(TAGS), st.sets(st.sampled_from(DIGESTS)).map(tuple)))


@given(CHANGES)
def test_what_any_tag_serves(changes: list[tuple[Reference, tuple[Digest, ...]]]) -> None:
    """A digest is current while any tag serves it, whichever tags served others before."""
    current, served = CurrentParts(), dict[Reference, tuple[Digest, ...]]()
    for tag, parts in changes:
        current.serves(tag, parts)
        served[tag] = parts
        expected = {digest for each in served.values() for digest in each}
        assert {digest for digest in DIGESTS if digest in current} == expected
