"""The metrics of a consumer, by Prometheus's conventions. The only place of their names."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROW_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000)


class Estimate(Collector):
    """A gauge that has no sample while its value is unknown: a Gauge would export 0."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._value: float | None = None

    def show(self, value: float | None) -> None:
        self._value = value

    def describe(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(self._name, self._text)

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(self._name, self._text, self._value)


class Metrics:
    """The metrics of one process. Counters move once a batch, not once a message."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._count_messages()
        self._count_maintenance()
        self._measure_inbox()
        self._count_hand_overs()
        self._measure_batches()
        self._measure_waiting()
        self._measure_backends()
        self._show_state()

    def _count_messages(self) -> None:
        self.received = self._counter("messages_received", "Messages taken from Pub/Sub, redeliveries included.")
        self.applied = self._counter("messages_applied", "Writes that took effect.")
        self.duplicates = self._counter("messages_duplicate", "Messages whose write had taken effect before.")
        self.dead_lettered = self._counter(
            "messages_dead_lettered", "Writes dead-lettered because they can't succeed.", ("reason",)
        )
        self.parked = self._counter(
            "messages_parked", "Writes kept back because they, or one before them of their key, failed."
        )
        self.table_not_ready = self._gauge(
            "table_not_ready",
            "1 while writes of the type are parked until its table is as shards.yaml has it.",
            ("type",),
        )
        self.released = self._counter("messages_released", "Parked writes that took effect.")
        self.acked = self._counter("messages_acked", "Messages acknowledged.")
        self.stale = self._counter("writes_stale", "Versioned writes older than the row they meet.")
        self.push_refused = self._counter(
            "push_refused", "Push requests not answered with an ack, by status: Pub/Sub sends them again.", ("status",)
        )

    def _count_maintenance(self) -> None:
        self.purged = self._counter("inbox_rows_purged", "Inbox rows that no replay can reach any more, deleted.")
        self.maintenance_failures = self._counter(
            "maintenance_failures", "Releases of parked keys, and purges, that failed and are tried again.", ("task",)
        )

    def _measure_inbox(self) -> None:
        """Exported by the one replica whose turn it is to purge."""
        self.inbox_rows = self._estimate("inbox_rows", "Rows of the inbox, as the database estimates them.")
        self.inbox_bytes = self._estimate("inbox_bytes", "Bytes of the inbox with its indexes.")
        self.inbox_overdue_seconds = self._estimate(
            "inbox_overdue_seconds",
            "How long ago the inbox should have forgotten the oldest applied write of a sample; 0 where all are to be kept.",
        )

    def _count_hand_overs(self) -> None:
        self.lock_contended = self._counter("locks_contended", "Slot locks found held by another replica.")
        self.held = self._counter("messages_held", "Messages kept because their slot isn't active here yet.")
        self.passed_on = self._counter(
            "messages_passed_on", "Messages acked because another generation of subscriptions has them."
        )
        self.published_again = self._counter(
            "messages_published_again", "Messages that came after the barrier before which they should have come."
        )
        self.barriers = self._counter("barriers_passed", "Slots handed over because a rebalance's barrier came.")
        self.barriers_refused = self._counter(
            "barriers_refused", "Barriers of an active slot that its database doesn't await: forged, copied, or late."
        )

    def _measure_batches(self) -> None:
        self.batch_retries = self._counter("batch_retries", "Batches tried again.", ("cause",))
        self.batch_retries.labels("again")  # exists from the start: otherwise a rate over it would miss the first retry
        self.batch_rows = self._histogram("batch_rows", "Messages a transaction.", ROW_BUCKETS)
        self.batch_seconds = self._histogram(
            "batch_seconds", "Time from taking a batch to its acknowledgement.", LATENCY_BUCKETS
        )
        self.transaction_seconds = self._histogram(
            "transaction_seconds", "Time a database transaction takes.", LATENCY_BUCKETS
        )
        self.publish_to_commit_seconds = self._histogram(
            "publish_to_commit_seconds", "Age of a batch's oldest message at commit.", LATENCY_BUCKETS
        )

    def _measure_waiting(self) -> None:
        self.outstanding = self._gauge("messages_outstanding", "Messages held under lease.")
        self.outstanding_bytes = self._gauge("outstanding_bytes", "Bytes of the messages held under lease.")
        self.slot_failing_seconds = self._gauge(
            "slot_failing_seconds", "How long the slot that fails for longest has done so; 0 when none fails."
        )
        self.slot_held_seconds = self._gauge(
            "slot_held_seconds",
            "How long the slot kept back for longest has been: locked elsewhere, or not active here.",
        )

    def _measure_backends(self) -> None:
        self.http_calls = self._counter("http_calls", "Calls of HTTP backends by outcome.", ("type", "outcome"))
        self.http_retries = self._counter(
            "http_retries", "Calls that repeat an earlier one of the same write.", ("type",)
        )
        self.http_call_seconds = self._histogram(
            "http_call_seconds",
            "Time from a call of an HTTP backend to its answer, or to giving it up.",
            LATENCY_BUCKETS,
        )
        self.http_breaker_open = self._gauge(
            "http_breaker_open", "1 while the type's HTTP backend isn't called because it is down.", ("type",)
        )
        self.http_token_missing = self._gauge(
            "http_token_missing",
            "1 while the type's HTTP backend isn't called because no token for it can be had.",
            ("type",),
        )

    def _show_state(self) -> None:
        self.redis_degraded = self._gauge("redis_degraded", "1 while the consumer works without slot locks.")
        self.database_up = self._gauge("database_up", "1 while the shard's database answers.")
        self.ready = self._gauge("ready", "1 while the consumer is ready.")
        self.leader = self._gauge(
            "leader", "1 while this replica leads its shard and writes; 0 where no leader is elected, too."
        )
        self.leader_lease_failing = self._gauge(
            "leader_lease_failing",
            "1 while the leader's lease can't be asked for: the Kubernetes API or Redis doesn't answer, or refuses.",
        )
        self.leader_transitions = self._counter("leader_transitions", "How often this replica came to lead.")

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"shardctl_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"shardctl_{name}", text, labels, registry=self.registry)

    def _estimate(self, name: str, text: str) -> Estimate:
        estimate = Estimate(f"shardctl_{name}", text)
        self.registry.register(estimate)
        return estimate

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"shardctl_{name}", text, registry=self.registry, buckets=buckets)
