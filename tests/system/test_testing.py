"""The public fakes, beyond the contract suite of sources."""

from __future__ import annotations

import pytest

from blobserve.testing import InlineThreads
from tests.support.stores import now


def test_inline_threads() -> None:
    """A function that runs inline has returned or raised before its Deferred is returned."""
    threads = InlineThreads()
    assert now(threads.run(int, "7")) == 7
    with pytest.raises(ValueError, match="seven"):
        now(threads.run(int, "seven"))
