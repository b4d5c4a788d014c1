"""Proxies between a server and its registries: Debian's tinyproxy and squid."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.support.parts.programs import Part, answers, free_port, run

_TINYPROXY = """
Port {port}
Listen 127.0.0.1
Timeout 60
MaxClients 100
LogFile "{directory}/requests"
LogLevel Connect
Allow 127.0.0.1
{user}
"""

_SQUID = """
http_port 127.0.0.1:{port}
visible_hostname tests
pid_filename none
cache deny all
logformat line %rm %ru %>Hs
access_log stdio:{directory}/requests logformat=line
cache_log {directory}/cache.log
hosts_file {directory}/hosts
dns_nameservers 127.0.0.1
dns_timeout 1 second
shutdown_lifetime 0 seconds
coredump_dir {directory}
{user}
http_access allow all
"""

_SQUID_USERS = """
auth_param basic program /usr/lib/squid/basic_ncsa_auth {directory}/users
auth_param basic realm tests
acl known proxy_auth REQUIRED
http_access deny !known
"""


class Proxy:
    """A running proxy; `url` is where it is, with `user` (``name:password``) if it asks for one."""

    _line = ""
    """How its log has a request."""

    def __init__(self, directory: Path, config: str, program: str, user: str | None) -> None:
        self.directory = directory
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{user}@{self.host}" if user else f"http://{self.host}"
        path = directory / "proxy.conf"
        path.write_text(config.format(port=self.port, directory=directory))
        flags = ["-d", "-c"] if program == "tinyproxy" else ["-N", "-f"]
        self._part = Part([program, *flags, path], directory)

    def start(self) -> None:
        """Start it, or start it again on the same port."""
        self._part.start(lambda: answers(self.port))

    def stop(self) -> None:
        """End it; its port refuses connections from now."""
        self._part.stop()

    def requests(self) -> list[str]:
        """Return what its log has of requests: a method and a target each."""
        path = self.directory / "requests"
        text = path.read_text() if path.exists() else ""
        return re.findall(self._line, text, re.MULTILINE)


class Tinyproxy(Proxy):
    """A running tinyproxy, which resolves names as the system does."""

    _line = r": Request \(file descriptor [0-9]+\): (\S+ \S+)"

    def __init__(self, directory: Path, user: str | None = None) -> None:
        line = "BasicAuth " + user.replace(":", " ", 1) if user else ""
        super().__init__(directory, _TINYPROXY.replace("{user}", line), "tinyproxy", user)


class Squid(Proxy):
    """A running squid that knows the addresses of `hosts`, and asks a name server that is none."""

    _line = r"^([A-Z]+ \S+) [0-9]+$"

    def __init__(
        self, directory: Path, user: str | None = None, hosts: Mapping[str, str] = {}
    ) -> None:
        users = ""
        if user:
            name, _, password = user.partition(":")
            (directory / "users").write_text(run(["htpasswd", "-Bbn", name, password], directory))
            users = _SQUID_USERS
        lines = [f"{address} {name}\n" for name, address in hosts.items()]
        (directory / "hosts").write_text("".join(lines))
        super().__init__(directory, _SQUID.replace("{user}", users), "squid", user)
