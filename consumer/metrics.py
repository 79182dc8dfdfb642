"""What a consumer counts, by Prometheus convention. One place for every name."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROW_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000)


class Metrics:
    """The metrics of one process. Counters move once a batch, not once a message."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"shardctl_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"shardctl_{name}", text, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"shardctl_{name}", text, registry=self.registry, buckets=buckets)

        self.received = counter("messages_received", "Messages taken from Pub/Sub, redeliveries included.")
        self.applied = counter("messages_applied", "Writes that took effect.")
        self.duplicates = counter("messages_duplicate", "Messages whose write had taken effect before.")
        self.dead_lettered = counter(
            "messages_dead_lettered", "Writes set aside because they can't succeed.", ("reason",)
        )
        self.parked = counter(
            "messages_parked", "Writes kept back because they, or one before them of their key, failed."
        )
        self.released = counter("messages_released", "Parked writes that took effect.")
        self.purged = counter("inbox_rows_purged", "Inbox rows that no replay can reach any more, deleted.")
        self.maintenance_failures = counter(
            "maintenance_failures", "Releases of parked keys, and purges, that failed and are tried again.", ("task",)
        )
        self.push_refused = counter(
            "push_refused", "Push requests not answered with an ack, by status: Pub/Sub sends them again.", ("status",)
        )
        self.acked = counter("messages_acked", "Messages acknowledged.")
        self.stale = counter("writes_stale", "Versioned writes older than the row they meet.")
        self.lock_contended = counter("locks_contended", "Slot locks found held by another replica.")
        self.held = counter("messages_held", "Messages kept because their slot isn't active here yet.")
        self.passed_on = counter(
            "messages_passed_on", "Messages acked because another generation of subscriptions has them."
        )
        self.published_again = counter(
            "messages_published_again", "Messages that came after the barrier they should have come before."
        )
        self.barriers = counter("barriers_passed", "Slots let go because a rebalance's barrier was met.")
        self.barriers_refused = counter(
            "barriers_refused", "Barriers of an active slot that its database doesn't await: forged, copied, or late."
        )
        self.batch_retries = counter("batch_retries", "Batches tried again.", ("cause",))
        self.batch_retries.labels("again")  # there from the start, or a rate over it would miss the first
        self.batch_rows = histogram("batch_rows", "Messages a transaction.", ROW_BUCKETS)
        self.batch_seconds = histogram(
            "batch_seconds", "Time from taking a batch to its acknowledgement.", LATENCY_BUCKETS
        )
        self.transaction_seconds = histogram(
            "transaction_seconds", "Time a database transaction takes.", LATENCY_BUCKETS
        )
        self.publish_to_commit_seconds = histogram(
            "publish_to_commit_seconds", "Age of a batch's oldest message at commit.", LATENCY_BUCKETS
        )
        self.outstanding = gauge("messages_outstanding", "Messages held under lease.")
        self.outstanding_bytes = gauge("outstanding_bytes", "Bytes of the messages held under lease.")
        self.slot_failing_seconds = gauge(
            "slot_failing_seconds", "How long the slot that fails for longest has done so; 0 when none fails."
        )
        self.slot_held_seconds = gauge(
            "slot_held_seconds",
            "How long the slot kept back for longest has been: locked elsewhere, or not active here.",
        )
        self.http_calls = counter("http_calls", "Calls of HTTP backends by outcome.", ("type", "outcome"))
        self.http_retries = counter("http_retries", "Calls that repeat an earlier one of the same write.", ("type",))
        self.http_call_seconds = histogram(
            "http_call_seconds",
            "Time from a call of an HTTP backend to its answer, or to giving it up.",
            LATENCY_BUCKETS,
        )
        self.http_breaker_open = Gauge(
            "shardctl_http_breaker_open",
            "1 while the type's HTTP backend is left alone because it is down.",
            ("type",),
            registry=self.registry,
        )
        self.redis_degraded = gauge("redis_degraded", "1 while the consumer works without slot locks.")
        self.database_up = gauge("database_up", "1 while the shard's database answers.")
        self.ready = gauge("ready", "1 while the consumer is ready.")
        self.leader = gauge(
            "leader", "1 while this replica leads its shard and writes; 0 where no leader is elected, too."
        )
        self.leader_lease_failing = gauge(
            "leader_lease_failing",
            "1 while the leader's lease can't be asked for: the Kubernetes API or Redis doesn't answer, or refuses.",
        )
        self.leader_transitions = counter("leader_transitions", "How often this replica came to lead.")
