"""A reader of the fleet's subscriptions for one command, and a report of what it missed."""

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
    """All leases are released at the end, also when a signal ends the command."""
    from google.auth.exceptions import DefaultCredentialsError

    from shardctl.deadletter import pubsub
    from shardctl.deadletter.leasedreader import LeasedReader

    try:
        with pubsub.clients(fleet.topic.endpoint) as (publisher, subscriber):
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
        say(
            f"{desk.unreturned:,} letters couldn't be returned: they are delivered again within {desk.lease_seconds} s."
        )


@contextmanager
def outlet_alone(fleet: Any) -> Iterator[Any]:
    """To publish letters that aren't on a subscription."""
    from google.auth.exceptions import DefaultCredentialsError

    from shardctl.deadletter import pubsub

    try:
        with pubsub.clients(fleet.topic.endpoint) as (publisher, _):
            yield pubsub.Outlet(publisher, fleet.project)
    except DefaultCredentialsError as error:
        raise ShardctlError(NO_CREDENTIALS) from error


class Count:
    """How many messages the subscriptions hold, out or not. After a failure, which `why` explains, it doesn't ask again."""

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
    """Report whether there are more letters than were seen, and who may have them."""
    total = session.counted()
    if total is None:
        say(f"The total is unknown: {session.counted.why}. Letters that other readers have leased aren't seen here.")
    if not session.desk.whole:
        more = f" of {total:,}" if total is not None else ""
        say(f"Stopped after {seen:,} letters{more}: process these, and run it again for the rest.")
    elif total is not None and total > seen:
        say(
            f"{seen:,} of {total:,} messages were seen. Other readers have leased the rest, or it was counted before its ack: "
            "run it again in a minute."
        )
