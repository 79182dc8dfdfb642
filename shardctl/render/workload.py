"""The consumers: what runs, as whom, with which settings, how many of it."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

from shardctl import topology
from shardctl.render.objects import Object, Plan, seconds
from shardctl.spec import Fleet, SecretRef, Shard
from shardctl.templates import Lines

GRACE_MARGIN_SECONDS = 10  # between the consumer's own drain and the kill


def max_replicas(fleet: Fleet, shard: Shard) -> int:
    """The most replicas that have work, one a slot; never under the minimum, whose extra replicas are hot standbys."""
    wanted = fleet.autoscaling_of(shard)
    slots = max(len(generation.slots) for generation in topology.generations(shard))
    return max(wanted.min, min(wanted.max, slots))


def service_accounts(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        yield plan.object("ServiceAccount", writer.id, writer, account_email=plan.account_email(writer))


def config_maps(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        yield plan.object("ConfigMap", writer.id, writer, config=Lines(plan.config(writer)))


def deployments(plan: Plan) -> Iterator[Object]:
    fleet = plan.fleet
    redis = fleet.redis.secret or _secret(f"{fleet.fleet}-redis")
    for writer in plan.writers:
        shard = writer.shard
        yield plan.object(
            "Deployment",
            writer.id,
            writer,
            app=plan.app,
            shard=shard.name,
            image=fleet.image,
            config_checksum=sha256(plan.config(writer).encode()).hexdigest(),
            grace_seconds=seconds(fleet.consumer_of(shard).drain_timeout) + GRACE_MARGIN_SECONDS,
            database=topology.database_secret(fleet, shard),
            redis=redis,
            probes=fleet.probes,
            resources=fleet.resources_of(shard),
        )


def autoscalers(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        wanted = plan.fleet.autoscaling_of(writer.shard)
        yield plan.object(
            "HorizontalPodAutoscaler",
            writer.id,
            writer,
            min_replicas=wanted.min,
            max_replicas=max_replicas(plan.fleet, writer.shard),
            cpu_percent=wanted.cpu_percent,
            backlog_per_replica=str(wanted.backlog_per_replica),  # a quantity, which is text
            subscriptions=[sub.id for sub in writer.subscriptions],
        )


def disruption_budgets(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        yield plan.object("PodDisruptionBudget", writer.id, writer, app=plan.app, shard=writer.shard.name)


def _secret(name: str) -> SecretRef:
    return SecretRef.model_construct(name=name)  # made of names that were checked; checking again costs time
