"""Where the writes of a routing key go. Pure."""

from __future__ import annotations

from typing import Any

from shardctl.fleet import cloudsql, topology
from shardctl.fleet.keyspace import digits_of
from shardctl.fleet.spec import Fleet, Shard


def owners(fleet: Fleet, slot: int, message_type: str | None) -> tuple[Shard, ...]:
    """The shards that the file gives a slot, of one message type or of any."""
    return tuple(
        shard for shard in fleet.shards if slot in shard.slots and (message_type is None or shard.takes(message_type))
    )


def placement(fleet: Fleet, key: str, message_type: str | None, slot: int) -> dict[str, Any]:
    """Slot, topic, shards, subscriptions and databases, for a machine to read; `message_type` None means any."""
    topic = topology.topic_of(fleet, slot)
    return {
        "key": key,
        "type": message_type,
        "slot": slot,
        "digits": digits_of(slot, fleet.routing.slot_bits),
        "topic": topic.id,
        "shards": [
            {
                "name": shard.name,
                "types": [name for name in fleet.message_types if shard.takes(name)],
                "subscription": next(sub.id for sub in topology.subscriptions(fleet, shard) if sub.topic == topic),
                **_database(fleet, shard),
            }
            for shard in owners(fleet, slot, message_type)
        ],
    }


def _database(fleet: Fleet, shard: Shard) -> dict[str, Any]:
    secret, cloud_sql = topology.database_secret(fleet, shard), cloudsql.instance_of(shard)
    return {
        "database_secret": secret.model_dump(include={"name", "key"}) if secret else None,
        "cloud_sql": cloud_sql.model_dump(include={"instance", "database"}) if cloud_sql else None,
    }


def database_text(destination: dict[str, Any]) -> str:
    """The database of one of a placement's shards, in words."""
    secret, cloud_sql = destination["database_secret"], destination["cloud_sql"]
    parts = [f"database {cloud_sql['database']} of Cloud SQL instance {cloud_sql['instance']}"] if cloud_sql else []
    if secret:
        parts.append(f"secret {secret['name']}, key {secret['key']}")
    return "; ".join(parts)
