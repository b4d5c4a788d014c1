"""Fixtures that start real programs for one test and stop them after it."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import settings
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IHostnameResolver, IHostResolution
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from tests.faults.campaign import PROPERTY
from tests.support.examples import NAME
from tests.support.parts.browser import Browser
from tests.support.parts.nginx import Nginx
from tests.support.parts.programs import own_directory
from tests.support.parts.registry import DockerRegistry, htpasswd, redirect
from tests.support.parts.server import Server
from tests.support.parts.tokens import TokenEndpoint
from tests.support.sites import LOCATED, Serving, serving
from tests.traps.cases_http import FILES

settings.load_profile(NAME)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each property test as such in the report."""
    for item in items:
        if item.get_closest_marker("hypothesis"):
            item.user_properties.append((PROPERTY, "yes"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Turn a skipped test into a failure where every part is required."""
    report = yield
    if report.skipped and os.environ.get("BLOBSERVE_REQUIRE_PARTS") == "1":
        report.outcome = "failed"
        report.longrepr = f"nothing may skip here: {report.longrepr[2]}"
    return report


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that reports the `cases` of a test and a `figure` that it measured."""

    def tell(**found: object) -> None:
        request.node.user_properties += [(name, str(value)) for name, value in found.items()]

    return tell


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow this process, and the server it starts, a thousand open connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def part_directory() -> Iterator[Callable[[], Path]]:
    """Return a function that makes a directory for a part, writable by the ordinary user."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(own_directory())


@pytest.fixture
def running(part_directory: Any) -> Iterator[Callable[[Any], Any]]:
    """Return a function that starts a part; parts stop before their files are removed."""
    with ExitStack() as stack:

        def run(part: Any) -> Any:
            stack.callback(part.stop)
            part.start()
            return part

        yield run


@pytest.fixture
def docker_registry(part_directory: Any, running: Any) -> DockerRegistry:
    """A docker-registry that needs no authentication."""
    return running(DockerRegistry(part_directory()))


@pytest.fixture
def htpasswd_registry(part_directory: Any, running: Any) -> DockerRegistry:
    """A docker-registry that requires the name and password in its `user`."""
    directory, user = part_directory(), "reader:correct horse"
    return running(DockerRegistry(directory, htpasswd(directory, user), user))


@pytest.fixture
def cdn(part_directory: Any, running: Any) -> Nginx:
    """An nginx that serves the storage of `cdn_registry` and logs each Authorization header."""
    directory = part_directory()
    return running(Nginx(directory, f"root {directory}/storage;"))


@pytest.fixture
def cdn_registry(cdn: Nginx, running: Any) -> DockerRegistry:
    """A docker-registry with a password that redirects blobs to `cdn`."""
    user, directory = "reader:correct horse", cdn.directory
    settings = {**htpasswd(directory, user), **redirect(f"http://{cdn.host}/")}
    return running(DockerRegistry(directory, settings, user))


@pytest.fixture
def token_endpoint(part_directory: Any, running: Any) -> TokenEndpoint:
    """A token endpoint with one user, for `token_registry`."""
    return running(TokenEndpoint(part_directory(), "reader:correct horse"))


@pytest.fixture
def token_registry(
    token_endpoint: TokenEndpoint, part_directory: Any, running: Any
) -> DockerRegistry:
    """A docker-registry that accepts only the tokens of `token_endpoint`."""
    settings = token_endpoint.settings
    return running(DockerRegistry(part_directory(), settings, token_endpoint.user))


@pytest.fixture
def browser(part_directory: Any, running: Any) -> Browser:
    """A headless Chromium with an empty profile."""
    return running(Browser(part_directory()))


@pytest.fixture
def serve(tmp_path: Path, running: Any) -> Callable[..., Server]:
    """Return a function that starts `twist blobserve`; see `Server` for its arguments."""

    def start(config: Any, top: Any = None, directory: Path = tmp_path) -> Server:
        return running(Server(directory, config, top))

    return start


@pytest_twisted.async_yield_fixture(scope="module", params=[True, False], ids=["hot", "parsed"])
async def answering(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Serving]:
    """A site with the files of `tests.traps.cases_http`, with the fast path and without it."""
    directory, hot_path = tmp_path_factory.mktemp("site"), request.param
    async with serving(directory, FILES, hot_path=hot_path, repos=LOCATED) as site:
        yield site


@pytest_twisted.async_yield_fixture(scope="module")
async def taking(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    """A site to which a test can push any layer."""
    async with serving(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test go through a proxy that the environment names."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextmanager
def observed(observer: Callable[[LogEvent], None]) -> Iterator[None]:
    """Show every logged event to `observer` inside the context."""
    globalLogPublisher.addObserver(observer)
    yield
    globalLogPublisher.removeObserver(observer)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """The warnings that were logged, as text."""
    said: list[str] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_level") == LogLevel.warn:
            said.append(formatEvent(event))

    with observed(observe):
        yield said


@pytest.fixture
def failures() -> Iterator[list[type[BaseException]]]:
    """The classes of the failures that were logged."""
    logged: list[type[BaseException]] = []

    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            logged.append(event["log_failure"].type)

    with observed(observe):
        yield logged


@implementer(IHostnameResolver)
class Inward:
    """A resolver that gives a loopback address for `.example`, as an attacker's zone could."""

    def __init__(self, other: IHostnameResolver) -> None:
        self._other = other

    def resolveHostName(
        self, receiver: Any, name: str, port: int = 0, *more: Any, **named: Any
    ) -> IHostResolution:
        """See `IHostnameResolver.resolveHostName`."""
        if not name.endswith(".example"):
            return self._other.resolveHostName(receiver, name, port, *more, **named)
        receiver.resolutionBegan(receiver)
        receiver.addressResolved(IPv4Address("TCP", "127.0.0.1", port))
        receiver.resolutionComplete()
        return receiver


@pytest.fixture
def inward() -> Iterator[None]:
    """Install `Inward` as the resolver of the reactor."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    before = reactor.nameResolver
    reactor.installNameResolver(Inward(before))
    yield
    reactor.installNameResolver(before)
