"""Checks of responses before each measurement, so that no wrong response is measured."""

from __future__ import annotations

import gzip
import socket
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPResponse

import attrs

from benchmarks.warm.cases import RANGE, Case

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class Wrong(Exception):
    """A server gave a wrong response, or none."""


@attrs.frozen
class Answer:
    """A response with its body as received."""

    status: int
    headers: Mapping[str, str]
    body: bytes = attrs.field(repr=False)

    @property
    def content(self) -> bytes:
        """Return the body without its content coding."""
        coding = self.headers.get("content-encoding", "identity")
        if coding == "gzip":
            return gzip.decompress(self.body)
        if coding == "zstd":
            return zstd.decompress(self.body)
        return self.body

    @property
    def conditions(self) -> dict[str, str]:
        """Return the fields of a conditional request; the date only if there is no entity tag."""
        if tag := self.headers.get("etag"):
            return {"If-None-Match": tag}
        return {"If-Modified-Since": self.headers["last-modified"]}


def ask(port: int, request: bytes) -> Answer:
    """Send `request` on a new connection, and return the response."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        with HTTPResponse(connection) as response:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())


def check(port: int, case: Case, requests: Sequence[bytes], files: Mapping[str, bytes]) -> None:
    """Send the first, a middle and the last of `requests`, and check the responses.

    :raises Wrong: when a status, a length or a byte is wrong.
    """
    for number in sorted({0, len(requests) // 2, len(requests) - 1}):
        path = case.paths[number // case.heads]
        answer = ask(port, requests[number])
        if answer.status != case.status:
            raise Wrong(f"{path}: answered {answer.status}, not {case.status}")
        if answer.content != _expected(case, files[path]):
            raise Wrong(f"{path}: answered with the wrong {len(answer.body)} bytes")


def _expected(case: Case, content: bytes) -> bytes:
    return {200: content, 206: content[RANGE], 304: b""}[case.status]
