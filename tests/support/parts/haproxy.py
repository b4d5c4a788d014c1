"""HAProxy in front of one server, its connections to it shared by all clients."""

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
    """A running HAProxy that has one connection at a time to the server at a port of loopback."""

    def __init__(self, directory: Path, server: int) -> None:
        self.port = free_port()
        config = directory / "haproxy.cfg"
        config.write_text(_CONFIG.format(port=self.port, server=server))
        self._part = Part(["haproxy", "-db", "-f", config], directory)

    def start(self) -> None:
        """Start it, or start it again on the same port."""
        self._part.start(lambda: answers(self.port))

    def stop(self) -> None:
        """End it; its port refuses connections from now."""
        self._part.stop()
