"""Verified fakes: a source of images in memory, and threads that are none.

For tests of blobserve and of whatever embeds it. `MemorySource` passes the contract suite that the
real sources pass; what it does wrong it has been told to.
"""

from blobserve.testing.images import MadeImage, make_image, make_index
from blobserve.testing.source import Gate, MemorySource
from blobserve.testing.threads import InlineThreads

__all__ = ["Gate", "InlineThreads", "MadeImage", "MemorySource", "make_image", "make_index"]
