"""The HTTP client: requests, and redirects by our rules.

No other module uses treq. Secrets of a request go only to the origin of its URL. A response of any
status is returned, not raised.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any
from urllib.parse import urljoin

import attrs
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.web.client import Agent, HTTPConnectionPool, ProxyAgent
from twisted.web.http import PROXY_AUTH_REQUIRED as PROXY_AUTHENTICATION_REQUIRED
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from blobserve.concurrency.fair_queue import a_later_turn
from blobserve.config import Limits
from blobserve.errors import RegistryFailed
from blobserve.metrics import Metrics, status_label
from blobserve.names.proxy import Proxy
from blobserve.oci.http.address_rules import AddressRules, Origin
from blobserve.oci.http.connect_errors import (
    NO_ANSWER,
    is_cancelled,
    is_hung_up,
    is_misnamed,
    is_no_tls,
    is_tls,
    is_untrusted,
    problem_of,
    was_asked,
)
from blobserve.oci.http.connection_pool import ConnectionFactory
from blobserve.oci.http.endpoints import Endpoints
from blobserve.oci.http.response import RENAMED_CODING, Request, Response
from blobserve.oci.http.retry import Transient
from blobserve.oci.http.tunnel import TunnelError, authorization, refusal

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_RAW = re.compile(r"[ \x80-\xff]")  # In a value decoded as Latin-1: one character per byte.
_IDLE_CONNECTIONS = 10
_IDLE_SECONDS = 60

_log = Logger()


class NoTls(Transient):
    """The peer does not speak TLS, and has received nothing of the request."""


class Client:
    """An HTTP client on behalf of one registry.

    :param user_agent: the value of User-Agent.
    :param authority: `host` or `host:port` of the registry, if it differs from its name.
    """

    def __init__(
        self,
        reactor: Any,
        rules: AddressRules,
        endpoints: Endpoints,
        limits: Limits,
        metrics: Metrics,
        user_agent: str,
        authority: str | None = None,
    ) -> None:
        self._authority = authority or rules.registry
        self._reactor = reactor
        self._rules = rules
        self._limits = limits
        self._metrics = metrics
        self._user_agent = user_agent
        self._pool = HTTPConnectionPool(reactor)
        self._pool._factory = ConnectionFactory  # type: ignore[assignment]  # Only called.
        self._pool.maxPersistentPerHost = _IDLE_CONNECTIONS
        self._pool.cachedConnectionTimeout = _IDLE_SECONDS
        self._endpoints = endpoints
        self._agent = Agent.usingEndpointFactory(reactor, endpoints, self._pool)
        self._by_proxy: dict[Proxy, IAgent] = {}

    async def ask(self, request: Request) -> Response:
        """Return the response to `request`, after redirects.

        :raises Transient: when there is no response, and a retry may help.
        :raises RegistryFailed: when there is no response, or a redirect breaks our rules.
        :raises AddressRefused: when a host must not be connected to.
        """
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._exchange(request)
            if not request.is_followed or response.status not in _REDIRECTS:
                return response
            await response.discard()
            request = self._redirected(request, response)
        raise self._failed(f"it redirects more than {MAX_REDIRECTS} times")

    def retire(self) -> None:
        """Keep no idle connections from now on. Running requests continue."""
        self._pool.persistent = False
        self._pool.cachedConnectionTimeout = 0
        # The returned Deferred need not be awaited.
        self._pool.closeCachedConnections()

    async def close(self) -> None:
        """Close idle connections. Callers cancel running requests."""
        await self._pool.closeCachedConnections()

    def _redirected(self, request: Request, response: Response) -> Request:
        """Return the redirected request: RFC 9110 §15.4, for methods without side effects."""
        location = response.value("location")
        if not location:
            raise self._failed("its redirect has no Location")
        try:
            url = urljoin(request.url, _escaped(location))
            origin = Origin.of(url)
        except ValueError as error:
            raise self._failed("it redirects to an invalid URL") from error
        if response.origin.scheme == "https" and origin.scheme != "https":
            raise self._failed("it redirects from https to http")
        if origin == response.origin:
            return attrs.evolve(request, url=url)
        if request.form is not None:
            raise self._failed("it redirects a secret to another host")
        return attrs.evolve(request, url=url, authorization=None)

    async def _exchange(self, request: Request) -> Response:
        origin = Origin.of(request.url)
        if origin.scheme == "http" and not self._rules.permits_plain(origin.host, origin.port):
            key = self._rules.plain_key(origin.host, origin.port)
            problem = f"plain HTTP to {origin.authority} is not allowed; to allow it, {key}"
            raise self._failed(problem)
        # For TLS, the endpoint opens a tunnel. Twisted's agent for proxies sends https in clear, so
        # it is used only for plain HTTP.
        is_plain = origin.scheme == "http"
        proxy = self._endpoints.proxy_to("http", origin.host, origin.port) if is_plain else None
        # Making a request takes half a millisecond, and so did the work before it.
        await a_later_turn(self._reactor)
        begun = self._reactor.seconds()
        wire = _VerbatimAgent(self._agent if proxy is None else self._through(proxy), request)
        headers = self._headers(request, proxy)
        response = await self._answer(wire.send(self._reactor, headers), origin)
        located = partial(self.located, origin)
        answer = Response(response, origin, request.url, self._reactor, self._limits, located)
        if proxy is not None and response.code == PROXY_AUTHENTICATION_REQUIRED:
            await answer.discard()
            raise self._failed(refusal(proxy, response.code, origin.authority).problem)
        labels = (request.method.lower(), status_label(response.code))
        self._metrics.client_requests.labels(*labels).inc()
        self._metrics.client_duration.labels(*labels).observe(self._reactor.seconds() - begun)
        return answer

    def _through(self, proxy: Proxy) -> IAgent:
        if proxy not in self._by_proxy:
            endpoint = self._endpoints.of_proxy(proxy)
            self._by_proxy[proxy] = ProxyAgent(endpoint, self._reactor, self._pool)
        return self._by_proxy[proxy]

    def _headers(self, request: Request, proxy: Proxy | None) -> Headers:
        headers = {"User-Agent": self._user_agent, **request.headers}
        if proxy is not None and (shown := authorization(proxy)) is not None:
            headers["Proxy-Authorization"] = shown
        if request.authorization is not None:
            headers["Authorization"] = request.authorization
        return Headers({name: [value] for name, value in headers.items()})

    async def _answer(self, asked: Deferred[Any], origin: Origin) -> Any:
        """Wait for the head of a response, at most `header_timeout`."""
        limit = self._limits.header_timeout
        timer: IDelayedCall = self._reactor.callLater(limit, asked.cancel)
        try:
            return await asked
        except NO_ANSWER as error:
            if timer.active() and is_cancelled(error):
                raise CancelledError from error
            raise self._unanswered(error, origin, is_late=not timer.active()) from error
        finally:
            if timer.active():
                timer.cancel()

    def _unanswered(self, error: Exception, origin: Origin, is_late: bool) -> Exception:
        # Only debug: the caller logs its failure, and may retry, such as without TLS on loopback.
        _log.debug(
            "no answer from {origin}: {error_class}",
            origin=origin.authority,
            error_class=type(error).__name__,
        )
        if is_late:
            problem = f"it did not answer within {self._limits.header_timeout:g} s"
            problem = self.located(origin, problem)
            return Transient(origin.host, problem, was_asked=was_asked(error))
        if isinstance(error, TunnelError) and not error.may_pass:
            return self._failed(error.problem)
        if is_misnamed(error):
            return self._failed(f"the certificate of {origin.host} is not for that name")
        if is_untrusted(error):
            return self._failed(
                f"the certificate of {origin.host} is not trusted: it has expired, or its authority"
                f" is neither known to the system nor in {self._entry}.ca"
            )
        if is_tls(error):
            return self._failed(self.located(origin, f"it speaks TLS; {self.without_insecure}"))
        problem = self.located(origin, self._with_hint(problem_of(error), error, origin))
        if is_no_tls(error):
            return NoTls(origin.host, problem, was_asked=False)
        return Transient(origin.host, problem, was_asked=was_asked(error))

    def _with_hint(self, problem: str, error: Exception, origin: Origin) -> str:
        """Return the problem with the fault of TLS and, for the registry itself, the key for it."""
        is_own = self._is_own(origin)
        if is_no_tls(error):
            hint = f"; for plain HTTP set insecure: true in {self._entry}"
            return "it does not speak TLS" + (hint if is_own else "")
        if is_hung_up(error):
            hint = f"; if it speaks plain HTTP, set insecure: true in {self._entry}"
            return "it closed the connection instead of speaking TLS" + (hint if is_own else "")
        if is_own and self._rules.insecure and was_asked(error):
            return f"{problem}; if it speaks TLS, {self.without_insecure}"
        return problem

    def located(self, origin: Origin, problem: str) -> str:
        """Return a problem with the name of its origin, unless that is the registry itself."""
        if self._is_own(origin):
            return problem
        return f"it leads to {origin.authority}, which failed: {problem}"

    @property
    def without_insecure(self) -> str:
        """The advice for ``insecure`` with a registry that speaks TLS."""
        return f"remove insecure: true from {self._entry}"

    @property
    def _entry(self) -> str:
        return f'registries."{self._rules.registry}"'

    def _is_own(self, origin: Origin) -> bool:
        usual = origin.port in (80, 443) and origin.host == self._authority
        return usual or origin.authority == self._authority

    def _failed(self, problem: str) -> RegistryFailed:
        return RegistryFailed(self._rules.registry, problem)


@implementer(IAgent)
class _VerbatimAgent:
    """An agent that sends a request unchanged through treq.

    treq would request gzip and decode it, which hides truncated bodies. It also normalises URLs,
    even signed ones, and refuses IPv6 addresses. So treq gets another URL, and Content-Encoding is
    renamed.
    """

    _STAND_IN = "http://registry.invalid/"

    def __init__(self, agent: IAgent, request: Request) -> None:
        self._agent = agent
        self._request = request

    def send(self, reactor: Any, headers: Headers) -> Deferred[Any]:
        """Return the response without reading its body. Cancelling closes the connection."""
        # A new client for each request, since treq keeps cookies.
        return HTTPClient(self).request(
            self._request.method,
            self._STAND_IN,
            headers=headers,
            data=None if self._request.form is None else dict(self._request.form),
            allow_redirects=False,
            unbuffered=True,
            reactor=reactor,
        )

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See `IAgent.request`."""
        exact = Headers() if headers is None else headers
        exact.setRawHeaders(b"accept-encoding", [b"identity"])
        # Twisted's agent for proxies would send the fragment, against RFC 9110 §4.2.5.
        url = self._request.url.partition("#")[0].encode("ascii")
        return self._agent.request(method, url, exact, bodyProducer).addCallback(_renamed)


def _escaped(location: str) -> str:
    """Return a Location with raw spaces and bytes beyond ASCII escaped: RFC 3986 §2.1.

    Storage sends them unescaped in the names of files.
    """
    return _RAW.sub(lambda found: f"%{ord(found[0]):02X}", location)


def _renamed(response: IResponse) -> IResponse:
    codings = response.headers.getRawHeaders(b"content-encoding", [])
    response.headers.setRawHeaders(RENAMED_CODING.encode(), codings)
    response.headers.removeHeader(b"content-encoding")
    return response
