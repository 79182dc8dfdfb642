"""`shardctl route`: where a key's writes go."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, print_json, print_table, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, UsageError


def route(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The routing key, such as a user's or an order's id.")],
    message_type: Annotated[str | None, typer.Option("--type", metavar="T", help="Only writes of this type.")] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="RFC 3339 time, for types routed by time.")
    ] = None,
    file: FileOption = DEFAULT_FILE,
    as_json: JsonOption = False,
) -> int:
    """Show a key's slot, topic, shard, subscriptions and database."""
    from shardctl.fleet import topology
    from shardctl.fleet.keyspace import digits_of
    from shardctl.fleet.load import load_fleet

    fleet = load_fleet(file)
    if message_type is not None and message_type not in fleet.message_types:
        return _unknown_type(fleet, message_type)
    slot = _slot(fleet, key, message_type, at)
    owners = [
        shard for shard in fleet.shards if slot in shard.slots and (message_type is None or shard.takes(message_type))
    ]
    topic = topology.topic_of(fleet, slot)
    placement = {
        "key": key,
        "type": message_type,
        "slot": slot,
        "digits": digits_of(slot, fleet.routing.slot_bits),
        "topic": topic.id,
        "shards": [
            {
                "name": shard.name,
                "types": [name for name in fleet.message_types if shard.takes(name)],
                "subscription": next(s.id for s in topology.subscriptions(fleet, shard) if s.topic == topic),
                **_database(fleet, shard),
            }
            for shard in owners
        ],
    }
    if as_json:
        print_json(placement)
    else:
        _print(placement)
    return EXIT_DONE


def _database(fleet: Any, shard: Any) -> dict[str, Any]:
    from shardctl.fleet import cloudsql, topology

    secret, cloud_sql = topology.database_secret(fleet, shard), cloudsql.instance_of(shard)
    return {
        "database_secret": secret.model_dump(include={"name", "key"}) if secret else None,
        "cloud_sql": cloud_sql.model_dump(include={"instance", "database"}) if cloud_sql else None,
    }


def _slot(fleet: Any, key: str, message_type: str | None, at: str | None) -> int:
    from shardctl.wire.message import InvalidWriteError, check_key, slot_for

    kind = fleet.message_types.get(message_type)
    by_time = kind.time_bucket if kind else None
    if by_time is None and at is not None:
        raise UsageError("--at is for types routed by time; give such a type with --type.")
    if by_time is not None and at is None:
        raise UsageError(
            f"type {message_type} is routed by the {by_time.unit} of {by_time.field}: give it with --at, "
            "such as --at 2026-01-31T12:00:00Z."
        )
    try:
        check_key("KEY", key)
        return slot_for(kind, key, {by_time.field: at} if by_time else {}, fleet.routing.rule)
    except InvalidWriteError as error:
        raise UsageError(f"{error}.") from error


def _unknown_type(fleet: Any, message_type: str) -> int:
    from shardctl.fleet import topology
    from shardctl.fleet.suggestion import suggestion

    known = ", ".join(fleet.message_types)
    if topology.takes_every_type(fleet):
        near = suggestion(message_type, fleet.message_types)
        raise UsageError(f"type {message_type!r} isn't among message_types: {known}.{near}")
    strays = ", ".join(stray.id for stray in topology.strays(fleet))
    say(f"error: no shard takes type {message_type!r}: its messages are strays, kept by {strays}. Types: {known}.")
    return EXIT_REFUSED


def _print(placement: dict[str, Any]) -> None:
    rows = [("slot", f"{placement['slot']} ({placement['digits']})"), ("topic", placement["topic"])]
    for shard in placement["shards"]:
        rows += [
            ("shard", f"{shard['name']} (types: {', '.join(shard['types'])})"),
            ("subscription", shard["subscription"]),
            ("database", _database_text(shard["database_secret"], shard["cloud_sql"])),
        ]
    print_table(("key", placement["key"]), rows)


def _database_text(secret: dict[str, str] | None, cloud_sql: dict[str, str] | None) -> str:
    parts = [f"database {cloud_sql['database']} of Cloud SQL instance {cloud_sql['instance']}"] if cloud_sql else []
    if secret:
        parts.append(f"secret {secret['name']}, key {secret['key']}")
    return "; ".join(parts)
