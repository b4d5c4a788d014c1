"""Twisted alone, for comparison: a `Site` with one leaf `Resource`, without code of blobserve.

Run as a program: ``bare.py PORT ROOT [LOG]``. The file `CONSTANT` is in memory. The others are
opened for each request, and the large ones are sent by Twisted's file producer. It supports entity
tags, but no ranges. The log is written by Twisted's `Site`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from twisted.protocols.basic import FileSender
from twisted.web.http import CACHED
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

CONSTANT = "2k.png"
PIECE = 64 * 1024
TYPES = {".png": b"image/png", ".js": b"text/javascript"}


class Files(Resource):
    """The files that were below `root` at the start, by their exact targets."""

    isLeaf = True  # noqa: N815

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._files = {
            b"/" + str(path.relative_to(root)).encode(): path
            for path in root.rglob("*")
            if path.is_file()
        }
        self._constants = {
            target: (path, path.read_bytes())
            for target, path in self._files.items()
            if path.name == CONSTANT
        }

    def render_GET(self, request: Request) -> bytes | int:
        """See `Resource.render_GET`."""
        if request.path in self._constants:
            path, content = self._constants[request.path]
            empty = self._tagged(request, path, b'"constant"')
            return content if empty is None else empty
        path = self._files[request.path]
        status = path.stat()
        tag = b'"%x-%x"' % (status.st_mtime_ns, status.st_size)
        if (empty := self._tagged(request, path, tag)) is not None:
            return empty
        if status.st_size <= PIECE:
            return path.read_bytes()
        self._send(request, path, status.st_size)
        return NOT_DONE_YET

    def _tagged(self, request: Request, path: Path, tag: bytes) -> bytes | None:
        request.setHeader(b"Content-Type", TYPES[path.suffix])
        return b"" if request.setETag(tag) is CACHED else None

    def _send(self, request: Request, path: Path, size: int) -> None:
        request.setHeader(b"Content-Length", b"%d" % size)
        file = path.open("rb")
        sent = FileSender().beginFileTransfer(file, request)
        sent.addCallback(lambda _: request.finish())
        # The client has closed the connection.
        sent.addErrback(lambda _: None)
        sent.addBoth(lambda _: file.close())


class LoggedSite(Site):
    """A `Site` with one log file; the log of `Site` itself is rotated at each megabyte."""

    def _openLogFile(self, path: str) -> TextIO:
        return open(path, "a", 1)


def main(port: int, root: Path, log: str | None = None) -> None:
    """Serve the files below `root` on a loopback port until a signal ends it."""
    from twisted.internet import reactor  # noqa: TID251 - a program of its own

    site = LoggedSite(Files(root), logPath=log)
    site.noisy = False
    reactor.listenTCP(port, site, backlog=1024, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
