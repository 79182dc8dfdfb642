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
    from shardctl.fleet.load import load_fleet
    from shardctl.wire.placement import placement

    fleet = load_fleet(file)
    if message_type is not None and message_type not in fleet.message_types:
        return _unknown_type(fleet, message_type)
    place = placement(fleet, key, message_type, _slot(fleet, key, message_type, at))
    if as_json:
        print_json(place)
    else:
        _print(place)
    return EXIT_DONE


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


def _print(place: dict[str, Any]) -> None:
    from shardctl.wire.placement import database_text

    rows = [("slot", f"{place['slot']} ({place['digits']})"), ("topic", place["topic"])]
    for shard in place["shards"]:
        rows += [
            ("shard", f"{shard['name']} (types: {', '.join(shard['types'])})"),
            ("subscription", shard["subscription"]),
            ("database", database_text(shard)),
        ]
    print_table(("key", place["key"]), rows)
