"""Lookups of host names, in threads of our own.

Lookups that hang would occupy Twisted's threads, and the end of the process would wait for them. If
the application has installed a resolver in the reactor, that one is used.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet._resolver import GAIResolver  # Identifies Twisted's own resolver.
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
    """Too many names wait for a lookup."""


class Names:
    """A resolver of names; callers share a running lookup of the same name.

    A lookup is not started if its callers were cancelled while it waited for a thread. A running
    lookup cannot be stopped.
    """

    def __init__(self, reactor: Any, threads: Threads) -> None:
        self._reactor = reactor
        self._threads = threads
        self._asking = SharedCalls[str, Addresses]()

    async def addresses(self, host: str, port: int, within: float) -> Addresses:
        """Return the addresses of `host`, with `port`; may be empty.

        :raises NameTooSlow: when the lookup takes longer than `within` seconds.
        :raises TooManyNames: when too many lookups are running or waiting.
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
            # A new caller may have come since the thread looked.
            is_wanted = found is None and self._asking.is_wanted(host)
            return self._look_up(host) if is_wanted else found or []

        return self._threads.run(look_up).addCallback(again)


def _addresses(host: str) -> Addresses:
    """Return the addresses from the system's resolver. Blocks, perhaps for minutes."""
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
