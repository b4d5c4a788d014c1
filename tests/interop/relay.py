"""A relay in front of a registry that passes every byte on, records requests and can cut a body."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress

import attrs

_HEAD = re.compile(rb"(GET|HEAD) (\S+) HTTP/1\.1\r\n(?:.+\r\n)*\r\n")
_RANGE = re.compile(rb"^range: *(.+?)\r\n", re.IGNORECASE | re.MULTILINE)


@attrs.frozen
class Asked:
    """One request of a client."""

    method: str
    target: str
    range: str = ""


class Relay:
    """A relay on a port of loopback to another; `host` is its name in references."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.asked: list[Asked] = []
        """All requests so far."""
        self._cut: int | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Accept connections."""
        self._run(self._accept)

    def stop(self) -> None:
        """End all connections and wait for the threads."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        accepting, *others = self._threads
        accepting.join()
        for each in self._open:
            _shut(each)
        for thread in others:
            thread.join()
        for each in (self._listening, *self._open):
            each.close()

    def cut_next_blob(self, after: int) -> None:
        """End the connection of the next GET of a blob after this number of bytes."""
        self._cut = after

    def _run(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                registry = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            self._open |= {client, registry}
            left: list[int] = []
            self._run(self._forward, client, registry, left)
            self._run(self._back, registry, client, left)

    def _forward(self, client: socket.socket, registry: socket.socket, left: list[int]) -> None:
        """Pass requests on; `left` gets the number of bytes after which the answer ends."""
        unread = b""
        while received := _receive(client):
            unread += received
            while head := _HEAD.match(unread):
                unread = unread[head.end() :]
                span = _RANGE.search(head[0])
                asked = Asked(head[1].decode(), head[2].decode(), span[1].decode() if span else "")
                self.asked.append(asked)
                if self._cut is not None and asked.method == "GET" and "/blobs/" in asked.target:
                    left.append(self._cut)
                    self._cut = None
            if not _send(registry, received):
                break
        _shut(registry)

    def _back(self, registry: socket.socket, client: socket.socket, left: list[int]) -> None:
        while received := _receive(registry):
            if left:
                received = received[: left[0]]
                left[0] -= len(received)
            if not _send(client, received) or (left and left[0] == 0):
                break
        for each in (client, registry):
            _shut(each)


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:
        return b""


def _send(connection: socket.socket, content: bytes) -> bool:
    try:
        connection.sendall(content)
    except OSError:
        return False
    return True


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
