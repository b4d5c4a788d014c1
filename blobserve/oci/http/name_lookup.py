"""Names: the addresses that host names have, looked up in threads of ours.

Twisted's own threads would be taken by names that nothing answers for, and the end of the process
would wait for them. A resolver that the application has installed in the reactor is asked instead.
Knows nothing of which addresses may be connected to.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet._resolver import GAIResolver  # to know Twisted's own resolver
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as WaitedTooLong
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from zope.interface import implementer

from blobserve.concurrency.threads import SharedCalls, Threads

NAME_THREADS = 8
UNLISTED_NAME_THREADS = 4

_WAITING = 1000

Addresses = list[IPv4Address | IPv6Address]


class NameTooSlow(DNSLookupError):
    """A name was not resolved in time; `within` in seconds."""

    def __init__(self, within: float) -> None:
        super().__init__()
        self.within = within


class TooManyNames(DNSLookupError):
    """Too many names wait for being looked up."""


class Names:
    """Looks up names, each once at a time, and at most as many as `threads` has threads.

    A look-up that nothing waits for any more is not begun; one that has begun cannot be ended.
    """

    def __init__(self, reactor: Any, threads: Threads) -> None:
        self._reactor = reactor
        self._threads = threads
        self._asking = SharedCalls[str, Addresses]()

    async def addresses(self, host: str, port: int, within: float) -> Addresses:
        """Return the addresses of `host`, with `port`; none if it has none.

        :raises NameTooSlow: when they are not known within `within` seconds.
        :raises TooManyNames: when too many look-ups have not ended.
        """
        if isIPAddress(host):
            return [IPv4Address("TCP", host, port)]
        if isIPv6Address(host):
            return [IPv6Address("TCP", host, port)]
        resolver = self._reactor.nameResolver
        if isinstance(resolver, GAIResolver):
            looking = self._shared(host)
        else:
            receiver = _Receiver()
            resolver.resolveHostName(receiver, host, port)
            looking = receiver.complete
        looking.addTimeout(within, self._reactor)
        try:
            found = await looking
        except WaitedTooLong:
            raise NameTooSlow(within) from None
        return [_at(address, port) for address in found]

    def _shared(self, host: str) -> Deferred[Addresses]:
        if host not in self._asking and len(self._asking) >= _WAITING:
            raise TooManyNames
        return self._asking.wait(host, lambda: self._look_up(host))

    def _look_up(self, host: str) -> Deferred[Addresses]:
        def look_up() -> Addresses | None:
            return _addresses(host) if self._asking.is_wanted(host) else None

        def again(found: Addresses | None) -> Addresses | Deferred[Addresses]:
            # It may be wanted again since its turn came.
            is_wanted = found is None and self._asking.is_wanted(host)
            return self._look_up(host) if is_wanted else found or []

        return self._threads.run(look_up).addCallback(again)


def _addresses(host: str) -> Addresses:
    """Return what the system's resolver knows. Blocks, for minutes in the worst case."""
    try:
        found = socket.getaddrinfo(host.encode("ascii"), 0, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses: Addresses = []
    for family, _, _, _, place in found:
        if family == socket.AF_INET:
            addresses.append(IPv4Address("TCP", str(place[0]), 0))
        elif family == socket.AF_INET6:
            addresses.append(IPv6Address("TCP", *place))
    return addresses


def _at(address: IPv4Address | IPv6Address, port: int) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv4Address):
        return IPv4Address("TCP", address.host, port)
    return IPv6Address("TCP", address.host, port, address.flowInfo, address.scopeID)


@implementer(IResolutionReceiver)
class _Receiver:
    def __init__(self) -> None:
        self._addresses: Addresses = []
        self.complete: Deferred[Addresses] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """See `IResolutionReceiver.resolutionBegan`."""

    def addressResolved(self, address: IAddress) -> None:
        """See `IResolutionReceiver.addressResolved`."""
        if isinstance(address, IPv4Address | IPv6Address):
            self._addresses.append(address)

    def resolutionComplete(self) -> None:
        """See `IResolutionReceiver.resolutionComplete`."""
        self.complete.callback(self._addresses)
