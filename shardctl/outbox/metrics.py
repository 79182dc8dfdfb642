"""The metrics of an outbox's relay, by Prometheus's conventions."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shardctl.outbox.queue import Backlog


class OutboxMetrics(Collector):
    """What the relay reports. What is unknown has no sample: a Gauge would export 0."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._backlog: Backlog | None = None
        self._published = Counter(
            "shardctl_outbox_published", "Writes of the outbox that Pub/Sub has taken.", registry=registry
        )
        self._refused = Counter(
            "shardctl_outbox_refused", "Writes of the outbox that Pub/Sub refused.", registry=registry
        )
        self._up = Gauge("shardctl_outbox_database_up", "1 while the outbox's database answers.", registry=registry)
        registry.register(self)

    def published(self, rows: int) -> None:
        self._published.inc(rows)

    def refused(self, rows: int) -> None:
        self._refused.inc(rows)

    def database_answers(self, answers: bool) -> None:
        self._up.set(answers)

    def measured(self, backlog: Backlog | None) -> None:
        self._backlog = backlog

    def collect(self) -> Iterator[Metric]:
        rows, oldest, refused = (
            (self._backlog.rows, self._backlog.oldest_seconds, self._backlog.refused)
            if self._backlog
            else (None, None, None)
        )
        yield GaugeMetricFamily("shardctl_outbox_rows", "Writes that wait in the outbox.", rows)
        yield GaugeMetricFamily(
            "shardctl_outbox_oldest_seconds", "How long the oldest of them has waited; 0 where none waits.", oldest
        )
        yield GaugeMetricFamily("shardctl_outbox_refused_rows", "Refused writes that are kept in the outbox.", refused)
