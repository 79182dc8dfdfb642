"""`shardctl deadletter`: dead letters and strays: list, show, replay, drop. `--parked` is the old form of `shardctl parked`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardctl.cli.commandlist import CommandList
from shardctl.cli.deadletter import options
from shardctl.cli.deadletter.options import (
    AllOption,
    ArchiveOption,
    KeyOption,
    LimitOption,
    ParkedOption,
    ReasonOption,
    ShardOption,
    SinceOption,
    StraysOption,
    TypeOption,
    UntilOption,
    WaitOption,
)
from shardctl.cli.provision import DatabaseOption, given_urls
from shardctl.cli.terminal import DEFAULT_FILE, DryRunOption, FileOption, JsonOption, YesOption
from shardctl.errors import UsageError

app = typer.Typer(
    cls=CommandList, no_args_is_help=True, rich_markup_mode=None, help="Writes that failed and wait for an operator."
)

LISTED = 100

IdArgument = Annotated[str, typer.Argument(metavar="MESSAGE_ID", help="Of the letter, or of its original message.")]
IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[MESSAGE_ID]...", help="Of letters, or of their original messages.")
]


@app.command("list")
def list_(
    parked: ParkedOption = False,
    strays: StraysOption = False,
    of_type: TypeOption = None,
    shard: ShardOption = None,
    reason: ReasonOption = None,
    key: KeyOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help=f"List so many; {LISTED} letters if left out.")
    ] = None,
    archive: ArchiveOption = None,
    wait: WaitOption = options.DEFAULT_WAIT,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """List the letters, and count them by reason, type and shard. Deletes nothing."""
    from shardctl.cli.deadletter import look
    from shardctl.cli.parked import keys
    from shardctl.fleet.load import load_fleet

    options.refuse_both(parked=parked, strays=strays)
    choice = options.choice_of(of_type=of_type, shard=shard, reason=reason, key=key, since=since, until=until)
    if parked:
        options.refuse_for_parked(archive=archive)
        options.say_parked_moved("list")
        return keys.list_parked(file, database or (), choice, shard=shard, limit=limit, as_json=as_json)
    fleet = load_fleet(file)
    return look.list_letters(
        fleet, choice, strays=strays, limit=limit or LISTED, archive=archive, wait_seconds=wait, as_json=as_json
    )


@app.command()
def show(
    ident: IdArgument,
    parked: ParkedOption = False,
    strays: StraysOption = False,
    shard: ShardOption = None,
    wait: WaitOption = options.DEFAULT_WAIT,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show a letter: attributes, body, why it failed, and where it belongs now."""
    from shardctl.cli.deadletter import look
    from shardctl.cli.parked import keys
    from shardctl.fleet.load import load_fleet

    options.refuse_both(parked=parked, strays=strays)
    if parked:
        options.say_parked_moved("show")
        return keys.show_parked(file, database or (), ident, shard=shard, as_json=as_json)
    fleet = load_fleet(file)
    choice = options.choice_of([ident], shard=shard)
    given = given_urls(database or ())
    return look.show_letter(fleet, choice, given, strays=strays, wait_seconds=wait, as_json=as_json)


@app.command()
def replay(
    idents: IdsArgument = None,
    parked: ParkedOption = False,
    strays: StraysOption = False,
    every: AllOption = False,
    of_type: TypeOption = None,
    shard: ShardOption = None,
    reason: ReasonOption = None,
    key: KeyOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: LimitOption = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Read the letters from an archive, not from Pub/Sub.")
    ] = None,
    archive: ArchiveOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also writes that later writes of their key have overtaken.")
    ] = False,
    unrecorded: Annotated[
        bool, typer.Option("--unrecorded", help="Also where it is unknown whether the write took effect.")
    ] = False,
    unremembered: Annotated[
        bool,
        typer.Option("--unremembered", help="Also writes older than the inbox remembers: they may take effect twice."),
    ] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    wait: WaitOption = options.DEFAULT_WAIT,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Publish letters again, in order and with their own idempotency keys, and ack them."""
    from shardctl.cli.deadletter import act
    from shardctl.cli.parked import keys
    from shardctl.deadletter.inboxes import Allowed
    from shardctl.fleet.load import load_fleet

    options.refuse_both(parked=parked, strays=strays)
    ids = idents or []
    if parked:
        options.refuse_for_parked(
            key=key, since=since, until=until, limit=limit, archive=archive, overwrite=overwrite,
            unrecorded=unrecorded, unremembered=unremembered, dry_run=dry_run, **{"from": source},
        )  # fmt: skip
        options.say_parked_moved("release")
        return keys.release_parked(
            file, database or (), ids, reason, of_type, every=every, shard=shard, as_json=as_json
        )
    if strays and source:
        raise UsageError("--strays isn't for --from: the file says what each letter was.")
    choice = options.choice_of(ids, of_type=of_type, shard=shard, reason=reason, key=key, since=since, until=until)
    options.refuse_all_or_nothing(choice, every=every, what="replay")
    fleet = load_fleet(file)
    how = act.How(strays, limit, archive, source, wait, dry_run, yes, as_json)
    given = given_urls(database or ())
    allowed = Allowed(unrecorded=unrecorded, unremembered=unremembered, overtaken=overwrite)
    return act.replay_letters(fleet, choice, given, how, allowed)


@app.command()
def drop(
    idents: IdsArgument = None,
    parked: ParkedOption = False,
    strays: StraysOption = False,
    every: AllOption = False,
    of_type: TypeOption = None,
    shard: ShardOption = None,
    reason: ReasonOption = None,
    key: KeyOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: LimitOption = None,
    archive: ArchiveOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    wait: WaitOption = options.DEFAULT_WAIT,
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Delete letters permanently."""
    from shardctl.cli.deadletter import act
    from shardctl.cli.parked import keys
    from shardctl.fleet.load import load_fleet

    options.refuse_both(parked=parked, strays=strays)
    ids = idents or []
    if parked:
        options.refuse_for_parked(
            key=key,
            reason=reason,
            since=since,
            until=until,
            limit=limit,
            archive=archive,
            dry_run=dry_run,
        )
        options.say_parked_moved("drop")
        return keys.drop_parked(file, database or (), ids, of_type, every=every, yes=yes, shard=shard, as_json=as_json)
    choice = options.choice_of(ids, of_type=of_type, shard=shard, reason=reason, key=key, since=since, until=until)
    options.refuse_all_or_nothing(choice, every=every, what="drop")
    fleet = load_fleet(file)
    return act.drop_letters(fleet, choice, act.How(strays, limit, archive, None, wait, dry_run, yes, as_json))
