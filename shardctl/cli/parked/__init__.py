"""`shardctl parked`: keys that wait behind a write that failed: list, show, release, drop."""

from __future__ import annotations

from typing import Annotated

import typer

from shardctl.cli.commandlist import CommandList
from shardctl.cli.deadletter import options
from shardctl.cli.deadletter.options import (
    AllOption,
    KeyOption,
    ReasonOption,
    ShardOption,
    SinceOption,
    TypeOption,
    UntilOption,
)
from shardctl.cli.provision import DatabaseOption
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, YesOption

app = typer.Typer(
    cls=CommandList, no_args_is_help=True, rich_markup_mode=None, help="Keys that wait behind a write that failed."
)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="A routing key.")]


@app.command("list")
def list_(
    of_type: TypeOption = None,
    shard: ShardOption = None,
    reason: ReasonOption = None,
    key: KeyOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="List at most this many.")] = None,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """List the parked keys of every shard: why each is parked, since when, and how many messages wait."""
    from shardctl.cli.parked import keys

    choice = options.choice_of(of_type=of_type, shard=shard, reason=reason, key=key, since=since, until=until)
    return keys.list_parked(file, database or (), choice, shard=shard, limit=limit, as_json=as_json)


@app.command()
def show(
    key: KeyArgument,
    shard: ShardOption = None,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show a key's messages in order, the one that failed first."""
    from shardctl.cli.parked import keys

    return keys.show_parked(file, database or (), key, shard=shard, as_json=as_json)


@app.command()
def release(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="A routing key.")] = None,
    every: AllOption = False,
    of_type: TypeOption = None,
    shard: ShardOption = None,
    reason: ReasonOption = None,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Let the consumer apply a key's messages again, in order. What fails again is parked again."""
    from shardctl.cli.parked import keys

    chosen = [] if key is None else [key]
    return keys.release_parked(file, database or (), chosen, reason, of_type, every=every, shard=shard, as_json=as_json)


@app.command()
def drop(
    key: KeyArgument,
    every: Annotated[bool, typer.Option("--all", help="Every message of the key, not only the first.")] = False,
    of_type: TypeOption = None,
    shard: ShardOption = None,
    yes: YesOption = False,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Delete the message that failed permanently; the consumer continues with the ones behind it."""
    from shardctl.cli.parked import keys

    return keys.drop_parked(file, database or (), [key], of_type, every=every, yes=yes, shard=shard, as_json=as_json)
