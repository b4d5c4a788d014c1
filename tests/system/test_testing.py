"""The public fakes, as far as the contract suite of sources does not hold them to account."""

from __future__ import annotations

import pytest

from blobserve.testing import InlineThreads
from tests.support.stores import now


def test_inline_threads() -> None:
    """What runs inline has returned, or has raised, by the time its Deferred is there."""
    threads = InlineThreads()
    assert now(threads.run(int, "7")) == 7
    with pytest.raises(ValueError, match="seven"):
        now(threads.run(int, "seven"))
