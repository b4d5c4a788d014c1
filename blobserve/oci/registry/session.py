"""The session: one registry as we stand with it.

Whether it speaks TLS, who we are to it, how patient we still are, and what is under way. Turns a
path into an answer, over as many requests as that takes. Knows nothing of manifests and blobs.
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
    """See `Registry` for the parameters."""

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
        # TLS is tried first even on loopback; once anything has answered there is no going back.
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
        """Where the registry itself is: what comes from elsewhere does not speak for it."""
        return Origin.of(self._base)

    @property
    def _base(self) -> str:
        return f"{self._scheme}://{self._authority}"

    async def run(self, attempt: Callable[[], Awaitable[T]], tries: int = TRIES) -> T:
        """What `attempt` returns, tried again for as long as that makes sense. See `RetryPolicy`.

        :raises StoreClosed: when `close` was called, before or meanwhile.
        """
        return await self.until_closed(self._patience.persist(attempt, tries))

    async def until_closed(self, work: Coroutine[Deferred[Any], Any, T]) -> T:
        """Do what `close` will end."""
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
        """Let what uses this go on to its end, and keep no connection beyond that."""
        self._client.retire()

    async def close(self) -> None:
        """End everything at once, connections included."""
        self._is_closed = True
        for running in list(self._running):
            running.cancel()
        await self._client.close()

    async def ask(self, repository: Repository, request: Request) -> Response:
        """The registry's answer to us, whoever we have to be. The request's URL is a path.

        :raises Transient: for one that says nothing about what was asked for, or none.
        """
        authorization = await self._login.unasked(repository)
        response = await self._send(request, authorization)
        for _ in range(_LOGINS):
            if response.status != 401 or response.origin != self.origin:
                break
            await response.error_code()  # frees the connection; the code is kept for the log
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
        """Return the error for an answer that is no success, and says so for good."""
        status = response.status
        if response.origin == self.origin:
            if status in (401, 403):
                values = response.values("www-authenticate")
                reason = await self._login.why_refused(repository, status, values)
                return RegistryRefused(str(repository), reason)
            # Servers that expect TLS say so, RFC 9110 §15.5.1, and each in words of its own.
            if status == 400 and self._scheme == "http" and await response.names_tls():
                return self._failed(f"it speaks TLS; {self._client.without_insecure}")
        problem = response.said(f"it answered {status}")
        is_upgraded = self._scheme == "http" and response.origin.scheme == "https"
        if is_upgraded and response.origin.host == self.origin.host:
            problem = f"it redirects to https, and answered {status} there"
            problem += f"; {self._client.without_insecure}"
        return self._failed(problem)

    def _failed(self, problem: str) -> RegistryFailed:
        return RegistryFailed(self._name, problem)

    async def ask_storage(self, request: Request) -> Response:
        """The answer of where the registry has sent us before; the request's URL is whole.

        :raises Transient: for one that says nothing about what was asked for, or none.
        """
        response = await self._client.ask(request)
        await response.unless_transient()
        return response

    async def _send(self, request: Request, authorization: str | None) -> Response:
        request = attrs.evolve(request, authorization=authorization)
        try:
            response = await self._client.ask(self._placed(request, self._scheme))
        except NoTls as failure:
            is_plain = self._may_lack_tls or self._scheme == "http"  # found out by another request
            if failure.host != self.origin.host or not is_plain:
                raise
            response = await self._client.ask(self._placed(request, "http"))
            self._scheme = "http"  # now that it has answered
        self._may_lack_tls = False
        return response

    def _placed(self, request: Request, scheme: str) -> Request:
        return attrs.evolve(request, url=f"{scheme}://{self._authority}{request.url}")
