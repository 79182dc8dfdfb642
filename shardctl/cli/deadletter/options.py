"""The options that the verbs share, and the choice that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from shardctl.cli.terminal import say
from shardctl.errors import UsageError

ParkedOption = Annotated[bool, typer.Option("--parked", help="Deprecated: use `shardctl parked`.")]
StraysOption = Annotated[bool, typer.Option("--strays", help="Messages that no shard takes, instead of dead letters.")]
TypeOption = Annotated[str | None, typer.Option("--type", metavar="T", help="Only this message type.")]
ShardOption = Annotated[str | None, typer.Option("--shard", metavar="S", help="Only this shard; else all.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="R", help="Only what failed with reason R.")]
KeyOption = Annotated[str | None, typer.Option("--key", metavar="KEY", help="Only this routing key.")]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Failed since: 2h or 3d ago, or an RFC 3339 time.")
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Failed before: likewise.")]
AllOption = Annotated[bool, typer.Option("--all", help="All letters.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="At most this many, the oldest writes first.")
]
ArchiveOption = Annotated[
    Path | None,
    typer.Option("--archive", metavar="FILE", help="Append each message to FILE as a line of JSON, durably, before."),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0.1,
        max=600,
        help="Stop after this time without a letter.",
    ),
]
DEFAULT_WAIT = 5.0


def choice_of(
    ids: Sequence[str] = (),
    *,
    of_type: str | None = None,
    shard: str | None = None,
    reason: str | None = None,
    key: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Any:
    """Raises UsageError for invalid times."""
    from datetime import UTC, datetime

    from shardctl.deadletter.choice import Choice, moment_us

    now = datetime.now(UTC)
    return Choice(
        frozenset(ids),
        type=of_type,
        shard=shard,
        reason=reason,
        key=key,
        since_us=moment_us("--since", since, now),
        until_us=moment_us("--until", until, now),
    )


def say_parked_moved(verb: str) -> None:
    say(f"--parked is deprecated and will be removed in the next release: use `shardctl parked {verb}`.")


def refuse_both(*, parked: bool, strays: bool) -> None:
    if parked and strays:
        raise UsageError("--parked and --strays exclude each other.")


def refuse_for_parked(**given: object) -> None:
    """Raise UsageError naming the first given option that doesn't apply to parked keys."""
    for name, value in given.items():
        if value not in (None, False, (), []):
            raise UsageError(f"--{name.replace('_', '-')} isn't for parked keys: leave it out, or leave out --parked.")


def refuse_all_or_nothing(choice: Any, *, every: bool, what: str) -> None:
    """A command that changes something must be given the letters."""
    from shardctl.deadletter.choice import Choice

    chosen = choice != Choice()
    if chosen == every:
        raise UsageError(
            f"give a MESSAGE_ID, a filter such as --reason or --type, or --all, to say what to {what}."
            if not every
            else "--all and a filter exclude each other."
        )
