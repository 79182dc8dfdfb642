"""The log-based metrics that alerts go by where nothing scrapes the consumers: each counts the log lines of some actions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shardctl.fleet.spec import Fleet


@dataclass(frozen=True, slots=True)
class LogMetric:
    """`fields`: what of a log line becomes a label of the metric, by the label's name."""

    name: str
    actions: tuple[str, ...]
    description: str
    containers: tuple[Literal["consumer", "gateway", "relay"], ...] = ("consumer",)
    fields: tuple[tuple[str, str], ...] = (("shard", "shard"),)


_CONSUMERS = (
    LogMetric("dead-lettered", ("dead_lettered",), "Writes that the consumers dead-lettered."),
    LogMetric("parked", ("parked",), "Writes that the consumers parked."),
    LogMetric("batch-retries", ("batch_retry",), "Batches that failed and are tried again."),
    LogMetric("barriers-refused", ("barrier_refused",), "Barriers that a shard's database doesn't await."),
    LogMetric("redis-lost", ("redis_lost",), "Consumers that Redis doesn't answer: at once, then every ten minutes."),
    LogMetric("redis-back", ("redis_back",), "Consumers that Redis answers again."),
)
_TYPED = (("shard", "shard"), ("type", "message_type"))
_BACKENDS = (
    LogMetric("breakers-opened", ("breaker_opened",), "HTTP backends that consumers stopped calling.", fields=_TYPED),
    LogMetric("breakers-closed", ("breaker_closed",), "HTTP backends that answer again.", fields=_TYPED),
)
_KEYS = (
    LogMetric(
        "gateway-keys-failing",
        ("keys_refused", "keys_unavailable"),
        "Gateways that can't confirm their clients' keys: at once, then every ten minutes.",
        ("gateway",),
        (),
    ),
    LogMetric("gateway-keys-back", ("keys_accepted", "recovered"), "Gateways that work again.", ("gateway",), ()),
)
_OUTBOXES = (
    LogMetric(
        "outbox-waits",
        ("outbox_waits",),
        "Relays whose writes Pub/Sub doesn't take: at once, then every ten minutes.",
        ("consumer", "relay"),
    ),
    LogMetric("outbox-works", ("outbox_works",), "Relays that publish again.", ("consumer", "relay")),
    LogMetric(
        "outbox-refused", ("outbox_refused",), "Writes of an outbox that Pub/Sub refuses.", ("consumer", "relay")
    ),
)


def log_metrics(fleet: Fleet) -> Iterator[LogMetric]:
    yield from _CONSUMERS
    if any(kind.http for kind in fleet.message_types.values()):
        yield from _BACKENDS
    if fleet.gateway and fleet.gateway.auth.kind != "none":
        yield from _KEYS
    if fleet.relay or any(kind.emits for kind in fleet.message_types.values()):
        yield from _OUTBOXES


def metric_id(fleet: Fleet, name: str) -> str:
    return f"{fleet.fleet}-{name}"


def filter_text(fleet: Fleet, metric: LogMetric) -> str:
    """As Cloud Logging's query language has it."""
    actions = " OR ".join(f'"{action}"' for action in metric.actions)
    containers = " OR ".join(f'"{container}"' for container in metric.containers)
    containers = f"({containers})" if len(metric.containers) > 1 else containers
    return " AND ".join(
        (
            'resource.type="k8s_container"',
            f'resource.labels.namespace_name="{fleet.namespace}"',
            f"resource.labels.container_name={containers}",
            f'jsonPayload.fleet="{fleet.fleet}"',
            f"jsonPayload.action=({actions})",
        )
    )
