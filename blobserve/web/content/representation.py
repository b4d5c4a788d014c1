"""Representations: what the header fields say of the bytes that are served.

Pure. Validators, conditions and ranges are the same for all, whichever way they are sent; bodies
come in when there is something to be sent.
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
    """Why a file is what is served."""

    ASKED = enum.auto()
    """The URL names it, or its directory."""
    FALLBACK = enum.auto()
    """The URL names nothing; the application will know what it means."""
    NOT_FOUND = enum.auto()
    """The URL names nothing, and the file says so."""


@attrs.frozen
class Variant:
    """What a request gets of an entry, be it rewritten or coded: its size and what names it."""

    size: int
    etag: bytes
    coding: bytes | None = None
    """The content coding, RFC 9110 §8.4."""
    is_negotiated: bool = False
    """Whether a request with another Accept-Encoding might get another."""


@attrs.frozen
class Representation:
    """What the headers say of a body; `modified` is None where dates say nothing about it."""

    variant: Variant
    content_type: bytes
    role: Role
    modified: int | None
    policy: tuple[Header, ...]
    """Cache-Control and Vary, and where the same bytes are to be had for ever."""

    def judge(self, method: bytes, fields: Fields) -> Verdict:
        """What the conditions of a GET or HEAD come to."""
        own = self.variant
        verdict = evaluate(method, fields, own.etag, own.size, self.modified)
        # Clients that ask for several ranges mean those of the file.
        return ALL if verdict.ranges and own.coding else verdict

    def answer(self, method: bytes, fields: Fields, body: Body) -> Answer:
        """Judge a GET or HEAD by its conditions. `body` goes into the answer, or is closed."""
        if self.role is Role.NOT_FOUND:
            return Answer(404, (*self._description, *self.policy), body)
        return self.answer_to(self.judge(method, fields), body)

    def answer_to(self, verdict: Verdict, body: Body) -> Answer:
        """What a verdict on the representation of a file means. See `answer`."""
        size = self.variant.size
        validators: tuple[Header, ...] = ((b"ETag", self.variant.etag), *self.policy)
        if verdict.status in (200, 206):
            headers = (*self._description, _RANGES, *validators)
            if verdict.ranges:
                # No file holds its own hash, so this bounds the parts of any.
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
        return plain(412, "the file is not what the request's conditions ask for\n")

    @property
    def _description(self) -> tuple[Header, ...]:
        coding = self.variant.coding
        coded = () if coding is None else ((b"Content-Encoding", coding),)
        return ((b"Content-Type", self.content_type), *coded, NO_SNIFF)
