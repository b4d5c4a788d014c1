"""Representations: what a request selects, with the header fields that describe it.

Pure. Every rule on caching and validators for what is served, whichever way it is sent, is applied
here.
"""

from __future__ import annotations

import attrs

from blobserve.config import RepositoryRules
from blobserve.oci.digest import Digest
from blobserve.web.answer import Answer, Body, Header
from blobserve.web.conditional import Fields, Verdict, evaluate
from blobserve.web.headers import (
    NO_SNIFF,
    VARY,
    cache_control,
    http_date,
    is_fixed,
    is_immutable_path,
)
from blobserve.web.mime import content_type
from blobserve.web.pages import Page, Role
from blobserve.web.paths import Location
from blobserve.web.rewrite import Edits, is_index
from blobserve.web.status import plain

_RANGES: Header = (b"Accept-Ranges", b"bytes")


@attrs.frozen
class Representation:
    """A body and what its headers say; `modified` is None where dates say nothing about it."""

    body: Body
    etag: bytes
    content_type: bytes
    role: Role
    modified: int | None
    policy: tuple[Header, ...]
    """Cache-Control and Vary, and where the same bytes are to be had for ever."""
    other_etags: tuple[bytes, ...] = ()
    """Of the other representations that the request would accept."""

    def judge(self, method: bytes, fields: Fields) -> Verdict:
        """What the conditions of a GET or HEAD come to."""
        return evaluate(method, fields, self.etag, self.body.size, self.modified, self.other_etags)

    def answer(self, method: bytes, fields: Fields) -> Answer:
        """Judge a GET or HEAD by its conditions. The body goes into the answer, or is closed."""
        if self.role is Role.NOT_FOUND:
            return Answer(404, (*self._description, *self.policy), self.body)
        return self.answer_to(self.judge(method, fields))

    def answer_to(self, verdict: Verdict) -> Answer:
        """What a verdict on the representation of a file means. See `answer`."""
        size = self.body.size
        validators: tuple[Header, ...] = ((b"ETag", verdict.etag or self.etag), *self.policy)
        if verdict.status in (200, 206):
            headers = (*self._description, _RANGES, *validators)
            if self.modified is not None:
                headers += ((b"Last-Modified", http_date(self.modified)),)
            if verdict.range is not None:
                first, last = verdict.range.start, verdict.range.start + verdict.range.length - 1
                headers += ((b"Content-Range", b"bytes %d-%d/%d" % (first, last, size)),)
            return Answer(verdict.status, headers, self.body, verdict.range)
        self.body.close()
        if verdict.status == 304:
            return Answer(304, validators)
        if verdict.status == 416:
            unsatisfied = (b"Content-Range", b"bytes */%d" % size)
            return plain(416, f"the file has {size} bytes\n", _RANGES, unsatisfied)
        return plain(412, "the file is not what the request's conditions ask for\n")

    @property
    def _description(self) -> tuple[Header, ...]:
        return ((b"Content-Type", self.content_type), NO_SNIFF)


@attrs.frozen
class Selection:
    """What a URL and a request's variables select under a repository's rules."""

    location: Location
    rules: RepositoryRules
    page: Page
    is_inlined: bool
    """Whether the request carries inline variables."""
    edits: Edits
    """What makes the bytes served other than the entry's own."""

    def represented(self, body: Body, etag: bytes, image: Digest, now: float) -> Representation:
        """The selection with its bytes; `image` is what the reference stands for."""
        kind = content_type(self.page.name)
        return Representation(
            body, etag, kind, self.page.role, self._modified(now), self._policy(kind, image)
        )

    @property
    def _is_fixed(self) -> bool:
        """Whether the URL fixes these bytes: no tag moves under them, and no rule makes them."""
        is_own = self.page.role is Role.ASKED and not self.edits and not self._varies
        return is_own and is_fixed(self.location.reference, self.rules)

    @property
    def _varies(self) -> bool:
        """Whether inline variables decide what this URL shows."""
        if self.rules.inline_static and is_index(self.page.name, self.page.entry):
            return True
        # Without variables, this URL is redirected.
        return self.location.path is None

    def _modified(self, now: float) -> int | None:
        modified = self.page.entry.mtime
        # RFC 9110 §8.8.2.1: never later than the message.
        return modified if self._is_fixed and modified and 0 < modified <= now else None

    def _policy(self, kind: bytes, image: Digest) -> tuple[Header, ...]:
        if self.page.role is Role.NOT_FOUND:
            return ((b"Cache-Control", b"no-store"),)
        if self._varies:
            control = b"private, no-cache" if self.is_inlined else b"no-cache"
            policy: tuple[Header, ...] = ((b"Cache-Control", control), VARY)
        else:
            policy = ((b"Cache-Control", cache_control(kind, self._is_immutable, self.rules)),)
        if self.location.reference.digest is None:
            policy += ((b"Content-Location", self.location.with_digest(image)),)
        return policy

    @property
    def _is_immutable(self) -> bool:
        if self.page.role is not Role.ASKED or self.edits:
            return False
        path = self.location.path or b""
        return self._is_fixed or is_immutable_path(path, self.rules)
