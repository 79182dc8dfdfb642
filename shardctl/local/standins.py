"""Local replacements for what only a cluster has. Pure."""

from __future__ import annotations

from shardctl.errors import UsageError
from shardctl.fleet.settings.leader import Leader
from shardctl.fleet.spec import Fleet


def on_this_machine(fleet: Fleet) -> Fleet:
    """The fleet as it can run here: without a Kubernetes API, a shard's leader is elected in Redis, which is one server here.

    Raises UsageError for what has no local replacement.
    """
    if fleet.delivery.kind == "push":
        raise UsageError(
            f"delivery: push sends messages to {fleet.delivery.url}, and nothing on this machine answers there. "
            "Run a copy of the file with delivery: pull."
        )
    in_schema = [kind.table for kind in fleet.message_types.values() if "." in kind.table]
    if in_schema and fleet.local.database == "sqlite":
        raise UsageError(f"table {in_schema[0]}: SQLite has no schemas. Set local: {{database: postgresql}}.")
    shards = tuple(shard.model_copy(update={"leader": _elected_here(shard.leader)}) for shard in fleet.shards)
    redis = fleet.redis.model_copy(update={"cluster": None, "sentinel": None, "memorystore": None})
    return fleet.model_copy(update={"leader": _elected_here(fleet.leader), "redis": redis, "shards": shards})


def _elected_here(leader: Leader) -> Leader:
    return leader.model_copy(update={"kind": "redis"}) if leader.kind == "kubernetes" else leader
