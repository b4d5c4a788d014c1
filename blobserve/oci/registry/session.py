"""The session with one registry: TLS, authorization, retries, running requests.

`Session.ask` sends a request, and answers at most `_LOGINS` challenges. `Session.run` retries
transient failures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred

from blobserve.concurrency.threads import Threads
from blobserve.config import Limits, RegistryRules
from blobserve.errors import BlobserveError, RegistryFailed, RegistryRefused, StoreClosed
from blobserve.metrics import Metrics
from blobserve.names.host import is_loopback_name
from blobserve.names.reference import DOCKER_HUB, Repository
from blobserve.oci.credentials.keychain import Credentials
from blobserve.oci.http.address_rules import AddressRules, Origin
from blobserve.oci.http.client import Client, NoTls
from blobserve.oci.http.endpoints import Endpoints, Routes
from blobserve.oci.http.response import Request, Response
from blobserve.oci.http.retry import TRIES, RetryPolicy
from blobserve.oci.registry.authorizer import Authorizer
from blobserve.oci.registry.token_cache import TokenCache

T = TypeVar("T")

_HUB_HOST = "registry-1.docker.io"
_LOGINS = 2


class Session:
    """A session with one registry. See `Registry` for the parameters."""

    def __init__(
        self,
        reactor: Any,
        host: str,
        rules: RegistryRules,
        credentials: Credentials | None,
        may_be_private: bool,
        threads: Threads,
        routes: Routes,
        limits: Limits,
        metrics: Metrics,
        user_agent: str,
    ) -> None:
        self._name = host
        self._authority = _HUB_HOST if host == DOCKER_HUB else host
        self._scheme = "http" if rules.insecure else "https"
        # Without `insecure`, TLS is tried first, even on loopback. The first response decides.
        is_loopback = is_loopback_name(self.origin.host)
        self._may_lack_tls = is_loopback and may_be_private and rules.ca is None
        allowed = {each.lower() for each in rules.allow_hosts}
        named = frozenset({host, self._authority} | allowed)
        addresses = AddressRules(host, named, rules.insecure, not may_be_private)
        setting = f'registries."{host}".proxy'
        proxies = routes.proxies.configured(rules.proxy, setting)
        routes = attrs.evolve(routes, proxies=proxies)
        endpoints = Endpoints(reactor, addresses, rules.ca, threads, routes, limits.connect_timeout)
        self._client = Client(
            reactor, addresses, endpoints, limits, metrics, user_agent, self._authority
        )
        self._patience = RetryPolicy(reactor, host)
        tokens = TokenCache(self._client, RetryPolicy(reactor, host), reactor, limits)
        self._login = Authorizer(tokens, credentials)
        self._running: set[Deferred[Any]] = set()
        self._is_closed = False

    @property
    def origin(self) -> Origin:
        """The origin of the registry itself. Other origins cannot refuse in its name."""
        return Origin.of(self._base)

    @property
    def _base(self) -> str:
        return f"{self._scheme}://{self._authority}"

    async def run(self, attempt: Callable[[], Awaitable[T]], tries: int = TRIES) -> T:
        """Return the result of `attempt`, with retries. See `RetryPolicy`.

        :raises StoreClosed: when `close` was called, before or during the work.
        """
        return await self.until_closed(self._patience.persist(attempt, tries))

    async def until_closed(self, work: Coroutine[Deferred[Any], Any, T]) -> T:
        """Run work that `close` cancels."""
        if self._is_closed:
            work.close()
            raise StoreClosed
        running = Deferred.fromCoroutine(work)
        self._running.add(running)
        try:
            return await running
        except CancelledError:
            if self._is_closed:
                raise StoreClosed from None
            raise
        finally:
            self._running.discard(running)

    def retire(self) -> None:
        """Let running work continue, and keep no idle connections after it."""
        self._client.retire()

    async def close(self) -> None:
        """Cancel running work, and close all connections."""
        self._is_closed = True
        for running in list(self._running):
            running.cancel()
        await self._client.close()

    async def ask(self, repository: Repository, request: Request) -> Response:
        """Return the response of the registry, with authorization. The request's URL is a path.

        :raises Transient: for a transient status, or no response.
        """
        authorization = await self._login.unasked(repository)
        response = await self._send(request, authorization)
        for _ in range(_LOGINS):
            if response.status != 401 or response.origin != self.origin:
                break
            await response.error_code()  # Frees the connection; the code stays for the log.
            challenges = response.values("www-authenticate")
            url = self._base + request.url
            answer = await self._login.answer(repository, url, challenges, authorization)
            if answer is None or answer == authorization:
                break
            authorization = answer
            response = await self._send(request, authorization)
        await response.unless_transient()
        self._patience.answered(response.origin.host)
        return response

    async def refusal(self, repository: Repository, response: Response) -> BlobserveError:
        """Return the error for a response with a permanent failure."""
        status = response.status
        if response.origin == self.origin:
            if status in (401, 403):
                values = response.values("www-authenticate")
                reason = await self._login.why_refused(repository, status, values)
                return RegistryRefused(str(repository), reason)
            # Servers that expect TLS answer 400 to plain HTTP, each with its own text.
            if status == 400 and self._scheme == "http" and await response.names_tls():
                return self._failed(f"it speaks TLS; {self._client.without_insecure}")
        problem = response.located(f"it answered {status}")
        is_upgraded = self._scheme == "http" and response.origin.scheme == "https"
        if is_upgraded and response.origin.host == self.origin.host:
            problem = f"it redirects to https, and answered {status} there"
            problem += f"; {self._client.without_insecure}"
        return self._failed(problem)

    def _failed(self, problem: str) -> RegistryFailed:
        return RegistryFailed(self._name, problem)

    async def ask_storage(self, request: Request) -> Response:
        """Return the response for an absolute URL, to which the registry redirected before.

        :raises Transient: for a transient status, or no response.
        """
        response = await self._client.ask(request)
        await response.unless_transient()
        return response

    async def _send(self, request: Request, authorization: str | None) -> Response:
        request = attrs.evolve(request, authorization=authorization)
        try:
            response = await self._client.ask(self._placed(request, self._scheme))
        except NoTls as failure:
            # Another request may have changed the scheme meanwhile.
            is_plain = self._may_lack_tls or self._scheme == "http"
            if failure.host != self.origin.host or not is_plain:
                raise
            response = await self._client.ask(self._placed(request, "http"))
            self._scheme = "http"  # It has answered.
        self._may_lack_tls = False
        return response

    def _placed(self, request: Request, scheme: str) -> Request:
        return attrs.evolve(request, url=f"{scheme}://{self._authority}{request.url}")
