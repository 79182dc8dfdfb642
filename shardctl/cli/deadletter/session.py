"""A desk on the fleet's subscriptions for the length of one command, and what its reading missed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shardctl.cli.terminal import NO_CREDENTIALS, say
from shardctl.errors import ShardctlError

MAX_SPOOL_BYTES = 8 * 1024**3


@dataclass(frozen=True, slots=True)
class Session:
    desk: Any
    outlet: Any
    counted: Callable[[], int | None]  # messages in the subscriptions, as far as anybody knows


@contextmanager
def opened(fleet: Any, *, strays: bool, wait_seconds: float) -> Iterator[Session]:
    """Everything that is held is handed back at the end, also when a signal ends the command."""
    from google.auth.exceptions import DefaultCredentialsError

    from shardctl.deadletter import pubsub
    from shardctl.deadletter.desk import Desk

    try:
        with pubsub.clients() as (publisher, subscriber):
            names = pubsub.subscriptions(fleet, subscriber, strays=strays)
            counted = _counted(fleet.project, names)
            exact = counted if os.environ.get("PUBSUB_EMULATOR_HOST") else lambda: None
            desk = Desk(subscriber, fleet.project, names, left=exact, silence_seconds=wait_seconds)
            with desk:
                yield Session(desk, pubsub.Outlet(publisher, fleet.project), counted)
    except DefaultCredentialsError as error:
        raise ShardctlError(NO_CREDENTIALS) from error
    if desk.unreturned:
        say(f"{desk.unreturned:,} letters couldn't be handed back: they are seen again within {desk.lease_seconds} s.")


@contextmanager
def outlet_alone(fleet: Any) -> Iterator[Any]:
    """To publish what doesn't lie on a subscription."""
    from google.auth.exceptions import DefaultCredentialsError

    from shardctl.deadletter import pubsub

    try:
        with pubsub.clients() as (publisher, _):
            yield pubsub.Outlet(publisher, fleet.project)
    except DefaultCredentialsError as error:
        raise ShardctlError(NO_CREDENTIALS) from error


def _counted(project: str, names: Sequence[str]) -> Callable[[], int | None]:
    """Asks until nobody can tell; then never again."""
    from shardctl.rebalance import backlog

    nobody_knows = False

    def counted() -> int | None:
        nonlocal nobody_knows
        if nobody_knows:
            return None
        try:
            found = backlog.source(project)(names)
            total = [found[name].messages for name in names]
        except (backlog.UnknownError, KeyError):
            nobody_knows = True
            return None
        return None if None in total else sum(each or 0 for each in total)

    return counted


def say_missed(session: Session, seen: int) -> None:
    """Whether there is more than was seen, and who may have it."""
    total = session.counted()
    if not session.desk.whole:
        more = f" of {total:,}" if total is not None else ""
        say(f"Stopped after {seen:,} letters{more}: deal with these, and run it again for the rest.")
    elif total is not None and total > seen:
        say(
            f"{seen:,} of {total:,} messages were seen. Others have the rest under lease, or it was counted before it was gone: "
            "run it again in a minute."
        )
