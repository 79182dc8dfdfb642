"""A replica as a candidate: which lease, under which name, by which settings."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from redis.asyncio import Redis

from consumer.leader.election import Election, Times
from consumer.leader.leadership import Leadership, Lease
from consumer.leader.redis import RedisLease
from shardctl.fleet.settings.leader import Leader
from shardctl.fleet.shardconfig import ShardConfig


class ClosingLease(Lease, Protocol):
    async def close(self) -> None: ...


def identity_of(replica: str) -> str:
    """New for each start: a pod that was killed and restarted in place is a new candidate."""
    return f"{replica}_{secrets.token_hex(4)}"


def lease_of(
    config: ShardConfig, identity: str, redis: Redis, environment: Mapping[str, str] = os.environ
) -> ClosingLease:
    """The lease that the shard's settings name. Raises UsageError where it can't be had here."""
    duration = config.leader.lease_duration
    if config.leader.kind == "redis":
        return RedisLease(redis, config.redis_prefix, identity, int(duration.total_seconds() * 1000))
    from consumer.leader.kubernetes import MOUNTED, Account, KubernetesLease, client_of

    account = Account(Path(environment.get("SERVICE_ACCOUNT_DIR") or MOUNTED))
    name = f"{config.fleet}-{config.shard}"  # as the shard's objects are named, its Role among them
    return KubernetesLease(client_of(environment, account), account, name, identity, int(duration.total_seconds()))


def leadership_of(lease: Lease, settings: Leader) -> Leadership:
    times = Times(
        settings.lease_duration.total_seconds(),
        settings.renew_deadline.total_seconds(),
        settings.retry_period.total_seconds(),
    )
    return Leadership(lease, Election(times, time.monotonic()), time.monotonic)
