"""HAProxy before one server, with server connections that all clients share."""

from __future__ import annotations

from pathlib import Path

from tests.support.parts.programs import Part, answers, free_port

_CONFIG = """
global
    maxconn 500
    nbthread 1
defaults
    mode http
    http-reuse always
    option disable-h2-upgrade
    timeout connect 2s
    timeout client 2s
    timeout server 5s
    timeout http-request 500ms
    timeout http-keep-alive 2s
    retries 0
frontend clients
    bind 127.0.0.1:{port}
    default_backend servers
backend servers
    server one 127.0.0.1:{server} maxconn 1
"""


class HAProxy:
    """A running HAProxy that opens one connection at a time to a server on loopback."""

    def __init__(self, directory: Path, server: int) -> None:
        self.port = free_port()
        config = directory / "haproxy.cfg"
        config.write_text(_CONFIG.format(port=self.port, server=server))
        self._part = Part(["haproxy", "-db", "-f", config], directory)

    def start(self) -> None:
        """Start it, again on the same port."""
        self._part.start(lambda: answers(self.port))

    def stop(self) -> None:
        """Stop it, so that its port refuses connections."""
        self._part.stop()
