"""Representations: the bytes of a response, described by header fields.

Pure. The fast path and the ordinary way share these validators, conditions and ranges. A body is
needed only for a response that has one.
"""

from __future__ import annotations

import enum

import attrs

from blobserve.web.http.caching import NO_SNIFF, http_date
from blobserve.web.http.conditional import ALL, Fields, Verdict, evaluate
from blobserve.web.http.multipart import Multipart
from blobserve.web.http.response import Answer, Body, Header
from blobserve.web.http.status import plain

_RANGES: Header = (b"Accept-Ranges", b"bytes")


class Role(enum.Enum):
    """The reason for serving a file."""

    ASKED = enum.auto()
    """The URL names the file or its directory."""
    REWRITTEN = enum.auto()
    """A rule of the site gives the file for another URL."""
    FALLBACK = enum.auto()
    """The URL names no file, and a single-page application interprets it."""
    NAVIGATED = enum.auto()
    """As `FALLBACK`, but only because a browser navigates to the URL."""
    NOT_FOUND = enum.auto()
    """The URL names no file, and this is the configured 404 page."""


@attrs.frozen
class Variant:
    """One variant of a file (as it is, coded or rewritten): its size and entity tag."""

    size: int
    etag: bytes
    coding: bytes | None = None
    """The content coding, RFC 9110 §8.4."""
    is_negotiated: bool = False
    """True if a request with another Accept-Encoding might get another variant."""


@attrs.frozen
class Representation:
    """A variant with its metadata; `modified` is None if it has no meaningful date."""

    variant: Variant
    content_type: bytes
    role: Role
    modified: int | None
    policy: tuple[Header, ...]
    """Cache-Control, Vary and Content-Location."""

    def judge(self, method: bytes, fields: Fields) -> Verdict:
        """Evaluate the conditions of a GET or HEAD."""
        own = self.variant
        verdict = evaluate(method, fields, own.etag, own.size, self.modified)
        # Clients that ask for several ranges mean ranges of the uncoded file.
        return ALL if verdict.ranges and own.coding else verdict

    def answer(self, method: bytes, fields: Fields, body: Body) -> Answer:
        """Return the answer to a GET or HEAD. It takes over `body`, or closes it."""
        if self.role is Role.NOT_FOUND:
            return Answer(404, (*self._description, *self.policy), body)
        return self.answer_to(self.judge(method, fields), body)

    def answer_to(self, verdict: Verdict, body: Body) -> Answer:
        """Return the answer for a verdict. See `answer`."""
        size = self.variant.size
        validators: tuple[Header, ...] = ((b"ETag", self.variant.etag), *self.policy)
        if verdict.status in (200, 206):
            headers = (*self._description, _RANGES, *validators)
            if verdict.ranges:
                # A file cannot contain its own hash, so this is a valid boundary.
                boundary = self.variant.etag.strip(b'"')
                body = Multipart(body, verdict.ranges, self.content_type, boundary)
                headers = ((b"Content-Type", body.content_type), *headers[1:])
            if self.modified is not None:
                headers += ((b"Last-Modified", http_date(self.modified)),)
            if verdict.range is not None:
                first, last = verdict.range.start, verdict.range.start + verdict.range.length - 1
                headers += ((b"Content-Range", b"bytes %d-%d/%d" % (first, last, size)),)
            return Answer(verdict.status, headers, body, verdict.range)
        body.close()
        if verdict.status == 304:
            return Answer(304, validators)
        if verdict.status == 416:
            unsatisfied = (b"Content-Range", b"bytes */%d" % size)
            return plain(416, f"the file has {size} bytes\n", _RANGES, unsatisfied)
        return plain(412, "the file does not meet the conditions of the request\n")

    @property
    def _description(self) -> tuple[Header, ...]:
        coding = self.variant.coding
        coded = () if coding is None else ((b"Content-Encoding", coding),)
        return ((b"Content-Type", self.content_type), *coded, NO_SNIFF)
