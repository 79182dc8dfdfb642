"""The fleet's Redis as an instance of Memorystore, where the file asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shardctl.fleet import memorystore
from shardctl.render.objects import Object, Plan

_TIERS = {"standard": "STANDARD_HA", "basic": "BASIC"}


@dataclass(frozen=True, slots=True)
class RedisInstance:
    """As Memorystore's API names things."""

    name: str
    region: str
    tier: str
    memory_gb: int
    version: str
    encryption: str
    auth: bool
    network: str | None
    connect: str


@dataclass(frozen=True, slots=True)
class ValkeyInstance:
    """The same of Memorystore for Valkey: one shard, which every client of Redis can use."""

    project: str
    name: str
    region: str
    node_type: str
    replicas: int
    version: str
    encryption: str
    authorization: str
    network: str


def redis_instances(plan: Plan) -> Iterator[Object]:
    settings = plan.fleet.redis.memorystore
    if settings is None or settings.engine != "redis" or not plan.whole:
        return
    instance = RedisInstance(
        name=memorystore.name_of(plan.fleet),
        region=settings.region,
        tier=_TIERS[settings.tier],
        memory_gb=settings.memory_gb,
        version=settings.engine_version,
        encryption="SERVER_AUTHENTICATION" if settings.tls else "DISABLED",
        auth=settings.auth,
        network=settings.network,
        connect=settings.connect.upper().replace("-", "_"),
    )
    yield plan.object("RedisInstance", instance.name, None, project=plan.fleet.project, instance=instance)


def valkey_instances(plan: Plan) -> Iterator[Object]:
    settings = plan.fleet.redis.memorystore
    if settings is None or settings.engine != "valkey" or not plan.whole:
        return
    project = plan.fleet.project
    instance = ValkeyInstance(
        project=project,
        name=memorystore.name_of(plan.fleet),
        region=settings.region,
        node_type=settings.node_type.upper().replace("-", "_"),
        replicas=1 if settings.tier == "standard" else 0,
        version=settings.engine_version,
        encryption="SERVER_AUTHENTICATION" if settings.tls else "TRANSIT_ENCRYPTION_DISABLED",
        authorization="IAM_AUTH" if settings.auth else "AUTH_DISABLED",
        network=settings.network or f"projects/{project}/global/networks/default",
    )
    yield plan.object("MemorystoreInstance", instance.name, None, instance=instance)


def grants(plan: Plan) -> Iterator[Object]:
    """Where clients log in by IAM, each shard's account may log in to this instance, and to no other of the project."""
    settings = plan.fleet.redis.memorystore
    if settings is None or not settings.iam:
        return
    project, instance = plan.fleet.project, memorystore.name_of(plan.fleet)
    for writer in plan.writers:
        yield plan.object(
            "IAMPolicyMember",
            f"{writer.id}-memorystore",
            writer,
            role="roles/memorystore.dbConnectionUser",
            resource_kind="Project",
            resource_name=project,
            resource_external=f"projects/{project}",
            member=None,
            member_account=writer.id,
            condition={"title": instance, "expression": memorystore.only_instance(plan.fleet, settings)},
        )
