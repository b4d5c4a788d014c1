"""blobserve inside the program of the page on deploys, which takes orders on a Unix socket."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

from tests.support.followed_page import HOW_TO, blocks
from tests.support.parts.server import Server


class Operated(Server):
    """The program that docs/how-to/deploy.md prints, as a process with its blob space."""

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, object],
        top: Mapping[str, object] | None = None,
    ) -> None:
        page = (HOW_TO / "deploy.md").read_text()
        [program] = [block for block in blocks(page) if block.name == "operate.py"]
        file = directory / program.name
        file.write_text(program.text)
        super().__init__(directory, config, top, twist=[str(file)])

    def order(self, order: str, name: str, digest: str = "") -> str:
        """Give an order; return the answer."""
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self.directory / "orders.sock"))
            fields = urlencode({"name": name, "digest": digest})
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", f"/{order}", fields, form)
            return connection.getresponse().read().decode().strip()
        finally:
            connection.close()
