"""Behaviours of registries that blobserve relies on, each tried through a blobserve process."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from tests.interop.registries import Kind
from tests.interop.relay import Relay
from tests.support.parts.images import Image, Index, Layer
from tests.support.parts.programs import own_directory
from tests.support.parts.registry import Registry, htpasswd
from tests.support.parts.server import Response, Server
from tests.support.parts.tokens import TokenEndpoint
from tests.support.slack import SLACK

PAGE, NEXT_PAGE = b"<h1>one</h1>", b"<h1>two</h1>"
LARGE = random.Random(20).randbytes(20_000_000)
IMAGE = Image.of({"index.html": PAGE})
USER = "reader:correct horse"
PATIENCE = 30.0 * SLACK
"""The time in seconds in which a change must show."""


@attrs.frozen
class Bench:
    """A registry, a relay in front of it, and blobserve behind the relay."""

    registry: Registry
    relay: Relay
    server: Server
    credentials: Path

    def get(self, name: str, **headers: str) -> Response:
        """Return the answer for an image and a path, such as ``team/site:v1/index.html``."""
        return self.server.fetch(f"/{self.relay.host}/{name}", headers=headers)

    def log_in(self, user: str) -> None:
        """Give blobserve the credentials ``name:password``, or none if `user` is empty."""
        entry = {"auth": base64.b64encode(user.encode()).decode()}
        self.credentials.write_text(json.dumps({"auths": {self.relay.host: entry} if user else {}}))

    def wait_for(self, name: str, status: int, body: bytes | None = None) -> None:
        """Repeat a request until its answer has this status and body, for a bounded time."""
        end = time.monotonic() + PATIENCE
        while True:
            answer = self.get(name)
            if answer.status == status and body in (None, answer.body):
                return
            assert time.monotonic() < end, f"status {answer.status}: {answer.body[:200]!r}"

    def blobs_asked(self, repository: str, digest: str) -> list[tuple[str, str]]:
        """Return the method and range of every request for a blob."""
        target = f"/v2/{repository}/blobs/{digest}"
        return [(each.method, each.range) for each in self.relay.asked if each.target == target]


@contextmanager
def bench(
    kind: Kind,
    rules: Mapping[str, object] = {},
    settings: Callable[[Path], Mapping[str, object]] = lambda directory: {},
    user: str | None = None,
    allowed: str | None = None,
) -> Iterator[Bench]:
    """Start a registry, a relay and blobserve.

    :param rules: rules of all repositories.
    :param settings: returns settings of the registry for its directory.
    :param user: the ``name:password`` that the registry asks for.
    :param allowed: a host to which the registry may send blobserve.
    """
    with ExitStack() as stack:
        home, directory = (stack.enter_context(own_directory()) for _ in range(2))
        registry = kind.make(directory, settings(directory), user)
        stack.callback(registry.stop)
        registry.start()
        relay = Relay(registry.port)
        stack.callback(relay.stop)
        relay.start()
        credentials = home / "credentials.json"
        credentials.write_text("{}")
        config = {
            "timeout": "60s",
            "repos": {f"{relay.host}/*": {"tagMaxAge": "0s", **rules}},
            "registries": {
                relay.host: {"insecure": True, "allowHosts": [allowed] if allowed else []}
            },
        }
        server = Server(home, config, {"dockerAuth": str(credentials)})
        stack.callback(server.stop)
        server.start()
        yield Bench(registry, relay, server, credentials)


@attrs.frozen
class Behaviour:
    """One row of the table."""

    name: str
    check: Callable[[Kind], None]
    needs_authentication: bool = False


def _tag(kind: Kind) -> None:
    with bench(kind) as at:
        at.registry.push(IMAGE, "team/site:v1")
        answer = at.get("team/site:v1/")
        assert (answer.status, answer.body) == (200, PAGE)


def _digest(kind: Kind) -> None:
    with bench(kind) as at:
        digest = at.registry.push(IMAGE, "team/site:v1")
        answer = at.get(f"team/site@{digest}/")
        assert (answer.status, answer.body) == (200, PAGE)
        assert "immutable" in answer.headers["Cache-Control"]
        assert {each.target for each in at.relay.asked if "/manifests/" in each.target} == {
            f"/v2/team/site/manifests/{digest}"
        }


def _index(kind: Kind) -> None:
    both = {name: Image.of({"index.html": name.encode()}, platform=name) for name in PLATFORMS}
    with bench(kind, {"platform": PLATFORMS[1]}) as at:
        at.registry.push(Index(tuple(both.values())), "team/site:v1")
        answer = at.get("team/site:v1/")
        assert (answer.status, answer.body) == (200, PLATFORMS[1].encode())


PLATFORMS = ("linux/amd64", "linux/arm64")


def _docker(kind: Kind) -> None:
    with bench(kind) as at:
        at.registry.put(Image.of({"index.html": PAGE}, docker=True), "team/site:v1")
        answer = at.get("team/site:v1/")
        assert (answer.status, answer.body) == (200, PAGE)


def _head_of_tag(kind: Kind) -> None:
    with bench(kind) as at:
        at.registry.push(IMAGE, "team/site:v1")
        at.get("team/site:v1/")
        before = len(at.relay.asked)
        assert at.get("team/site:v1/").body == PAGE
        later = [(each.method, each.target) for each in at.relay.asked[before:]]
        assert later == [("HEAD", "/v2/team/site/manifests/v1")], later


def _head_of_blob(kind: Kind) -> None:
    shared, other = IMAGE.layers[0], Layer.of({"other.html": b"another layer"})
    with bench(kind) as at:
        at.registry.push(IMAGE, "team/site:v1")
        at.registry.push(Image((shared, other)), "team/other:v1")
        for repository in ("team/site", "team/other"):
            assert at.get(f"{repository}:v1/").body == PAGE
        assert at.blobs_asked("team/other", shared.digest) == [("HEAD", "")]


def _resumed(kind: Kind) -> None:
    image = Image.of({"large.bin": LARGE}, "none")
    layer = image.layers[0]
    with bench(kind) as at:
        at.registry.push(image, "team/site:v1")
        at.relay.cut_next_blob(5_000_000)
        answer = at.get("team/site:v1/large.bin")
        assert (answer.status, answer.body == LARGE) == (200, True)
        (_, whole), (_, rest) = at.blobs_asked("team/site", layer.digest)
        first, last = map(int, rest.removeprefix("bytes=").split("-"))
        assert whole == ""
        assert 0 < first < 5_000_000
        assert last == len(layer.blob) - 1


def _moved(kind: Kind) -> None:
    with bench(kind) as at:
        old = at.registry.push(IMAGE, "team/site:v1")
        at.wait_for("team/site:v1/", 200, PAGE)
        at.registry.push(Image.of({"index.html": NEXT_PAGE}), "team/site:v1")
        at.wait_for("team/site:v1/", 200, NEXT_PAGE)
        at.wait_for(f"team/site@{old}/", 200, PAGE)


def _missing_tag(kind: Kind) -> None:
    with bench(kind) as at:
        assert at.get("team/none:v1/").status == 404
        at.registry.push(IMAGE, "team/site:v1")
        assert at.get("team/site:v2/").status == 404
        assert at.get(f"team/site@sha256:{'0' * 64}/").status == 404
        at.registry.push(IMAGE, "team/site:v2")
        at.wait_for("team/site:v2/", 200, PAGE)


def _missing_blob(kind: Kind) -> None:
    with bench(kind) as at:
        at.registry.push(IMAGE, "team/site:v1")
        at.registry.blob_file(IMAGE.layers[0].digest).unlink()
        assert at.get("team/site:v1/").status == 404
        at.registry.push(Image.of({"index.html": NEXT_PAGE}), "team/site:v1")
        at.wait_for("team/site:v1/", 200, NEXT_PAGE)


def _stopped(kind: Kind) -> None:
    with bench(kind) as at:
        digest = at.registry.push(IMAGE, "team/site:v1")
        at.wait_for("team/site:v1/", 200, PAGE)
        at.registry.stop()
        at.wait_for("team/site:v1/", 200, PAGE)
        at.wait_for(f"team/site@{digest}/", 200, PAGE)


def _password(kind: Kind) -> None:
    with bench(kind, settings=lambda directory: htpasswd(directory, USER), user=USER) as at:
        _admits_the_right_user(at)


def _token(kind: Kind) -> None:
    with own_directory() as directory, ExitStack() as stack:
        endpoint = TokenEndpoint(directory, USER)
        endpoint.start()
        stack.callback(endpoint.stop)
        settings = endpoint.settings
        with bench(kind, settings=lambda _: settings, user=USER, allowed=endpoint.host) as at:
            _admits_the_right_user(at)


def _admits_the_right_user(at: Bench) -> None:
    at.registry.push(IMAGE, "team/site:v1")
    for wrong in ("", "reader:wrong"):
        at.log_in(wrong)
        answer = at.get("team/site:v1/")
        assert answer.status == 502, f"without the password the status is {answer.status}"
    at.log_in(USER)
    at.wait_for("team/site:v1/", 200, PAGE)


BEHAVIOURS = (
    Behaviour("pull by tag", _tag),
    Behaviour("pull by digest", _digest),
    Behaviour("index with two platforms", _index),
    Behaviour("Docker media types", _docker),
    Behaviour("`HEAD` of a tag revalidates it", _head_of_tag),
    Behaviour("`HEAD` of a layer proves it to a second repository", _head_of_blob),
    Behaviour("interrupted layer of 20 MB continues by a range", _resumed),
    Behaviour("moved tag", _moved),
    Behaviour("missing repository, tag and digest", _missing_tag),
    Behaviour("missing layer", _missing_blob),
    Behaviour("stopped registry", _stopped),
    Behaviour("password", _password, needs_authentication=True),
    Behaviour("signed token", _token, needs_authentication=True),
)
