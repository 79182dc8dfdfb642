"""What a gateway counts, by Prometheus convention. One place for every name."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZE_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000)


class Metrics:
    """The metrics of one process."""

    def __init__(self, message_types: Iterable[str], registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"shardctl_gateway_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"shardctl_gateway_{name}", text, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"shardctl_gateway_{name}", text, registry=self.registry, buckets=buckets)

        accepted = counter("writes_accepted", "Writes that Pub/Sub has confirmed.", ("type",))
        self.accepted = {name: accepted.labels(name) for name in message_types}
        self._refused = counter("writes_refused", "Requests, and lines of batches, that were refused.", ("status",))
        self._refused.labels("503")  # there from the start, or a rate over it would miss the first
        self.write_seconds = histogram(
            "write_seconds", "Time from a single write's request to its answer.", LATENCY_BUCKETS
        )
        self._publish_seconds = histogram(
            "publish_seconds", "Time that Pub/Sub takes for a publish request.", LATENCY_BUCKETS
        )
        self._publish_writes = histogram("publish_writes", "Writes a publish request.", SIZE_BUCKETS)
        self.publish_failed = counter("publish_failures", "Publish requests that failed and are retried.")
        self.abandoned = counter("requests_abandoned", "Requests whose client went away before the answer.")
        self.in_flight = gauge("writes_in_flight", "Writes accepted and not yet confirmed by Pub/Sub.")
        self.in_flight_bytes = gauge("in_flight_bytes", "Bytes of the writes in flight.")
        self._outcomes = counter("outcomes", "Answers about what became of a write.", ("outcome",))
        self.keys_failing = gauge(
            "keys_failing", "1 while the clients' keys can't all be read, or the issuer's keys can't be fetched."
        )
        self.ready = gauge("ready", "1 while the gateway is ready.")

    def refused(self, status: int) -> None:
        self._refused.labels(str(status)).inc()

    def outcome(self, outcome: str) -> None:
        self._outcomes.labels(outcome).inc()

    def published(self, writes: int, seconds: float) -> None:
        self._publish_seconds.observe(seconds)
        self._publish_writes.observe(writes)
