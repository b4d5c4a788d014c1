"""A thousand clients that request one cold image at once, and the effect on other clients."""

from __future__ import annotations

import random
import selectors
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

import pytest

from blobserve.config import MIB
from tests.faults.soak import Probe
from tests.support.parts.images import Image
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Server
from tests.support.parts.wire import NotWhole, Reply

CROWD = 1000
QUIET = 2.0
LARGE = 96 * MIB
"""Large enough that the pull of the image takes longer than the requests."""


class Crowd:
    """Clients of one process, each on its own connection."""

    def __init__(self, clients: list[socket.socket]) -> None:
        self._clients = clients

    @classmethod
    @contextmanager
    def of(cls, port: int, count: int) -> Iterator[Crowd]:
        """Connect this number of clients."""
        with ExitStack() as stack:
            yield cls(
                [
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), 60))
                    for _ in range(count)
                ]
            )

    def ask(self, target: str) -> Counter[tuple[int, bytes]]:
        """Let each client send the same request; count the answers by status and body."""
        answers: Counter[tuple[int, bytes]] = Counter()
        with selectors.DefaultSelector() as selector:
            for client in self._clients:
                client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                selector.register(client, selectors.EVENT_READ, bytearray())
            while selector.get_map():
                ready = selector.select(60)
                assert ready, "nobody was told anything for a minute"
                for key, _ in ready:
                    reply = self._read(key)
                    if reply is not None:
                        answers[reply.status, reply.body] += 1
                        selector.unregister(key.fileobj)
        return answers

    @staticmethod
    def _read(key: selectors.SelectorKey) -> Reply | None:
        assert isinstance(key.fileobj, socket.socket)
        more = key.fileobj.recv(1 << 20)
        assert more, "a connection ended before its answer had"
        key.data.extend(more)
        try:
            return Reply.read(bytes(key.data))
        except NotWhole:
            return None


@pytest.mark.usefixtures("many_files")
def test_hot_files_while_a_thousand_wait_for_one_image(
    docker_registry: DockerRegistry,
    tmp_path: Path,
    running: Callable[[Server], Server],
    measured: Callable[..., None],
) -> None:
    """A thousand clients of a cold image are answered, and a hot file is served meanwhile."""
    script = b"run();" * 3000
    cold = {"app.js": script, "large.bin": random.Random(1).randbytes(MIB) * (LARGE // MIB)}
    docker_registry.put(Image.of(cold), "team/cold:v1")
    docker_registry.put(Image.of({"app.js": script}), "team/hot:v1")
    host = docker_registry.host
    own = {"repos": {f"{host}/team/*": {}}, "registries": {host: {"insecure": True}}}
    own["timeout"] = "60s"
    server = running(Server(tmp_path, own, {"accessLog": {"format": "off"}}))
    hot = f"/{host}/team/hot:v1/app.js"
    assert server.fetch(hot).body == script
    quiet = Probe(script, server.url + hot)
    Event().wait(QUIET)
    [before] = quiet.stop()
    with Crowd.of(server.port, CROWD) as crowd:
        probe = Probe(script, server.url + hot)
        Event().wait(0.5)  # until the probe sends requests
        answers = crowd.ask(f"/{host}/team/cold:v1/app.js")
        [meanwhile] = probe.stop()
    usual, worst = (round(1000 * each["worst"], 1) for each in (before, meanwhile))
    figure = (
        f"while {CROWD} clients wait for one image and get it, a hot file takes {worst} ms"
        f" at worst; when all is quiet, {usual}"
    )
    measured(figure=figure)
    assert answers == {(200, script): CROWD}
    assert before["wrong"] == before["failed"] == meanwhile["wrong"] == meanwhile["failed"] == 0
    assert meanwhile["right"] > 0
