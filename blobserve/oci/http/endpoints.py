"""Endpoints: connections whose address has been checked, with TLS where the URL says so.

A name is resolved once, each address is judged by the `AddressRules`, and only what was judged is
connected to; TLS goes on naming and verifying the host. Knows nothing of HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import attrs
from OpenSSL import SSL, crypto
from twisted.internet._sslverify import IOpenSSLTrustRoot  # public only in its documentation
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.ssl import Certificate, platformTrust, trustRootFromCertificates
from twisted.web.client import BrowserLikePolicyForHTTPS, HostnameCachingHTTPSPolicy
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from blobserve.concurrency.threads import Threads
from blobserve.errors import AddressRefused, RegistryFailed
from blobserve.names.proxy import Proxies, Proxy, UnusableProxy
from blobserve.oci.http.address_rules import AddressRules
from blobserve.oci.http.name_lookup import Addresses, Names
from blobserve.oci.http.tunnel import ProxyEndpoint, Tunnel

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@attrs.frozen
class Routes:
    """How hosts are found: by name, or through a proxy."""

    names: Names
    proxies: Proxies = attrs.field(factory=Proxies)
    proxy_names: Names | None = None
    """Resolves the names of the proxies themselves; None: `names` does."""


@implementer(IAgentEndpointFactory)
class Endpoints:
    """Makes the endpoints of one registry's client.

    :param ca: a PEM file of certificates that are trusted besides the system's, by this registry
        and by whatever it sends us to: a private registry's storage has its certificate from the
        same authority. Read in `threads`, at the first connection that needs it.
    :param timeout: seconds that a name has to be resolved, and each address to accept a connection.
    """

    def __init__(
        self,
        reactor: Any,
        rules: AddressRules,
        ca: Path | None,
        threads: Threads,
        routes: Routes,
        timeout: float,
    ) -> None:
        self._reactor = reactor
        self._rules = rules
        self._ca = ca
        self._threads = threads
        self._routes = routes
        self._timeout = timeout
        self._proxies: dict[Proxy, IStreamClientEndpoint] = {}
        self._policy: HostnameCachingHTTPSPolicy | None = None

    def endpointForURI(self, uri: Any) -> IStreamClientEndpoint:
        """See `IAgentEndpointFactory.endpointForURI`."""
        return _Endpoint(self.connect, uri.host.decode("ascii"), uri.port, uri.scheme == b"https")

    async def connect(
        self, host: str, port: int, has_tls: bool, factory: IProtocolFactory
    ) -> IProtocol:
        """Connect to one of the host's permitted addresses, whichever answers first.

        With TLS, through a proxy where one leads there.
        """
        name = f"[{host}]" if ":" in host else host
        proxy = self.proxy_to("https", name, port) if has_tls else None
        if proxy is not None:
            tunnel = Tunnel(proxy, self.of_proxy(proxy), f"{name}:{port}")
            return await wrapClientTLS(await self._tls(host, port), tunnel).connect(factory)
        addresses = await self._routes.names.addresses(host, port, self._timeout)
        permitted = [each for each in addresses if self._rules.permits(name, port, each.host)]
        if addresses and not permitted:
            raise AddressRefused(name, self._rules.key(name, port))
        if not permitted:
            raise DNSLookupError("no addresses")
        return await (await self._endpoint(permitted, host, port, has_tls)).connect(factory)

    def proxy_to(self, scheme: str, host: str, port: int) -> Proxy | None:
        """Return the proxy that leads to an origin; an IPv6 host has its brackets.

        :raises AddressRefused: when it is an address that may not be connected to.
        :raises RegistryFailed: when it may not be asked for, or the proxy's setting is wrong.
        """
        proxy = self._routes.proxies.leading_to(scheme, host, port)
        if proxy is None:
            return None
        if isinstance(proxy, UnusableProxy):
            problem = f"{proxy.setting} cannot be used: {proxy.problem}"
            raise RegistryFailed(self._rules.registry, problem)
        if not self._rules.permits_unresolved(host, port):
            raise AddressRefused(host, self._rules.key(host, port))
        if not self._rules.permits_port(host, port):
            problem = f"port {port} of {host} is not asked for through a proxy"
            key = self._rules.key(host, port)
            raise RegistryFailed(self._rules.registry, f"{problem}; to allow it, {key}")
        return proxy

    def of_proxy(self, proxy: Proxy) -> IStreamClientEndpoint:
        """Return the endpoint of a proxy, always the same one."""
        if proxy not in self._proxies:
            place = proxy.host, proxy.port, proxy.scheme == "https"
            self._proxies[proxy] = ProxyEndpoint(proxy, _Endpoint(self._connect_proxy, *place))
        return self._proxies[proxy]

    async def _connect_proxy(
        self, host: str, port: int, has_tls: bool, factory: IProtocolFactory
    ) -> IProtocol:
        names = self._routes.proxy_names or self._routes.names
        addresses = await names.addresses(host, port, self._timeout)
        if not addresses:
            raise DNSLookupError("no addresses")
        return await (await self._endpoint(addresses, host, port, has_tls)).connect(factory)

    async def _endpoint(
        self, addresses: Addresses, host: str, port: int, has_tls: bool
    ) -> IStreamClientEndpoint:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            _PinnedResolver(self._reactor, addresses), addresses[0].host, port, self._timeout
        )
        return wrapClientTLS(await self._tls(host, port), endpoint) if has_tls else endpoint

    async def _tls(self, host: str, port: int) -> IOpenSSLClientConnectionCreator:
        if self._policy is None:
            trust = platformTrust()
            if self._ca is not None:
                trust = _CombinedTrust(trust, await self._authorities(self._ca))
            self._policy = HostnameCachingHTTPSPolicy(BrowserLikePolicyForHTTPS(trust))
        return self._policy.creatorForNetloc(host.encode("ascii"), port)

    async def _authorities(self, path: Path) -> IOpenSSLTrustRoot:
        try:
            found = _PEM.findall(await self._threads.run(path.read_bytes))
            if not found:
                raise ValueError("no certificate")
            root: IOpenSSLTrustRoot = trustRootFromCertificates(map(Certificate.loadPEM, found))
        except (OSError, ValueError, crypto.Error) as error:
            raise RegistryFailed(self._rules.registry, "its ca file cannot be used") from error
        return root


@implementer(IStreamClientEndpoint)
class _Endpoint:
    def __init__(
        self,
        connect: Callable[[str, int, bool, IProtocolFactory], Coroutine[Any, Any, IProtocol]],
        host: str,
        port: int,
        has_tls: bool,
    ) -> None:
        self._connect = connect
        self._place = (host, port, has_tls)

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `IStreamClientEndpoint.connect`."""
        return Deferred.fromCoroutine(self._connect(*self._place, factory))


@implementer(IOpenSSLTrustRoot)
class _CombinedTrust:
    """Trusts what either root trusts; alone, a root of our own would replace the system's."""

    def __init__(self, *roots: IOpenSSLTrustRoot) -> None:
        self._roots = roots

    def _addCACertsToContext(self, context: SSL.Context) -> None:
        for root in self._roots:
            root._addCACertsToContext(context)


@implementer(IReactorPluggableNameResolver, IHostnameResolver, IHostResolution)
class _PinnedResolver:
    """A reactor for which every name has the addresses that were checked, and no others.

    `HostnameEndpoint` then does the racing between them, as RFC 8305 has it.
    """

    def __init__(self, reactor: Any, addresses: Sequence[IAddress]) -> None:
        self._addresses = addresses
        self.name = ""
        self.nameResolver = self
        self.connectTCP = reactor.connectTCP
        self.callLater = reactor.callLater
        self.seconds = reactor.seconds

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See `IHostnameResolver.resolveHostName`."""
        resolutionReceiver.resolutionBegan(self)
        for address in self._addresses:
            resolutionReceiver.addressResolved(address)
        resolutionReceiver.resolutionComplete()
        return self

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """See `IReactorPluggableNameResolver.installNameResolver`: there is none to install."""
        return self

    def cancel(self) -> None:
        """See `IHostResolution.cancel`: it is over when it begins."""
