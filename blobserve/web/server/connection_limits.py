"""Limits on the number of connections, in total and per client.

At the limit, the connection that has been idle longest is closed. It is searched for only then.
Below the limit, a connection costs a few dictionary operations, and so does a request that comes
through a trusted proxy.
"""

from __future__ import annotations

import math
import resource
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Generic, Protocol, TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from blobserve.config import Config
from blobserve.errors import TooManyConnections
from blobserve.metrics import Metrics
from blobserve.web.server.access_log import client_address, is_within, parse_address
from blobserve.web.server.request_log import peer_of

_NEWCOMER = 1.0
"""Seconds after which a new connection without data counts as idle."""

_SEARCH = 5e-6
"""The pause between two searches for idle connections, in seconds per open connection."""


class LimitedConnection(Protocol):
    """A connection that counts towards the limits."""

    since: float
    """The time of its start, by the reactor's clock."""
    active_at: float
    """The time of the last data from the client or response to it; `since` if there was none."""

    @property
    def peer(self) -> str:
        """The address of the client; a dash if there is none."""
        ...

    @property
    def is_spare(self) -> bool:
        """Return whether the connection is idle, without even a part of a head."""
        ...

    def close(self) -> None:
        """Close the connection after all pending data is sent."""
        ...

    def abort(self) -> None:
        """Close the connection at once."""
        ...


M = TypeVar("M", bound=LimitedConnection)


class ConnectionLimits(Generic[M]):
    """The connections of one site, and their limits.

    The limit is ``limits.clientConnections``, but at most three quarters of the file descriptors of
    the process, because images need some too. Connections that are being closed do not count. If
    they reach an eighth of the limit, and at least 16, further ones are aborted instead.

    :param at_most: a further limit on their number.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        reactor: IReactorTime,
        metrics: Metrics,
        at_most: float = math.inf,
    ) -> None:
        self._config = config
        self._at_most = at_most
        self._reactor = reactor
        self._metrics = metrics
        self.open: dict[M, bytes | None] = {}
        """Each open connection, with the network for which it counts, if any."""
        self._leaving: set[M] = set()
        self._of_network: defaultdict[bytes, int] = defaultdict(int)
        self._asking: defaultdict[bytes, int] = defaultdict(int)
        # The result of the last search; the connection that was idle longest comes last.
        self._spare: list[tuple[float, M]] = []
        self._search_at = 0.0

    @property
    def is_crowded(self) -> bool:
        """Return whether many connections are being closed, so that further ones are aborted."""
        return len(self._leaving) >= max(16, self._most() // 8)

    def admit(self, connection: M) -> None:
        """Register a new connection. Even a refused one stays registered until it is `lost`.

        :raises TooManyConnections: if the caller must close the connection.
        """
        network = network_of(connection.peer)
        reason = self._objection(connection, network)
        if reason is None:
            self.open[connection] = network
            if network is not None:
                self._of_network[network] += 1
            return
        self.open[connection] = None
        self._leaving.add(connection)
        self._metrics.refused_connections.labels(reason).inc()
        raise TooManyConnections

    def lost(self, connection: M) -> None:
        """Remove a connection that has ended."""
        self._leaving.discard(connection)
        network = self.open.pop(connection, None)
        if network is not None:
            _decrease(self._of_network, network)

    def enter(self, request: Request) -> None:
        """Count a request from a trusted proxy for its client, until the request ends.

        Direct clients are counted by connection. A proxy's connections carry requests of many
        clients.

        :raises TooManyConnections: when the client has too many requests under way.
        """
        config = self._config()
        most = config.limits.client_connections_per_address
        if not most:
            return
        peer, trusted = peer_of(request.client), config.trusted_proxies
        if not is_within(peer, trusted):
            return
        forwarded = request.requestHeaders.getRawHeaders(b"X-Forwarded-For", [])
        address = client_address(peer, forwarded, trusted)
        network = None if is_within(address, trusted) else network_of(address)
        if network is None:
            return
        if self._asking.get(network, 0) >= most:
            self._metrics.refused_connections.labels("address").inc()
            raise TooManyConnections
        self._asking[network] += 1
        request.notifyFinish().addBoth(lambda _: _decrease(self._asking, network))

    def _objection(self, connection: M, network: bytes | None) -> str | None:
        config = self._config()
        most = config.limits.client_connections_per_address
        if (
            most
            and network is not None
            and self._of_network.get(network, 0) >= most
            and not is_within(connection.peer, config.trusted_proxies)
        ):
            return "address"
        if len(self.open) - len(self._leaving) < self._most():
            self._spare.clear()
            return None
        return None if self._make_room() else "total"

    def _most(self) -> int:
        limit = int(min(self._config().limits.client_connections, self._at_most))
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors == resource.RLIM_INFINITY:
            return limit
        return min(limit, max(1, descriptors * 3 // 4))

    def _make_room(self) -> bool:
        """Close the connection that has been idle longest; return whether there was one."""
        idle = self._idle_longest()
        if idle is None:
            self._search()
            idle = self._idle_longest()
        if idle is None:
            return False
        self._leaving.add(idle)
        self._metrics.dismissed_connections.inc()
        if self.is_crowded:
            idle.abort()
        else:
            idle.close()
        return True

    def _idle_longest(self) -> M | None:
        while self._spare:
            active_at, connection = self._spare.pop()
            # Connections outside the list were active later than those in it.
            if connection.active_at == active_at and self._is_spare(connection):
                return connection
        return None

    def _search(self) -> None:
        now = self._reactor.seconds()
        pause = len(self.open) * _SEARCH
        if 0 < self._search_at - now <= pause:
            return
        self._search_at = now + pause
        newest = now - _NEWCOMER
        found = [
            (each.active_at, each)
            for each in self.open
            if self._is_spare(each) and (each.active_at > each.since or each.since <= newest)
        ]
        self._spare = sorted(found, key=itemgetter(0))[::-1]

    def _is_spare(self, connection: M) -> bool:
        return connection in self.open and connection not in self._leaving and connection.is_spare


@lru_cache(maxsize=512)  # The same clients connect again, and parsing takes 20 microseconds.
def network_of(address: str) -> bytes | None:
    """Return the key of a client: an IPv4 address, or the /64 network of an IPv6 address.

    None if this is not an address, as for a Unix socket.
    """
    parsed = parse_address(address)
    if parsed is None:
        return None
    return parsed.packed if parsed.version == 4 else parsed.packed[:8]


def _decrease(counts: defaultdict[bytes, int], network: bytes) -> None:
    counts[network] -= 1
    if not counts[network]:
        del counts[network]
