"""The metrics, by their Prometheus names. See docs/reference/metrics.md.

The four ``http_*`` families keep the names and the lower-case method labels of the original. Each
`Metrics` has its own registry, so that several services can run in one process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate
from math import inf

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Metrics:
    """The counters of one blobserve service; callers use the attributes directly."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = RequestMetrics()
        registry.register(self.requests)
        self.client_requests = Counter(
            "http_client_requests_total",
            "Requests to registries.",
            ["method", "code"],
            registry=registry,
        )
        self.client_duration = Histogram(
            "http_client_requests_duration_seconds",
            "From request to response headers.",
            ["method", "code"],
            registry=registry,
        )
        self.pulls = Counter(
            "blobserve_pulls_total",
            "Layer downloads: ready, failed, cancelled, or proved for another repository.",
            ["outcome"],
            registry=registry,
        )
        self.pulled_bytes = Counter(
            "blobserve_pulled_bytes_total", "Layer bytes received.", registry=registry
        )
        self.lookups = Tally(
            "blobserve_lookups", "Images leased: hit, pull, wait or stale.", "result"
        )
        registry.register(self.lookups)
        self.stale_serves = Counter(
            "blobserve_stale_serves_total",
            "Responses from a digest older than tagMaxAge.",
            registry=registry,
        )
        self.evictions = Counter("blobserve_evictions_total", "Evicted blobs.", registry=registry)
        self.damaged = Counter(
            "blobserve_damaged_total",
            "Damage found in the blob space: content, index or coding.",
            ["part"],
            registry=registry,
        )
        self.codings = Counter(
            "blobserve_codings_total",
            "Compressed files: made, copied, useless, no-room, failed or damaged.",
            ["coding", "outcome"],
            registry=registry,
        )
        self.coded_bytes = Counter(
            "blobserve_coded_bytes_total",
            "Bytes of the codings that were made.",
            ["coding"],
            registry=registry,
        )
        self.siblings = Counter(
            "blobserve_siblings_total",
            "Precompressed siblings verified: right, wrong or failed.",
            ["coding", "outcome"],
            registry=registry,
        )
        self.early_served = Counter(
            "blobserve_early_served_total",
            "Files sent before their layer was verified.",
            registry=registry,
        )
        self.early_aborted = Counter(
            "blobserve_early_aborted_total",
            "Early responses that were reset: overtaken, damaged or abandoned.",
            ["reason"],
            registry=registry,
        )
        self.early_unconfirmed = Counter(
            "blobserve_early_unconfirmed_total",
            "Early responses that had ended before their layer failed.",
            ["reason"],
            registry=registry,
        )
        self.published_indexes = Counter(
            "blobserve_published_indexes_total",
            "Tables of contents of layers: used, refused or failed.",
            ["outcome"],
            registry=registry,
        )
        # No longer counted; dashboards still find it, at zero, for one version.
        self.published_indexes.labels("wrong")
        self.chunk_bytes = Counter(
            "blobserve_chunk_bytes_total",
            "Bytes of tables of contents and chunks received.",
            registry=registry,
        )
        self.notifications = Counter(
            "blobserve_notifications_total",
            "Notifications of registries: accepted, unmatched, ignored or refused.",
            ["result"],
            registry=registry,
        )
        self.size = Gauge(
            "blobserve_size_bytes",
            "Bytes of the blob space, reservations included.",
            registry=registry,
        )
        self.bound = Gauge(
            "blobserve_max_size_bytes", "The quota of the blob space; 0: none.", registry=registry
        )
        self.pulls_in_flight = Gauge(
            "blobserve_pulls_in_flight", "Layers being downloaded.", registry=registry
        )
        self.pulls_queued = Gauge(
            "blobserve_pulls_queued", "Layers that wait for a download.", registry=registry
        )
        self.slow_clients = Counter(
            "blobserve_slow_clients_total",
            "Connections closed because the client read too slowly.",
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "blobserve_requests_in_flight", "Requests being answered.", registry=registry
        )
        self.lost_lines = Counter(
            "blobserve_access_log_lost_lines_total",
            "Lines of the access log that could not be written.",
            registry=registry,
        )
        self.connections = Gauge("blobserve_connections", "Open connections.", registry=registry)
        self.refused_connections = Counter(
            "blobserve_refused_connections_total",
            "Refused connections: too many in total, or from one address.",
            ["reason"],
            registry=registry,
        )
        self.dismissed_connections = Counter(
            "blobserve_dismissed_connections_total",
            "Idle connections closed to make room for others.",
            registry=registry,
        )


# https://www.iana.org/assignments/http-status-codes
_RANGES = ((100, 105), (200, 209), (300, 309), (400, 419), (421, 427), (500, 509))
_STATUSES = {
    *(status for first, end in _RANGES for status in range(first, end)),
    *(226, 428, 429, 431, 451, 510, 511),
}


def status_label(status: int) -> str:
    """Return the label of a status that a registry sent; the number of labels is limited.

    An unknown status has its class as label, such as ``4xx``: RFC 9110 §15.
    """
    if status in _STATUSES:
        return str(status)
    return f"{status // 100}xx" if 100 <= status < 600 else "other"


class Tally(Collector):
    """A counter with one label, for values that every request counts.

    Only for the reactor's thread. It has no locks, and is faster than the library's counters.
    """

    def __init__(self, name: str, documentation: str, label: str) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._counts: defaultdict[str, int] = defaultdict(int)

    def count(self, value: str) -> None:
        """Add one to the count of this label value."""
        self._counts[value] += 1

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        family = CounterMetricFamily(self._name, self._documentation, labels=(self._label,))
        for value, count in self._counts.items():
            family.add_metric((value,), count)
        yield family


class RequestMetrics(Collector):
    """The number and duration of requests, by method and status. See `Tally`."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], list[float]] = {}
        """For each method and status: the count of each bucket, and the total seconds."""

    def count(self, method: str, status: int, seconds: float) -> None:
        """Count a request; `method` in lower case."""
        counts = self._counts.get((method, status))
        if counts is None:
            counts = self._counts[method, status] = [0] * (len(_BOUNDS) + 1)
        counts[bisect_left(_BOUNDS, seconds)] += 1
        counts[-1] += seconds

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        labels = ("method", "code")
        requests = CounterMetricFamily("http_server_requests", "Requests answered.", labels=labels)
        durations = HistogramMetricFamily(
            "http_server_requests_duration_seconds",
            "From request head to last byte.",
            labels=labels,
        )
        for (method, status), counts in self._counts.items():
            *counts, seconds = counts
            upto = list(accumulate(counts))
            requests.add_metric((method, str(status)), upto[-1])
            buckets = list(zip(map(floatToGoString, _BOUNDS), upto, strict=True))
            durations.add_metric((method, str(status)), buckets, seconds)
        yield requests
        yield durations


_BOUNDS = (*Histogram.DEFAULT_BUCKETS[:-1], inf)
