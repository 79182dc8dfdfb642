"""A desk on the fleet's subscriptions for the length of one command, and what its reading missed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shardctl.cli.terminal import NO_CREDENTIALS, say, waiting
from shardctl.errors import ShardctlError

MAX_SPOOL_BYTES = 8 * 1024**3


@dataclass(frozen=True, slots=True)
class Session:
    desk: Any
    outlet: Any
    counted: Count


@contextmanager
def opened(fleet: Any, *, strays: bool, wait_seconds: float) -> Iterator[Session]:
    """Everything that is held is handed back at the end, also when a signal ends the command."""
    from google.auth.exceptions import DefaultCredentialsError

    from shardctl.deadletter import pubsub
    from shardctl.deadletter.leasedreader import LeasedReader

    try:
        with pubsub.clients() as (publisher, subscriber):
            with waiting(f"Pub/Sub, project {fleet.project}"):
                names = pubsub.subscriptions(fleet, subscriber, strays=strays)
            counted = Count(fleet.project, names)
            exact = counted if os.environ.get("PUBSUB_EMULATOR_HOST") else lambda: None
            desk = LeasedReader(subscriber, fleet.project, names, left=exact, silence_seconds=wait_seconds, tell=say)
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


class Count:
    """How many messages the subscriptions hold, out or not. Asks until that is unknown, and says `why`; then never again."""

    def __init__(self, project: str, names: Sequence[str]) -> None:
        self._project, self._names = project, names
        self.why = ""

    def __call__(self) -> int | None:
        from shardctl.rebalance import backlog

        if self.why:
            return None
        try:
            backlogs = backlog.source(self._project)(self._names)
        except backlog.UnknownError as error:
            self.why = str(error)
            return None
        counts = [backlogs[name].messages if name in backlogs else None for name in self._names]
        if None in counts:
            self.why = "not every subscription is counted"
            return None
        return sum(count or 0 for count in counts)


def say_missed(session: Session, seen: int) -> None:
    """Whether there is more than was seen, and who may have it."""
    total = session.counted()
    if total is None:
        say(
            f"How many there are in all is unknown: {session.counted.why}. What others have under lease isn't seen here."
        )
    if not session.desk.whole:
        more = f" of {total:,}" if total is not None else ""
        say(f"Stopped after {seen:,} letters{more}: deal with these, and run it again for the rest.")
    elif total is not None and total > seen:
        say(
            f"{seen:,} of {total:,} messages were seen. Others have the rest under lease, or it was counted before it was gone: "
            "run it again in a minute."
        )
