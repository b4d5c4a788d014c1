"""What is counted, by its Prometheus names.

The four ``http_*`` families are the original's, names and lower-case method labels unchanged. Each
`Metrics` has a registry of its own, so that several services live in one process.
"""

from __future__ import annotations

from bisect import bisect_left
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
            "Layers pulled: ready, failed or cancelled.",
            ["outcome"],
            registry=registry,
        )
        self.pulled_bytes = Counter(
            "blobserve_pulled_bytes_total", "Layer bytes received.", registry=registry
        )
        self.lookups = Counter(
            "blobserve_lookups_total",
            "References asked for: hit, pull, wait or stale.",
            ["result"],
            registry=registry,
        )
        self.stale_serves = Counter(
            "blobserve_stale_serves_total",
            "Answers from a digest older than tagMaxAge.",
            registry=registry,
        )
        self.evictions = Counter(
            "blobserve_evictions_total", "Blobs removed to make room or by age.", registry=registry
        )
        self.codings = Counter(
            "blobserve_codings_total",
            "Files coded: made, useless, no-room, failed or damaged.",
            ["coding", "outcome"],
            registry=registry,
        )
        self.coded_bytes = Counter(
            "blobserve_coded_bytes_total",
            "Bytes of codings made.",
            ["coding"],
            registry=registry,
        )
        self.size = Gauge(
            "blobserve_size_bytes",
            "Bytes the blob space takes, reservations included.",
            registry=registry,
        )
        self.bound = Gauge(
            "blobserve_max_size_bytes", "The bound of the blob space; 0: none.", registry=registry
        )
        self.pulls_in_flight = Gauge(
            "blobserve_pulls_in_flight", "Layers being downloaded.", registry=registry
        )
        self.pulls_queued = Gauge(
            "blobserve_pulls_queued", "Layers waiting for a download permit.", registry=registry
        )
        self.requests_in_flight = Gauge(
            "blobserve_requests_in_flight", "Requests being answered.", registry=registry
        )
        self.connections = Gauge("blobserve_connections", "Open connections.", registry=registry)
        self.refused_connections = Counter(
            "blobserve_refused_connections_total",
            "Refused because there were too many: in total, or of one address.",
            ["reason"],
            registry=registry,
        )
        self.dismissed_connections = Counter(
            "blobserve_dismissed_connections_total",
            "Idle connections that were closed to make room for others.",
            registry=registry,
        )


class RequestMetrics(Collector):
    """Requests answered, by method and status: how many, and how long they took.

    Counted once per request, so it has to be cheaper than the library's own locks and labels make
    it: used on the reactor's thread alone, and turned into samples when somebody asks.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], list[int]] = {}
        self._seconds: dict[tuple[str, int], float] = {}

    def count(self, method: str, status: int, seconds: float) -> None:
        """Count a request; `method` in lower case."""
        key = method, status
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0] * len(_BOUNDS)
            self._seconds[key] = 0.0
        counts[bisect_left(_BOUNDS, seconds)] += 1
        self._seconds[key] += seconds

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
            upto = list(accumulate(counts))
            requests.add_metric((method, str(status)), upto[-1])
            buckets = list(zip(map(floatToGoString, _BOUNDS), upto, strict=True))
            durations.add_metric((method, str(status)), buckets, self._seconds[method, status])
        yield requests
        yield durations


_BOUNDS = (*Histogram.DEFAULT_BUCKETS[:-1], inf)
