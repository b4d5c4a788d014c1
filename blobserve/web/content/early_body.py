"""Early answers: a file that has streamed past, of an image that is not verified yet.

Nothing is said of it that a cache could keep, or a later request could refer to: 200 or nothing, no
validators, no ranges. Only for a URL that can mean one regular file alone, whatever the rest of the
image will be, and whose bytes no rule changes.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from blobserve.concurrency.threads import Threads
from blobserve.config import RepositoryRules
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.ingest.early_files import EarlyFile
from blobserve.tar.names import split
from blobserve.web.content.leased_body import SharedResource
from blobserve.web.content.rewrite import INDEX, Variables, edits_for, is_index
from blobserve.web.http.caching import NO_SNIFF
from blobserve.web.http.media_types import content_type
from blobserve.web.http.response import Answer
from blobserve.web.http.target import Target


def early_name(
    location: Target, rules: RepositoryRules, variables: Variables | None
) -> bytes | None:
    """The canonical path of the one regular file that answers a request if it is there.

    None where that may be another, or is not to be said yet. See the law of this room.
    """
    if location.path is None:
        return None
    name = b"/".join(split(rules.workdir.encode() + b"/" + location.path))
    if location.asks_directory:
        name = b"/".join(filter(None, (name, INDEX)))
    entry = Entry(name, EntryKind.FILE)
    is_inlined = bool(rules.inline_static) and is_index(name, entry)
    return None if is_inlined or edits_for(name, entry, rules, variables) else name


def early_answer(file: EarlyFile, name: bytes, disk: Threads) -> Answer:
    """A file found under this name, to any GET or HEAD; closes it with its body."""
    headers = (
        (b"Content-Type", content_type(name)),
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
        """See `Body.stored`: what is sent is in our hands, to be stopped at once."""

    def close(self) -> None:
        """See `Body.close`; once only."""
        self._shared.release()
