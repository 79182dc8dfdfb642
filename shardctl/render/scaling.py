"""How many replicas: an autoscaler of Kubernetes, or KEDA's, or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shardctl.fleet import quantities, topology
from shardctl.fleet.spec import Fleet, Shard
from shardctl.render.objects import Object, Plan, Writer, seconds

TARGET_KINDS: Mapping[str, str] = {"deployment": "Deployment", "statefulset": "StatefulSet"}


def max_replicas(shard: Shard) -> int:
    """The most replicas that have work, one a slot; never under the minimum, whose extra replicas are hot standbys."""
    wanted = shard.autoscaling
    slots = max(len(generation.slots) for generation in topology.generations(shard))
    return max(wanted.min, min(wanted.most, slots))


def min_replicas(fleet: Fleet, shard: Shard) -> int:
    """Never 0 while slots move: barriers wait for a reader, and a rebalance for its barriers."""
    least = shard.autoscaling.min
    return 1 if least == 0 and fleet.rebalancing else least  # in this order: the second test looks at every shard


def autoscalers(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        if writer.shard.autoscaling.kind == "hpa":
            yield plan.object(
                "HorizontalPodAutoscaler",
                writer.id,
                writer,
                **_bounds(plan, writer),
                cpu_percent=writer.shard.autoscaling.cpu_percent,
                subscriptions=[sub.id for sub in writer.subscriptions],
            )


def scaled_objects(plan: Plan) -> Iterator[Object]:
    server = f"https://monitoring.googleapis.com/v1/projects/{plan.fleet.project}/location/global/prometheus"
    for writer in plan.writers:
        wanted = writer.shard.autoscaling
        if wanted.kind == "keda":
            yield plan.object(
                "ScaledObject",
                writer.id,
                writer,
                **_bounds(plan, writer),
                cpu_percent=str(wanted.cpu_percent),  # a trigger's settings are text
                server=server,
                triggers=[_backlog_of(sub.id) for sub in writer.subscriptions],
                activation_backlog=str(wanted.keda.activation_backlog),
                polling_seconds=seconds(wanted.keda.polling),
                cooldown_seconds=seconds(wanted.keda.cooldown),
                authentication=_authentication(plan),
            )


def trigger_authentications(plan: Plan) -> Iterator[Object]:
    if plan.whole and any(shard.autoscaling.kind == "keda" for shard in plan.fleet.shards):
        yield plan.object("TriggerAuthentication", _authentication(plan), None)


def _bounds(plan: Plan, writer: Writer) -> dict[str, Any]:
    fleet, shard = plan.fleet, writer.shard
    return {
        "target_kind": TARGET_KINDS[shard.workload.kind],
        "min_replicas": min_replicas(fleet, shard),
        "max_replicas": max_replicas(shard),
        "backlog_per_replica": str(shard.autoscaling.backlog_per_replica),  # KEDA reads a number, which is text
        "backlog_quantity": quantities.canonical(str(shard.autoscaling.backlog_per_replica)),
    }


def _backlog_of(subscription: str) -> str:
    """The metric as PromQL of Cloud Monitoring names it. Subscriptions' ids hold nothing that PromQL would read."""
    return (
        "sum(pubsub_googleapis_com:subscription_num_undelivered_messages"
        f'{{monitored_resource="pubsub_subscription",subscription_id="{subscription}"}})'
    )


def _authentication(plan: Plan) -> str:
    return f"{plan.fleet.fleet}-cloud-monitoring"
