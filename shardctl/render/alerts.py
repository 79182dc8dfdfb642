"""When an alert fires, and what it says. docs/alerts.md has a section for each alert: what it means, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet
from shardctl.render.objects import seconds
from shardctl.render.series import Series

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Alert:
    """`lasts`: how long the expression must hold. `cloud`: it asks Cloud Monitoring, which knows no namespace of ours."""

    name: str
    severity: Literal["critical", "warning"]
    expr: str
    lasts: timedelta
    summary: str
    description: str
    cloud: bool = False


def alerts(fleet: Fleet) -> Iterator[Alert]:
    series = Series(fleet)
    yield from _backlogs(fleet, series)
    yield from _unwritten(fleet, series)
    yield from _work(fleet, series)
    yield from _backends(fleet, series)
    yield from _slots(fleet, series)
    yield from _inboxes(fleet, series)
    yield from _pods(fleet, series)
    yield from _gateway(fleet, series)


def _backlogs(fleet: Fleet, series: Series) -> Iterator[Alert]:
    wanted = fleet.monitoring.thresholds
    yield Alert(
        "ShardctlBacklog",
        "warning",
        f"{series.backlog} > {wanted.backlog_messages}",
        10 * MINUTE,
        "Shard {{ $labels.shard }} falls behind",
        f"{{{{ $value | humanize }}}} messages wait for shard {{{{ $labels.shard }}}} of {fleet.fleet}: "
        "more come in than its consumers write.",
        cloud=True,
    )
    yield Alert(
        "ShardctlOldestMessage",
        "critical",
        f"{series.oldest_age} > {seconds(wanted.oldest_message_age)}",
        2 * MINUTE,
        "Shard {{ $labels.shard }} has an old unacked message",
        f"The oldest unacked message of shard {{{{ $labels.shard }}}} of {fleet.fleet} is "
        "{{ $value | humanizeDuration }} old: the shard is down, far behind, or stuck on a slot.",
        cloud=True,
    )


def _unwritten(fleet: Fleet, series: Series) -> Iterator[Alert]:
    wanted = fleet.monitoring.thresholds
    yield Alert(
        "ShardctlDeadLetters",
        "warning",
        f"{series.dead_letters} > {wanted.dead_letters}",
        MINUTE,
        f"Fleet {fleet.fleet} has dead letters",
        f"{{{{ $value | humanize }}}} messages are on the dead-letter subscription of {fleet.fleet}: writes that can't "
        "succeed, or that Pub/Sub gave up on. They are kept for 31 days.",
        cloud=True,
    )
    yield Alert(
        "ShardctlStrays",
        "warning",
        f"{series.strays} > {wanted.strays}",
        MINUTE,
        f"No shard takes some messages of fleet {fleet.fleet}",
        f"{{{{ $value | humanize }}}} messages on {fleet.fleet}'s topics have no valid slot, or a type that no shard "
        "takes: a producer is at fault, and these writes reach no database.",
        cloud=True,
    )
    if any(kind.on_poison == "park" for kind in fleet.message_types.values()):
        parked = series.own("shardctl_messages_parked_total")
        yield Alert(
            "ShardctlParked",
            "warning",
            f"sum by (shard) (increase({parked}[15m])) > 0",
            timedelta(),
            "Shard {{ $labels.shard }} parks writes",
            "{{ $value | humanize }} writes of shard {{ $labels.shard }} were parked in 15 minutes: they failed, or an earlier "
            "write of their key did. The key's writes wait until an operator releases it.",
        )


def _work(fleet: Fleet, series: Series) -> Iterator[Alert]:
    wanted = fleet.monitoring.thresholds
    share = f"{wanted.failure_percent / 100:g}"
    received = series.rate("shardctl_messages_received_total")
    yield Alert(
        "ShardctlHandlingSlow",
        "warning",
        f"{series.quantile(0.99, 'shardctl_batch_seconds')} > {seconds(wanted.handling_latency)}",
        5 * MINUTE,
        "Shard {{ $labels.shard }} handles batches slowly",
        "One batch in a hundred of shard {{ $labels.shard }} takes over {{ $value | humanizeDuration }} from its start "
        "to its acknowledgement.",
    )
    failing = (
        (series.rate("shardctl_batch_retries_total"), series.rate("shardctl_batch_seconds_count")),
        (series.rate("shardctl_messages_dead_lettered_total"), received),
        (series.rate("shardctl_messages_parked_total"), received),
    )
    yield Alert(
        "ShardctlFailureRate",
        "warning",
        " or ".join(f"{failed} / {tried} > {share}" for failed, tried in failing),
        5 * MINUTE,
        "Shard {{ $labels.shard }} fails too often",
        "{{ $value | humanizePercentage }} of the batches of shard {{ $labels.shard }} are retried, or of its writes are "
        "dead-lettered or parked.",
    )
    yield Alert(
        "ShardctlRedisDegraded",
        "warning",
        f"max by (shard) ({series.own('shardctl_redis_degraded')}) > 0",
        wanted.redis_degraded,
        "Shard {{ $labels.shard }} works without locks",
        "Redis doesn't answer consumers of shard {{ $labels.shard }}. Writes continue, safely but slower: several "
        "replicas may process the same slot at once, and only one of them commits.",
    )


def _backends(fleet: Fleet, series: Series) -> Iterator[Alert]:
    if not any(kind.http for kind in fleet.message_types.values()):
        return
    yield Alert(
        "ShardctlBreakerOpen",
        "warning",
        f"max by (shard, type) ({series.own('shardctl_http_breaker_open')}) > 0",
        5 * MINUTE,
        "Shard {{ $labels.shard }} can't reach the HTTP backend of {{ $labels.type }}",
        "The HTTP backend of type {{ $labels.type }} has failed for over 5 minutes, and shard {{ $labels.shard }} calls it only "
        "now and then to see whether it works again. Nothing is lost: its writes wait.",
    )


def _slots(fleet: Fleet, series: Series) -> Iterator[Alert]:
    wanted = fleet.monitoring.thresholds
    yield Alert(
        "ShardctlSlotFailing",
        "critical",
        f"max by (shard) ({series.own('shardctl_slot_failing_seconds')}) > {seconds(wanted.slot_failing)}",
        timedelta(),
        "Shard {{ $labels.shard }} can't write",
        "A batch of shard {{ $labels.shard }} has failed for {{ $value | humanizeDuration }}, and its slots are blocked. "
        "Nothing is lost: the messages are kept and retried.",
    )
    yield Alert(
        "ShardctlSlotHeld",
        "warning",
        f"max by (shard) ({series.own('shardctl_slot_held_seconds')}) > {seconds(wanted.slot_held)}",
        timedelta(),
        "Shard {{ $labels.shard }} holds a slot's messages",
        "A slot of shard {{ $labels.shard }} has been held for {{ $value | humanizeDuration }}: a rebalance hasn't made it "
        "active here yet, or another replica holds its lock.",
    )
    again = series.own("shardctl_messages_published_again_total")
    yield Alert(
        "ShardctlPublishedAgain",
        "warning",
        f"sum by (shard) (increase({again}[5m])) > {wanted.published_again}",
        10 * MINUTE,
        "Shard {{ $labels.shard }} keeps republishing messages",
        "{{ $value | humanize }} messages of shard {{ $labels.shard }} in 5 minutes came after the barrier of their slot's "
        "move. A few are normal just after a move, but these continue.",
    )
    refused = series.own("shardctl_barriers_refused_total")
    yield Alert(
        "ShardctlBarriersRefused",
        "warning",
        f"sum by (shard) (increase({refused}[15m])) > 0",
        timedelta(),
        "Shard {{ $labels.shard }} receives barriers that its database doesn't await",
        "{{ $value | humanize }} messages in 15 minutes looked like the barrier of a slot's move to shard {{ $labels.shard }}, "
        "and changed nothing. Somebody forges them, or a `shardctl rebalance run` of version 0.1.0 is running.",
    )


def _inboxes(fleet: Fleet, series: Series) -> Iterator[Alert]:
    overdue = series.own("shardctl_inbox_overdue_seconds")
    # A walk through the inbox takes a twentieth of the retention at most, and a row may wait for the end of the second one.
    allowed = DAY + max(topology.inbox_retention(fleet, shard) for shard in fleet.shards) / 10
    yield Alert(
        "ShardctlInboxGrowth",
        "warning",
        f"max by (shard) (max_over_time({overdue}[30m])) > {seconds(allowed)}",  # one replica has it, and may be replaced
        DAY,
        "Shard {{ $labels.shard }} deletes old inbox rows too slowly",
        "The inbox of shard {{ $labels.shard }} has rows that should have been deleted {{ $value | humanizeDuration }} ago: "
        "its purge doesn't keep up, and the inbox grows beyond what its retention explains.",
    )


def _pods(fleet: Fleet, series: Series) -> Iterator[Alert]:
    wanted = fleet.monitoring.thresholds
    yield Alert(
        "ShardctlPodsUnavailable",
        "critical",
        f"({series.unavailable}) > {wanted.unavailable_pods}",
        10 * MINUTE,
        "Shard {{ $labels.shard }} is short of pods",
        "{{ $value }} pods of shard {{ $labels.shard }} aren't available.",
    )
    yield Alert(
        "ShardctlMemory",
        "warning",
        f"({series.memory}) > {wanted.memory_percent / 100:g}",
        5 * MINUTE,
        "Pod {{ $labels.pod }} is short of memory",
        "The consumer in {{ $labels.pod }} uses {{ $value | humanizePercentage }} of its memory limit, at which it is killed.",
        cloud=fleet.monitoring.stack == "managed-prometheus",
    )
    led = [shard.name for shard in fleet.shards if shard.leader.kind != "none"]
    if led:
        yield Alert(
            "ShardctlNoLeader",
            "critical",
            f"sum by (shard) ({series.own('shardctl_leader', led)}) < 1",
            2 * MINUTE,
            "Shard {{ $labels.shard }} has no leader",
            "No replica of shard {{ $labels.shard }} leads, so none of its writes takes effect. Nothing is lost: messages wait.",
        )
    if any(shard.autoscaling.min for shard in fleet.shards):  # else a fleet without any pod may be in order
        yield Alert(
            "ShardctlSilent",
            "critical",
            f"absent({series.own('shardctl_ready')})",
            10 * MINUTE,
            f"No consumer of fleet {fleet.fleet} reports metrics",
            f"No consumer of {fleet.fleet} is scraped: none runs, or scraping is broken. Until this is "
            "fixed, the other alerts on consumers can't fire.",
        )


def _gateway(fleet: Fleet, series: Series) -> Iterator[Alert]:
    if fleet.gateway is None:
        return
    yield Alert(
        "ShardctlGatewayDown",
        "critical",
        f"(sum({series.gateways('shardctl_gateway_ready')}) or vector(0)) < 1",
        2 * MINUTE,
        f"The gateway of {fleet.fleet} accepts no writes",
        f"No replica of {fleet.fleet}-gateway is ready: none runs, none is scraped, or Pub/Sub doesn't answer them.",
    )
    if fleet.gateway.auth.kind == "none":
        return
    yield Alert(
        "ShardctlGatewayKeys",
        "critical",
        f"max({series.gateways('shardctl_gateway_keys_failing')}) > 0",
        MINUTE,
        f"The gateway of {fleet.fleet} can't confirm its clients' keys",
        f"A replica of {fleet.fleet}-gateway can't read its whole file of keys, or can't reach the tokens' issuer. Keys that it "
        f"can't confirm are refused {seconds(fleet.gateway.auth.grace_time)} s after that began, and their clients can't write.",
    )
