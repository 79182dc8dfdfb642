"""When an alert fires, and what it says. docs/alerts.md has a section for each alert: what it means, what to do.

One table for every stack. Where nothing scrapes the consumers, an alert goes by what its row says of logs, or can't be had.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet
from shardctl.render.objects import seconds
from shardctl.render.series import Series

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
REMINDED = "11m"  # a consumer logs trouble that lasts every ten minutes


@dataclass(frozen=True, slots=True)
class Alert:
    """`lasts`: how long the expression must hold. `cloud`: it asks Cloud Monitoring, which knows no namespace of ours.

    `logged`: the same by logs and by Google Cloud's own metrics, with what differs then; None: it takes the consumers' metrics.
    """

    name: str
    severity: Literal["critical", "warning"]
    expr: str
    lasts: timedelta
    summary: str
    description: str
    cloud: bool = False
    logged: str | None = None
    logged_lasts: timedelta | None = None
    logged_description: str | None = None


def alerts(fleet: Fleet) -> Iterator[Alert]:
    """Those that the fleet's monitoring can have."""
    for alert in _table(fleet):
        if not fleet.monitoring.by_logs or alert.cloud:
            yield alert
        elif alert.logged is not None:
            lasts = alert.lasts if alert.logged_lasts is None else alert.logged_lasts
            yield replace(
                alert, expr=alert.logged, lasts=lasts, description=alert.logged_description or alert.description
            )


def missing(fleet: Fleet) -> tuple[str, ...]:
    """The names of alerts that the fleet's monitoring can't have: they take the consumers' own metrics."""
    if not fleet.monitoring.by_logs:
        return ()
    return tuple(alert.name for alert in _table(fleet) if not alert.cloud and alert.logged is None)


def _table(fleet: Fleet) -> Iterator[Alert]:
    series = Series(fleet)
    yield from _backlogs(fleet, series)
    yield from _unwritten(fleet, series)
    yield from _work(fleet, series)
    yield from _backends(fleet, series)
    yield from _slots(fleet, series)
    yield from _inboxes(fleet, series)
    yield from _pods(fleet, series)
    yield from _gateway(fleet, series)
    yield from _outboxes(fleet, series)


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
    # Of any fleet: while a type's table isn't ready, its writes are parked, whatever its `on_poison`.
    parked = series.own("shardctl_messages_parked_total")
    yield Alert(
        "ShardctlParked",
        "warning",
        f"sum by (shard) (increase({parked}[15m])) > 0",
        timedelta(),
        "Shard {{ $labels.shard }} parks writes",
        "{{ $value | humanize }} writes of shard {{ $labels.shard }} were parked in 15 minutes: they failed, an earlier write of "
        "their key did, or their type's table isn't ready. `shardctl parked list` says why, and what waits for an operator.",
        logged=f"{series.logged('parked', '15m')} > 0",
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
        logged=" or ".join(
            f"{series.logged_rate(failed)} / {series.acked('rate', '5m')} > {share}"
            for failed in ("dead-lettered", "parked")
        ),
    )
    yield Alert(
        "ShardctlRedisDegraded",
        "warning",
        f"max by (shard) ({series.own('shardctl_redis_degraded')}) > 0",
        wanted.redis_degraded,
        "Shard {{ $labels.shard }} works without locks",
        "Redis doesn't answer consumers of shard {{ $labels.shard }}. Writes continue, safely but slower: several "
        "replicas may process the same slot at once, and only one of them commits.",
        logged=f"max by (shard) ({_since(series, 'redis-lost', 'redis-back', REMINDED, 'shard, pod_name')}) > 0",
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
        logged="max by (shard, type) "
        f"({_since(series, 'breakers-opened', 'breakers-closed', '1h', 'shard, type, pod_name')}) > 0",
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
        # A shard of which single slots fail acks those of others; ShardctlOldestMessage reports it.
        logged=f"{series.logged('batch-retries', '2m')} > 0 unless {series.acked('increase', '2m')} > 0",
        logged_lasts=wanted.slot_failing,
        logged_description="Batches of shard {{ $labels.shard }} have failed and none has succeeded for "
        f"{seconds(wanted.slot_failing)} s, and its slots are blocked. Nothing is lost: the messages are kept and retried.",
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
        logged=f"{series.logged('barriers-refused', '15m')} > 0",
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
        logged=f"({series.unavailable}) > {wanted.unavailable_pods}",  # kube-state-metrics come with GKE
    )
    yield Alert(
        "ShardctlMemory",
        "warning",
        f"({series.memory}) > {wanted.memory_percent / 100:g}",
        5 * MINUTE,
        "Pod {{ $labels.pod }} is short of memory",
        "The consumer in {{ $labels.pod }} uses {{ $value | humanizePercentage }} of its memory limit, at which it is killed.",
        cloud=fleet.monitoring.stack != "prometheus-operator",
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
            logged=f"absent({series.running})",
            logged_description=f"No consumer of {fleet.fleet} runs: messages wait, and none takes effect.",
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
        logged=f"(sum({series.available('gateway')}) or vector(0)) < 1",
        logged_description=f"No pod of {fleet.fleet}-gateway is available: none runs, or Pub/Sub doesn't answer them.",
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
        logged=f"max({_since(series, 'gateway-keys-failing', 'gateway-keys-back', REMINDED, 'pod_name')}) > 0",
    )


def _outboxes(fleet: Fleet, series: Series) -> Iterator[Alert]:
    if fleet.relay is not None:
        yield Alert(
            "ShardctlRelayDown",
            "critical",
            f"(sum({series.relays('shardctl_outbox_database_up')}) or vector(0)) < 1",
            2 * MINUTE,
            f"The relay of {fleet.fleet} publishes nothing",
            f"No replica of {fleet.fleet}-relay reaches the database with the outbox: none runs, none is scraped, or the "
            "database doesn't answer them. Nothing is lost: writes wait there.",
            logged=f"(sum({series.available('relay')}) or vector(0)) < 1",
            logged_description=f"No pod of {fleet.fleet}-relay is available: none runs, or the database with the outbox doesn't "
            "answer them. Nothing is lost: writes wait there.",
        )
    if fleet.relay is None and not any(kind.emits for kind in fleet.message_types.values()):
        return
    wanted = fleet.monitoring.thresholds
    yield Alert(
        "ShardctlOutboxOldest",
        "critical",
        f"max by (app, shard) ({series.outboxes('shardctl_outbox_oldest_seconds')}) > {seconds(wanted.outbox_age)}",
        2 * MINUTE,
        "Writes wait in the outbox of {{ $labels.app }} {{ $labels.shard }}",
        "The oldest write in the outbox of {{ $labels.app }} {{ $labels.shard }} has waited for "
        "{{ $value | humanizeDuration }}: its relay is down or behind, Pub/Sub doesn't take it, or an earlier write of its key "
        "was refused.",
        logged="max by (shard, container_name) "
        f"({_since(series, 'outbox-waits', 'outbox-works', REMINDED, 'shard, container_name, pod_name')}) > 0",
        logged_description="A relay in a container {{ $labels.container_name }} {{ $labels.shard }} can't publish: Pub/Sub "
        "doesn't take its writes. Nothing is lost: they wait in order.",
    )
    yield Alert(
        "ShardctlOutboxRefused",
        "warning",
        f"max by (app, shard) ({series.outboxes('shardctl_outbox_refused_rows')}) > 0",
        timedelta(),
        "Pub/Sub refused writes in the outbox of {{ $labels.app }} {{ $labels.shard }}",
        "{{ $value }} writes in the outbox of {{ $labels.app }} {{ $labels.shard }} can't be published. Later writes of their "
        "keys wait until you retry or drop them.",
        logged=f"{series.logged('outbox-refused', '15m', 'shard, container_name')} > 0",
        logged_description="{{ $value | humanize }} writes in an outbox of a container {{ $labels.container_name }} "
        "{{ $labels.shard }} were refused in 15 minutes. Later writes of their keys wait until you retry or drop them.",
    )


def _since(series: Series, begun: str, ended: str, window: str, by: str) -> str:
    """Where trouble was logged within the window, and its end wasn't."""
    return f"{series.logged(begun, window, by)} > 0 unless {series.logged(ended, window, by)} > 0"
