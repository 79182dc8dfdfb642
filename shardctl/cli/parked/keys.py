"""What `shardctl parked` does: keys found in their shards' databases, shown, released or dropped."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from shardctl.cli.deadletter.screen import clean
from shardctl.cli.provision import given_urls
from shardctl.cli.terminal import out, print_json, print_table, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, UsageError

Places = dict[str, Any]  # by shard: whose its database is, and the URL

SHOWN_BYTES = 300
SHOWN_IDS = 10


def list_parked(
    file: Path, database: Sequence[str], choice: Any, *, shard: str | None, limit: int | None, as_json: bool
) -> int:
    """Shard, slot, type, key, why, since when, and how many messages."""
    from shardctl.shard.parked import as_json as key_json

    chosen = [
        parked_key
        for parked_key in _parked_keys(_urls(file, database, shard), choice.key)
        if _chosen(parked_key, choice)
    ]
    listed = chosen[:limit]
    if as_json:
        print_json([key_json(key) for key in listed])
        return EXIT_DONE
    headers = ("shard", "slot", "type", "key", "type of fault", "messages", "parked for", "")
    rows = [
        (
            key.shard,
            str(key.slot),
            clean(key.message_type),
            clean(key.key),
            key.reason,
            f"{key.messages:,}",
            _age(key.parked_time),
            "released" if key.released else "",
        )
        for key in listed
    ]
    print_table(headers, rows, right=("slot", "messages"))
    more = f"; {len(listed):,} are listed" if len(listed) < len(chosen) else ""
    say(f"{len(chosen):,} parked keys, {sum(key.messages for key in chosen):,} messages{more}.")
    return EXIT_DONE


def show_parked(file: Path, database: Sequence[str], key: str, *, shard: str | None, as_json: bool) -> int:
    """A key's messages in order, the one that failed first."""
    from shardctl.shard import parked

    urls = _urls(file, database, shard)
    parked_keys = _parked_keys(urls, key)
    pairs = [(parked_key, _in_transaction(urls, parked_key, parked.messages)) for parked_key in parked_keys]
    if as_json:
        print_json([parked.as_json(parked_key, messages) for parked_key, messages in pairs])
    else:
        for parked_key, messages in pairs:
            _print(parked_key, messages)
    return EXIT_DONE if parked_keys else _not_there(key, urls)


def release_parked(
    file: Path,
    database: Sequence[str],
    keys: Sequence[str],
    reason: str | None,
    of_type: str | None,
    *,
    every: bool,
    shard: str | None,
    as_json: bool,
) -> int:
    """Let the consumer apply a key's messages again, in order. What fails again is parked again."""
    from shardctl import audit
    from shardctl.shard import parked

    if bool(keys) == every or len(keys) > 1 or (reason and not every):
        raise UsageError("give a KEY, or --all with or without --reason.")
    key = keys[0] if keys else None
    urls = _urls(file, database, shard)
    parked_keys = [parked_key for parked_key in _parked_keys(urls, key, of_type) if reason in (None, parked_key.reason)]
    if not parked_keys and key is not None:
        return _not_there(key, urls)
    if key is not None and (types := _types(parked_keys)):
        return _ambiguous(key, types)
    if parked_keys:
        audit.begin("parked release", _fleet(file).fleet, keys=[parked_key.key for parked_key in parked_keys])
    released = [parked_key for parked_key in parked_keys if _in_transaction(urls, parked_key, parked.replay)]
    if as_json:
        print_json([parked.as_json(parked_key) for parked_key in released])
    say(f"{len(released):,} keys released: their shard's consumer applies them within seconds.")
    return EXIT_DONE


def drop_parked(
    file: Path,
    database: Sequence[str],
    keys: Sequence[str],
    of_type: str | None,
    *,
    every: bool,
    yes: bool,
    shard: str | None,
    as_json: bool,
) -> int:
    """Delete the message that failed, and let the consumer continue with the ones behind it."""
    from shardctl import audit
    from shardctl.shard import parked

    if len(keys) != 1:
        raise UsageError("give one KEY: a parked key is dropped by itself.")
    (key,) = keys
    urls = _urls(file, database, shard)
    parked_keys = _parked_keys(urls, key, of_type)
    if not parked_keys:
        return _not_there(key, urls)
    if types := _types(parked_keys):
        return _ambiguous(key, types)
    for parked_key in parked_keys:
        ids = [message.message_id for message in _in_transaction(urls, parked_key, parked.messages)]
        doomed = ids if every else ids[:1]
        more = f" and {len(doomed) - SHOWN_IDS:,} more" if len(doomed) > SHOWN_IDS else ""
        say(
            f"shard {parked_key.shard}, slot {parked_key.slot}, type {parked_key.message_type}, key {parked_key.key} "
            f"({parked_key.reason}: {parked_key.detail}): delete {len(doomed):,} of {len(ids):,} messages: "
            f"{', '.join(doomed[:SHOWN_IDS])}{more}."
        )
    if not yes:
        say("Nothing was done. `shardctl parked show` prints them; add --yes to delete them permanently.")
        return EXIT_REFUSED
    audit.begin("parked drop", _fleet(file).fleet, keys=[parked_key.key for parked_key in parked_keys], every=every)
    drop = partial(parked.drop, every=every)
    dropped = [_in_transaction(urls, parked_key, drop) for parked_key in parked_keys]
    if as_json:
        counted = zip(parked_keys, dropped, strict=True)
        print_json([{**parked.as_json(parked_key), "dropped": count} for parked_key, count in counted])
    say(f"{sum(dropped):,} messages deleted. The shard's consumer continues with the rest.")
    return EXIT_DONE


def _chosen(key: Any, choice: Any) -> bool:
    at_us = key.parked_time.timestamp() * 1_000_000
    return (
        choice.reason in (None, key.reason)
        and choice.type in (None, key.message_type)
        and (choice.since_us is None or at_us >= choice.since_us)
        and (choice.until_us is None or at_us < choice.until_us)
    )


def _fleet(file: Path) -> Any:
    from shardctl.fleet.load import load_fleet

    return load_fleet(file)


def _urls(file: Path, database: Sequence[str], shard: str | None) -> Places:
    from shardctl.provision import database_urls
    from shardctl.shard.membership import Membership

    fleet = _fleet(file)
    if shard is not None:
        fleet = fleet.model_copy(update={"shards": (fleet.shard(shard),)})
    urls = database_urls(fleet, given_urls(database), os.environ, otherwise="--shard S looks at one shard")
    return {name: (Membership(fleet.fleet, name), url) for name, url in urls.items()}


def _parked_keys(urls: Places, key: str | None, of_type: str | None = None) -> list[Any]:
    from shardctl.shard import parked

    parked_keys: list[Any] = []
    for shard, place in urls.items():
        with parked.opened(*place, reading=True) as connection:
            parked_keys += parked.keys(connection, shard, key)
    return [parked_key for parked_key in parked_keys if of_type in (None, parked_key.message_type)]


def _types(parked_keys: Sequence[Any]) -> list[str]:
    """The message types to choose from; none where there is only one."""
    types = sorted({parked_key.message_type for parked_key in parked_keys})
    return types if len(types) > 1 else []


def _ambiguous(key: str, types: Sequence[str]) -> int:
    say(f"error: key {key!r} is parked for several message types: {', '.join(types)}. Choose one with --type.")
    return EXIT_REFUSED


def _in_transaction(urls: Places, key: Any, work: Callable[[Any, Any], Any]) -> Any:
    from shardctl.shard import parked

    with parked.opened(*urls[key.shard]) as connection:
        return work(connection, key)


def _not_there(key: str, urls: Places) -> int:
    say(f"error: key {key!r} isn't parked in: {', '.join(urls)}. `shardctl parked list` lists what is.")
    return EXIT_REFUSED


def _print(key: Any, messages: Any) -> None:
    released = ", released" if key.released else ""
    out(f"shard {key.shard}, slot {key.slot}, type {key.message_type}, key {key.key}: {key.reason}: {key.detail}")
    out(f"parked {_age(key.parked_time)} ago, {len(messages):,} messages{released}")
    for message in messages:
        at = message.publish_time.isoformat(timespec="milliseconds")
        out(f"\n{message.message_id}  {at}  {message.message_type}  {message.operation}  {message.idempotency_key}")
        shown = message.body[:SHOWN_BYTES].decode(errors="replace")
        more = len(message.body) - SHOWN_BYTES
        out(f"  {clean(shown, SHOWN_BYTES)}" + (f"… and {more:,} bytes more (--json prints all)" if more > 0 else ""))


def _age(since: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
