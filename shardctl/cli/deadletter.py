"""`shardctl deadletter`: keys that are parked behind a write that failed: list, show, replay, drop."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from shardctl.cli.provision import given_urls
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, print_json, print_table, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, UsageError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Writes that failed and wait for a person.")

SHOWN_BYTES = 300
SHOWN_IDS = 10

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The routing key.")]
ParkedOption = Annotated[bool, typer.Option("--parked", help="Keys that wait in their shard's database.")]
ShardOption = Annotated[str | None, typer.Option("--shard", metavar="S", help="Only this shard; else all.")]
DatabaseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--database",
        metavar="SHARD=URL",
        help="A shard's database; may be repeated. Else SHARDCTL_DATABASE_URL_<SHARD>, which keeps the password out "
        "of the process list.",
    ),
]


@app.command("list")
def list_(
    parked: ParkedOption = False,
    shard: ShardOption = None,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """List what waits: shard, slot, key, why, since when, and how many messages."""
    from shardctl.parked import as_json as told

    found = _found(_urls(file, database, shard, parked=parked), None)
    if as_json:
        print_json([told(key) for key in found])
        return EXIT_DONE
    headers = ("shard", "slot", "key", "type of fault", "messages", "parked for", "")
    rows = [
        (
            key.shard,
            str(key.slot),
            key.key,
            key.reason,
            f"{key.messages:,}",
            _age(key.parked_time),
            "released" if key.released else "",
        )
        for key in found
    ]
    print_table(headers, rows, right=("slot", "messages"))
    say(f"{len(found):,} parked keys, {sum(key.messages for key in found):,} messages.")
    return EXIT_DONE


@app.command()
def show(
    key: KeyArgument,
    parked: ParkedOption = False,
    shard: ShardOption = None,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show a key's messages in order, the one that failed first."""
    from shardctl import parked as of

    urls = _urls(file, database, shard, parked=parked)
    found = _found(urls, key)
    told = [_in_transaction(urls, each, of.messages) for each in found]
    if as_json:
        print_json([of.as_json(each, messages) for each, messages in zip(found, told, strict=True)])
    else:
        for each, messages in zip(found, told, strict=True):
            _print(each, messages)
    return EXIT_DONE if found else _not_there(key, urls)


@app.command()
def replay(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="The routing key; or --all.")] = None,
    parked: ParkedOption = False,
    every: Annotated[bool, typer.Option("--all", help="Every parked key.")] = False,
    reason: Annotated[str | None, typer.Option("--reason", metavar="R", help="With --all: only keys with R.")] = None,
    shard: ShardOption = None,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Let the consumer apply a key's messages again, in order. What fails again is parked again."""
    from shardctl import parked as of

    if (key is None) != every or (reason and not every):
        raise UsageError("give a KEY, or --all with or without --reason.")
    urls = _urls(file, database, shard, parked=parked)
    found = [each for each in _found(urls, key) if reason in (None, each.reason)]
    if not found and key is not None:
        return _not_there(key, urls)
    released = [each for each in found if _in_transaction(urls, each, of.replay)]
    if as_json:
        print_json([of.as_json(each) for each in released])
    say(f"{len(released):,} keys released: their shard's consumer applies them within seconds.")
    return EXIT_DONE


@app.command()
def drop(
    key: KeyArgument,
    parked: ParkedOption = False,
    every: Annotated[bool, typer.Option("--all", help="Every message of the key, not the first alone.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without it, only tell what would be done.")] = False,
    shard: ShardOption = None,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Delete the message that failed, and let the consumer go on with the ones behind it."""
    from shardctl import parked as of

    urls = _urls(file, database, shard, parked=parked)
    found = _found(urls, key)
    if not found:
        return _not_there(key, urls)
    for each in found:
        ids = [message.message_id for message in _in_transaction(urls, each, of.messages)]
        doomed = ids if every else ids[:1]
        more = f" and {len(doomed) - SHOWN_IDS:,} more" if len(doomed) > SHOWN_IDS else ""
        say(
            f"shard {each.shard}, slot {each.slot}, key {each.key} ({each.reason}: {each.detail}): delete {len(doomed):,} of "
            f"{len(ids):,} messages: {', '.join(doomed[:SHOWN_IDS])}{more}."
        )
    if not yes:
        say("Nothing was done. `shardctl deadletter show` prints them; add --yes to delete them for good.")
        return EXIT_REFUSED
    dropped = [
        _in_transaction(urls, each, lambda connection, one: of.drop(connection, one, every=every)) for each in found
    ]
    if as_json:
        print_json([{**of.as_json(each), "dropped": count} for each, count in zip(found, dropped, strict=True)])
    say(f"{sum(dropped):,} messages deleted. The shard's consumer goes on with what is left.")
    return EXIT_DONE


def _urls(file: Any, database: list[str] | None, shard: str | None, *, parked: bool) -> dict[str, str]:
    from shardctl import spec
    from shardctl.provision import database_urls

    if not parked:
        raise UsageError("so far this works on parked keys alone: give --parked.")
    fleet = spec.load(file)
    if shard is not None:
        fleet = fleet.model_copy(update={"shards": (fleet.shard(shard),)})
    return database_urls(fleet, given_urls(database or ()), os.environ, otherwise="--shard S looks at one shard")


def _found(urls: dict[str, str], key: str | None) -> list[Any]:
    from shardctl import parked

    found: list[Any] = []
    for shard, url in urls.items():
        with parked.opened(shard, url) as connection:
            found += parked.keys(connection, shard, key)
    return found


def _in_transaction(urls: dict[str, str], key: Any, work: Callable[[Any, Any], Any]) -> Any:
    from shardctl import parked

    with parked.opened(key.shard, urls[key.shard]) as connection:
        return work(connection, key)


def _not_there(key: str, urls: dict[str, str]) -> int:
    say(f"error: key {key!r} isn't parked in: {', '.join(urls)}. `shardctl deadletter list --parked` lists what is.")
    return EXIT_REFUSED


def _print(key: Any, messages: Any) -> None:
    released = ", released" if key.released else ""
    print(f"shard {key.shard}, slot {key.slot}, key {key.key}: {key.reason}: {key.detail}")
    print(f"parked {_age(key.parked_time)} ago, {len(messages):,} messages{released}")
    for message in messages:
        at = message.publish_time.isoformat(timespec="milliseconds")
        print(f"\n{message.message_id}  {at}  {message.message_type}  {message.operation}  {message.idempotency_key}")
        shown = message.body[:SHOWN_BYTES].decode(errors="replace")
        more = len(message.body) - SHOWN_BYTES
        print(f"  {shown}" + (f"… and {more:,} bytes more (--json prints all)" if more > 0 else ""))


def _age(since: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
