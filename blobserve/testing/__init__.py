"""Verified fakes for tests: a source of images in memory, and threads that run jobs at once.

They serve the tests of blobserve and of applications that embed it. `MemorySource` passes the
contract tests of the real sources; it fails only where a test asks for it.
"""

from blobserve.testing.images import MadeImage, make_image, make_index
from blobserve.testing.source import Gate, MemorySource
from blobserve.testing.threads import InlineThreads

__all__ = ["Gate", "InlineThreads", "MadeImage", "MemorySource", "make_image", "make_index"]
