"""The servers with their configurations: blobserve, and the servers that it is compared with.

All serve the same files at the same targets. benchmarks/README.md lists all settings that are not
defaults.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import attrs

from benchmarks.warm.cases import REPOSITORY
from benchmarks.warm.process import Process, found, program
from tests.support.parts.server import ROOT as CHECKOUT
from tests.support.parts.server import Server

_LEAST_LINE, _WAITING = 60, 256 * 1024
"""The least bytes of a line in an access log, and the most bytes of unwritten lines."""

PACKAGES = {"nginx": "nginx", "caddy": "caddy", "go": "golang-go", "wrk": "wrk"}
"""The apt package of each foreign program."""


class Running(Protocol):
    """A started server."""

    port: int

    @property
    def pid(self) -> int:
        """Return the id of its first process."""

    def stop(self) -> object:
        """End it."""


@attrs.frozen
class Files:
    """The served files: in the directory `tree`, and as an image in the OCI layout `layout`."""

    tree: Path
    layout: Path


@attrs.frozen
class Peer:
    """A running server, with or without an access log. `label` is its name in the table."""

    name: str
    log: Path | None
    running: Running

    @property
    def label(self) -> str:
        """See the class."""
        return self.name if self.log or self.name != "go" else "go, no log"

    @property
    def host(self) -> str:
        """Return its address as in a Host header."""
        return f"127.0.0.1:{self.running.port}"

    def forget_log(self) -> None:
        """Empty its access log; the server keeps appending to it."""
        if self.log is not None and self.log.exists():
            os.truncate(self.log, 0)

    def has_logged(self, requests: float) -> bool:
        """Return whether its log has about the expected size, except lines still in memory."""
        expected = _LEAST_LINE * requests - _WAITING
        return self.log is None or expected <= 0 or self.log.stat().st_size >= expected


def blobserve(
    directory: Path, files: Files, log: Path | None, checkout: Path = CHECKOUT
) -> Running:
    """Start `twist blobserve` with its defaults, on an image with a tag that stays trusted."""
    rules = {"source": f"oci:{files.layout}", "prePull": ["v1"], "tagMaxAge": "24h"}
    access_log = {"format": "text", "file": str(log)} if log else {"format": "off"}
    repos = {"repos": {REPOSITORY: rules}}
    server = Server(directory, repos, {"accessLog": access_log}, checkout=checkout)
    server.start()
    return server


def twisted(directory: Path, files: Files, log: Path | None) -> Running:
    """Start a `Site` with one leaf `Resource`: see `benchmarks/peers/bare.py`."""
    process = Process(directory)
    program = CHECKOUT / "benchmarks/peers/bare.py"
    process.run([sys.executable, program, str(process.port), files.tree, *([log] if log else [])])
    return process


_NGINX = """
{user}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
    types {{ image/png png; text/javascript js; }}
    access_log {log};
    sendfile on;
    tcp_nopush on;
    etag on;
    open_file_cache off;
    keepalive_requests 1000000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {tree};
        location ~ \\.js$ {{ gzip_static on; gzip_vary on; }}
    }}
}}
"""


def nginx(directory: Path, files: Files, log: Path | None) -> Running:
    """Start nginx with one worker and `sendfile`; scripts are compressed before by `gzip`."""
    process = Process(directory)
    configured = directory / "nginx.conf"
    configured.write_text(
        _NGINX.format(
            # The worker must be able to read the directory of the current user.
            user="user root;" if os.geteuid() == 0 else "",
            log=f"{log} combined buffer=64k flush=1s" if log else "off",
            port=process.port,
            tree=files.tree,
        )
    )
    process.run([program("nginx"), "-p", directory, "-e", "error.log", "-c", configured])
    return process


_CADDY = """
{{
    admin off
    auto_https off
}}
http://127.0.0.1:{port} {{
    bind 127.0.0.1
    root * {tree}
    @text path *.js
    encode @text zstd gzip
    file_server
    {log}
}}
"""


def caddy(directory: Path, files: Files, log: Path | None) -> Running:
    """Start Caddy's `file_server`, which compresses scripts at each request."""
    process = Process(directory)
    configured = directory / "Caddyfile"
    line = f"log {{\n output file {log} {{\n roll_disabled\n }}\n }}" if log else ""
    configured.write_text(_CADDY.format(port=process.port, tree=files.tree, log=line))
    process.run(
        [program("caddy"), "run", "--config", configured, "--adapter", "caddyfile"],
        {"GOMAXPROCS": "1", "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)},
    )
    return process


def go(directory: Path, files: Files, log: Path | None) -> Running:
    """Start Go's `http.FileServer`: see `benchmarks/peers/fileserver.go`."""
    process = Process(directory)
    server = built(CHECKOUT / "benchmarks/peers/fileserver.go", directory)
    address = f"127.0.0.1:{process.port}"
    logging = ("-log", str(log)) if log else ()
    process.run([server, "-address", address, "-root", files.tree, *logging], {"GOMAXPROCS": "1"})
    return process


def built(source: Path, directory: Path) -> Path:
    """Build the Go program `source`, and return its path."""
    made = directory / source.stem
    command = [str(each) for each in (program("go"), "build", "-o", made, source)]
    subprocess.run(command, cwd=directory, env={**os.environ, "GO111MODULE": "off"}, check=True)
    return made


SERVERS: dict[str, Callable[[Path, Files, Path | None], Running]] = {
    "blobserve": blobserve,
    "twisted": twisted,
    "nginx": nginx,
    "caddy": caddy,
    "go": go,
}


BEFORE = "before"
"""The label of another build of blobserve; see `add_build`."""


def add_build(checkout: Path) -> None:
    """Add the build in `checkout` as the server `BEFORE`."""
    SERVERS[BEFORE] = partial(blobserve, checkout=checkout)


def is_installed(name: str) -> bool:
    """Return whether the server `name` is installed."""
    return name not in PACKAGES or found(name) is not None


def start(name: str, home: Path, files: Files, *, logs: bool) -> Peer:
    """Start the server `name` with a directory of its own below `home`."""
    directory = home / f"{name}{'-log' if logs else ''}"
    directory.mkdir()
    log = directory / "access.log" if logs else None
    return Peer(name, log, SERVERS[name](directory, files, log))
