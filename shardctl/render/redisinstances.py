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


def instances(plan: Plan) -> Iterator[Object]:
    settings = plan.fleet.redis.memorystore
    if settings is None or not plan.whole:
        return
    instance = RedisInstance(
        name=memorystore.name_of(plan.fleet),
        region=settings.region,
        tier=_TIERS[settings.tier],
        memory_gb=settings.memory_gb,
        version=settings.version,
        encryption="SERVER_AUTHENTICATION" if settings.tls else "DISABLED",
        auth=settings.auth,
        network=settings.network,
        connect=settings.connect.upper().replace("-", "_"),
    )
    yield plan.object("RedisInstance", instance.name, None, project=plan.fleet.project, instance=instance)
