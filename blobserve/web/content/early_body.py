"""Responses with early files: files of a layer that is still being pulled and not verified.

Such a response is always 200 with ``no-store``, without validators and ranges, so that no cache
keeps it and no later request refers to it. It is sent only if the URL can mean no other file,
for any content of the rest of the image, and if no rule rewrites the file. See docs/early-serve.md.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from blobserve.concurrency.threads import Threads
from blobserve.config import RepositoryRules
from blobserve.store.ingest.early_files import EarlyFile
from blobserve.web.content.leased_body import SharedResource
from blobserve.web.http.caching import NO_SNIFF
from blobserve.web.http.media_types import served_type
from blobserve.web.http.response import Answer


def early_answer(file: EarlyFile, name: bytes, rules: RepositoryRules, disk: Threads) -> Answer:
    """Return the answer with an early file for a GET or HEAD. Its body closes the file."""
    found = rules.file_type(name)
    coding = found.coding.encode() if found and found.coding else None
    headers = (
        (b"Content-Type", served_type(name, file.is_text, rules)),
        *(() if coding is None else ((b"Content-Encoding", coding),)),
        NO_SNIFF,
        (b"Cache-Control", b"no-store"),
    )
    return Answer(200, headers, EarlyBody(file, disk), recallable=file)


class EarlyBody:
    """The bytes of an early file. See `blobserve.web.http.response.Body`."""

    def __init__(self, file: EarlyFile, disk: Threads) -> None:
        self._file = file
        self._shared = SharedResource(file.close, disk)

    @property
    def size(self) -> int:
        """See `Body.size`."""
        return self._file.size

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """See `Body.read_cached`."""
        return self._file.read_cached(offset, length)

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See `Body.read`."""
        return self._shared.run(self._file.read, offset, length)

    @property
    def stored(self) -> None:
        """See `Body.stored`. None, so that sending can be stopped at once."""

    def close(self) -> None:
        """See `Body.close`; once only."""
        self._shared.release()
