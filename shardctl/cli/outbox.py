"""`shardctl outbox`: the tables of an application's outbox, and its writes that Pub/Sub refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardctl.cli.commandlist import CommandList
from shardctl.cli.terminal import JsonOption, YesOption, out, print_json, print_table, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, UsageError

if TYPE_CHECKING:
    from shardctl.outbox.queue import Queue

app = typer.Typer(
    cls=CommandList,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="An application's outbox, in the database that SHARDCTL_OUTBOX_DATABASE_URL names.",
)

MAX_NUMBER = 2**63 - 1  # that a database takes

PositionsArgument = Annotated[
    list[int] | None,
    typer.Argument(metavar="POSITION", min=1, max=MAX_NUMBER, help="As `shardctl outbox list` shows them."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Every refused write.")]


@app.command()
def create() -> int:
    """Make the outbox's tables where they are missing. Safe to run again."""
    from shardctl import audit
    from shardctl.outbox.queue import Queue
    from shardctl.shard import outboxtables
    from shardctl.shard.database import writing

    audit.begin("outbox create", "")
    with _engine() as engine:
        with writing(engine) as connection:
            outboxtables.create(connection)
        Queue(engine).check()
    say("The outbox is there.")
    return EXIT_DONE


@app.command("list")
def list_(
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, max=MAX_NUMBER, help="List at most this many.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """List the writes that Pub/Sub refused, oldest first: they are kept until you retry or drop them."""
    from shardctl.outbox import refusals

    with _queue() as (engine, queue):
        backlog, refused = queue.backlog(), refusals.listed(engine, limit)
    if as_json:
        print_json(
            {
                "waiting": backlog.rows,
                "oldest_seconds": backlog.oldest_seconds,
                "behind_refused": backlog.behind,
                "refused": [
                    {
                        "position": row.position, "slot": row.slot, "attributes": dict(row.attributes),
                        "enqueued_time": row.enqueued_time and row.enqueued_time.isoformat(),
                        "reason": row.reason, "behind": row.behind,
                    }
                    for row in refused
                ],
            }
        )  # fmt: skip
        return EXIT_DONE
    rows = [
        (
            str(row.position),
            str(row.slot),
            f"{row.behind:,}",
            " ".join(f"{name}={value}" for name, value in row.attributes.items()),
            row.reason,
        )
        for row in refused
    ]
    if rows:
        print_table(("position", "slot", "behind", "attributes", "reason"), rows, right=("position", "slot", "behind"))
    behind = f"; {backlog.behind:,} of them behind refused ones" if backlog.behind else ""
    say(f"{backlog.refused:,} refused; {backlog.rows:,} wait, the oldest for {backlog.oldest_seconds:.0f} s{behind}.")
    return EXIT_DONE


@app.command()
def retry(positions: PositionsArgument = None, every: AllOption = False) -> int:
    """Let refused writes be published after all, and then those that wait behind them."""
    return _change(positions, "retry", every=every, yes=True)


@app.command()
def drop(positions: PositionsArgument = None, every: AllOption = False, yes: YesOption = False) -> int:
    """Delete refused writes for good. Those that wait behind them are published."""
    return _change(positions, "drop", every=every, yes=yes)


def _change(positions: list[int] | None, verb: str, *, every: bool, yes: bool) -> int:
    from shardctl import audit
    from shardctl.outbox import refusals

    if bool(positions) == every:
        raise UsageError("name positions, as `shardctl outbox list` shows them, or --all.")
    with _queue() as (engine, _):
        if not yes:
            refused = [row for row in refusals.listed(engine) if every or row.position in (positions or ())]
            out("\n".join(f"{row.position}: {row.reason}" for row in refused) or "nothing")
            say(f"Nothing was done. {len(refused):,} would be deleted; add --yes to do it.")
            _outcome(positions, len(refused))
            return EXIT_REFUSED
        audit.begin(f"outbox {verb}", "", positions=positions or "all")
        count = (refusals.retry if verb == "retry" else refusals.drop)(engine, positions or None)
    say(f"{count:,} writes {'are to be published' if verb == 'retry' else 'deleted'}.")
    return _outcome(positions, count)


def _outcome(positions: list[int] | None, count: int) -> int:
    lacking = len(set(positions or ())) - count
    if lacking > 0:
        say(f"error: {lacking:,} of these positions hold no refused write.")
        return EXIT_REFUSED
    return EXIT_DONE


@contextmanager
def _engine() -> Iterator[Any]:
    from shardctl.relay.process import database_of

    engine = database_of(os.environ)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _queue() -> Iterator[tuple[Any, Queue]]:
    from shardctl.outbox.queue import Queue

    with _engine() as engine:
        queue = Queue(engine)
        queue.check()
        yield engine, queue
