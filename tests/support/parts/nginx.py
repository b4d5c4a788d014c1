"""nginx, as the CDN in front of a registry's storage, or with any server block of a test's own."""

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
    """A running nginx whose only server block holds the directives `server`, and `http` before it.

    `proxying` has it pass everything on.
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
        """One that keeps a single connection to the server at this port of loopback, for all."""
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
        """Start it, or start it again on the same port."""
        self._part.start(lambda: answers(self.port))

    def stop(self) -> None:
        """End it; its port refuses connections from now."""
        self._part.stop()

    def requests(self) -> list[Requested]:
        """What was asked of it; a request is logged when its answer has been sent."""
        lines = _LINE.finditer(self._log.read_text())
        return [Requested(m[1], m[2], int(m[3]), "" if m[4] == "-" else m[4]) for m in lines]
