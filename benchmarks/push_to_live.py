"""From a push to the first new byte, with a webhook, against a cold pull of the same layer.

Run in the checkout as ``python -m benchmarks.push_to_live [ROUNDS]``, with the test extra and
docker-registry installed. Each round pushes an image with a new layer. One server serves its tag
and gets the registry's notification; its time runs from the registry's 201 to the manifest until
the first byte of a new response. Another server, which has never seen the layer, pulls it because
of a request; its time runs from the request. The two take turns to be first.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from tests.support.parts.images import Image
from tests.support.parts.programs import free_port, own_directory
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Server

UNPACKED, FILES = 50_000_000, 700
SECRET = "of the benchmark"
P50, P95, RATIO = 0.6, 1.2, 1.3

_POLL = 0.01
"""Seconds between the end of a response and the next request."""

_PATIENCE = 60.0
_REPOSITORY = "bench/site"


@attrs.frozen
class Round:
    """The seconds of one round."""

    live: float
    cold: float


def application(number: int, size: int = UNPACKED) -> Image:
    """Return an image of one gzip layer with scripts, different for each number."""
    chance = random.Random(number)
    words = ["".join(chance.choices("abcdefghijklmnoprstuvw", k=6)) for _ in range(600)]
    lines = [" ".join(chance.choices(words, k=6)).encode() + b";\n" for _ in range(1_000)]
    each = max(1, size // FILES // 43)
    files = {f"a/{file}.js": b"".join(chance.choices(lines, k=each)) for file in range(FILES)}
    return Image.of({"number": str(number).encode(), **files})


def notifying(port: int) -> Mapping[str, object]:
    """Return the settings of a registry that posts its notifications to this port."""
    endpoint = {
        "name": "blobserve",
        "url": f"http://127.0.0.1:{port}/hooks",
        "headers": {"Authorization": [f"Bearer {SECRET}"]},
        "timeout": "2s",
        "threshold": 5,
        "backoff": "1s",
    }
    return {"notifications": {"endpoints": [endpoint]}}


@contextmanager
def parts(home: Path) -> Iterator[tuple[DockerRegistry, Server, Server]]:
    """Run a registry, the server that it notifies, and a server for cold pulls."""
    port, secret = free_port(), home / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    registry = DockerRegistry(home, notifying(port))
    hooks = {"listen": f"tcp:{port}:interface=127.0.0.1", "secretFile": str(secret)}
    own = {"timeout": "1m", "repos": {f"{registry.host}/{_REPOSITORY}": {"tagMaxAge": "24h"}}}
    servers = []
    for name, more in (("live", {"webhooks": hooks}), ("cold", {})):
        (home / name).mkdir()
        servers.append(Server(home / name, {**own, **more}))
    started = (registry, *servers)
    try:
        for each in started:
            each.start()
        live, cold = servers
        yield registry, live, cold
    finally:
        for each in started:
            each.stop()


def fetched(server: Server, target: str) -> bytes:
    """Return the body of a response, over a connection of its own."""
    answer = server.fetch(target)
    if answer.status != 200:
        raise SystemExit(f"the server answered {answer.status}, see {server.output}")
    return answer.body


def until_live(server: Server, target: str, number: int) -> float:
    """Return the time when the first byte of the new file came."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_PATIENCE)
    end = time.perf_counter() + _PATIENCE
    try:
        while time.perf_counter() < end:
            connection.request("GET", target)
            response = connection.getresponse()
            now = time.perf_counter()
            if response.read() == str(number).encode():
                return now
            time.sleep(_POLL)
    finally:
        connection.close()
    raise SystemExit(f"image {number} was not live in time, see {server.output}")


def measured(
    registry: DockerRegistry, live: Server, cold: Server, number: int, size: int = UNPACKED
) -> Round:
    """Push an image, and measure both sides."""
    image = application(number, size)
    for blob in image.blobs:
        registry.put_blob(_REPOSITORY, blob)
    registry.put_manifest(_REPOSITORY, f"r{number}", image)
    place = f"/{registry.host}/{_REPOSITORY}"
    times = {}
    for side in ("live", "cold") if number % 2 else ("cold", "live"):
        os.sync()
        if side == "live":
            registry.put_manifest(_REPOSITORY, "live", image)
            begun = time.perf_counter()
            times[side] = until_live(live, f"{place}:live/number", number) - begun
        else:
            begun = time.perf_counter()
            fetched(cold, f"{place}:r{number}/number")
            times[side] = time.perf_counter() - begun
    return Round(times["live"], times["cold"])


def main(rounds: int) -> None:
    """Measure, and print the figures beside their targets."""
    found = []
    with own_directory() as home, parts(home) as (registry, live, cold):
        registry.put(application(0, 50_000), f"{_REPOSITORY}:live")
        for server in (live, cold):
            fetched(server, f"/{registry.host}/{_REPOSITORY}:live/number")
        for number in range(1, rounds + 1):
            found.append(measured(registry, live, cold, number))
    report(found)


def report(rounds: list[Round]) -> None:
    """Print the figures."""
    live = sorted(each.live for each in rounds)
    cold = sorted(each.cold for each in rounds)
    p95 = live[min(len(live) - 1, int(0.95 * len(live)))]
    ratio = statistics.median(each.live / each.cold for each in rounds)
    load = os.getloadavg()[0]
    print(
        f"one gzip layer of {UNPACKED / 1e6:.0f} MB unpacked, {len(rounds)} rounds; load {load:.1f}"
    )
    print(f"{'':40}{'figure':>10}{'target':>10}")
    print(f"{'push to live, p50, seconds':40}{statistics.median(live):10.3f}{P50:10.1f}")
    print(f"{'push to live, p95, seconds':40}{p95:10.3f}{P95:10.1f}")
    print(f"{'push to live / cold pull, median':40}{ratio:10.2f}{RATIO:10.1f}")
    print(f"{'cold pull, p50, seconds':40}{statistics.median(cold):10.3f}{'':>10}")
    print(json.dumps([attrs.asdict(each) for each in rounds]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.push_to_live")
    parser.add_argument("rounds", type=int, nargs="?", default=20)
    main(parser.parse_args().rounds)
