"""What is counted, by its Prometheus names.

The four ``http_*`` families are the original's, names and lower-case method labels unchanged. Each
`Metrics` has a registry of its own, so that several services live in one process.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector


class Metrics:
    """The counters of one blobserve service; callers use the attributes directly."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.server_requests = Counter(
            "http_server_requests_total",
            "Requests answered.",
            ["method", "code"],
            registry=registry,
        )
        self.server_duration = Histogram(
            "http_server_requests_duration_seconds",
            "From request head to last byte.",
            ["method", "code"],
            registry=registry,
        )
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
        self.slow_clients = Counter(
            "blobserve_slow_clients_total",
            "Connections ended because the client took its response too slowly.",
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "blobserve_requests_in_flight", "Requests being answered.", registry=registry
        )
