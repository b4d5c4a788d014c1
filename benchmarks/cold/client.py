"""An HTTP client that measures the time to the first byte of a body, and counts all bytes."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

import attrs

_WITHIN = 300


@attrs.frozen
class Answer:
    """A response.

    `first` and `whole` are the seconds from the request to the first and the last byte of its body.
    `wire` is the number of its bytes with the head.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = attrs.field(repr=False)
    wire: int
    first: float
    whole: float


class Client:
    """A persistent connection to a port of 127.0.0.1, and a context manager."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __enter__(self) -> Client:
        self._socket = socket.create_connection(("127.0.0.1", self._port), _WITHIN)
        return self

    def __exit__(self, *problem: object) -> None:
        self._socket.close()

    def get(self, target: str, method: str = "GET", **fields: str) -> Answer:
        """Send a request and read the whole response; ``_`` in a field name stands for ``-``."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{self._port}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        begun = time.perf_counter()
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._more()
        head, _, body = got.partition(b"\r\n\r\n")
        status, *rest = head.decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in rest)}
        code = int(status.split()[1])
        has_body = method != "HEAD" and code not in (204, 304)
        expected = int(headers.get("content-length", 0)) if has_body else 0
        pieces, size = [body], len(body)
        first = time.perf_counter() - begun if body else None
        while size < expected:
            pieces.append(self._more())
            first = first or time.perf_counter() - begun
            size += len(pieces[-1])
        whole = time.perf_counter() - begun
        wire = len(head) + 4 + size
        return Answer(code, headers, b"".join(pieces), wire, first or whole, whole)

    def _more(self) -> bytes:
        piece = self._socket.recv(1 << 18)
        if not piece:
            raise ConnectionError("the server has closed the connection")
        return piece


def ask(port: int, target: str, method: str = "GET", **fields: str) -> Answer:
    """Send a request on a new connection, and return the response."""
    with Client(port) as client:
        return client.get(target, method, Connection="close", **fields)
