"""nginx, as the CDN before the storage of a registry, or with any other server block."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.parts.programs import Part, answers, free_port
from tests.support.parts.registry import Requested

_CONFIG = """
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
    log_format asked '$request_method $request_uri $status "$http_authorization"';
    access_log access.log asked;
    client_body_temp_path temp/body;
    proxy_temp_path temp/proxy;
    fastcgi_temp_path temp/fastcgi;
    uwsgi_temp_path temp/uwsgi;
    scgi_temp_path temp/scgi;
    {http}
    server {{
        listen 127.0.0.1:{port};
        {server}
    }}
}}
"""
_LINE = re.compile(r'^(\S+) (\S+) (\d+) "(.*)"$', re.MULTILINE)


class Nginx:
    """A running nginx with the directives `server` in its only server block, and `http` before it.

    `proxying` passes every request on.
    """

    def __init__(self, directory: Path, server: str, http: str = "") -> None:
        self.directory = directory
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self._log = directory / "access.log"
        config = _CONFIG.format(port=self.port, server=server, http=http)
        (directory / "nginx.conf").write_text(config)
        (directory / "temp").mkdir(mode=0o777)
        (directory / "temp").chmod(0o777)
        self._part = Part(
            ["nginx", "-p", directory, "-e", "error.log", "-c", directory / "nginx.conf"], directory
        )

    @classmethod
    def proxying(cls, directory: Path, port: int) -> Nginx:
        """Return an nginx with one connection to a server on loopback, which all clients share."""
        server = """
            ignore_invalid_headers off;
            underscores_in_headers on;
            merge_slashes off;
            client_header_timeout 500ms;
            client_body_timeout 500ms;
            location / {
                proxy_pass http://servers;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
            }
        """
        upstream = f"upstream servers {{ server 127.0.0.1:{port} max_conns=1; keepalive 1; }}"
        return cls(directory, server, upstream)

    def start(self) -> None:
        """Start it, again on the same port."""
        self._part.start(lambda: answers(self.port))

    def stop(self) -> None:
        """Stop it, so that its port refuses connections."""
        self._part.stop()

    def requests(self) -> list[Requested]:
        """Return its logged requests; a request is logged after its answer."""
        lines = _LINE.finditer(self._log.read_text())
        return [Requested(m[1], m[2], int(m[3]), "" if m[4] == "-" else m[4]) for m in lines]
