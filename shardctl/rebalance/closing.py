"""Closing a rebalance: by finishing what is handed over, or by aborting what has not begun."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from google.api_core.exceptions import GoogleAPICallError, NotFound, RetryError
from sqlalchemy import Engine

from shardctl.errors import ShardctlError
from shardctl.fleet import topology
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet, Shard
from shardctl.outbox import queue
from shardctl.provision import TIMEOUT_SECONDS
from shardctl.rebalance import bases, handover, journal, preflight
from shardctl.rebalance.backlog import UNKNOWN, Backlog
from shardctl.rebalance.handover import Stage, kinds_of
from shardctl.rebalance.preflight import Known
from shardctl.rebalance.rows import removal
from shardctl.shard import changes, lanes, membership
from shardctl.shard.database import snapshot, writing
from shardctl.shard.membership import Membership
from shardctl.shard.schema import LaneState, RebalanceState


class PubSubError(ShardctlError):
    """Pub/Sub didn't do what was asked of it. What was done stays; the command may run again."""


def stop(fleet: Fleet, databases: Mapping[str, Engine]) -> None:
    """From its return on no slot becomes due any more, in any executor."""
    for shard in handover.participating(fleet):
        with writing(databases[shard.name]) as connection:
            journal.stop(connection, fleet)


def begin_finish(fleet: Fleet, databases: Mapping[str, Engine]) -> None:
    """From its return on nothing leads back. Comes before the first deletion. Raises JournalError where an abort came first.

    An abort asks the databases in the same order, so of the two only one gets past the first, which decides.
    """
    for place, shard in enumerate(handover.participating(fleet)):
        with writing(databases[shard.name]) as connection:
            journal.begin_finish(connection, fleet, decided=place > 0)


def close(fleet: Fleet, databases: Mapping[str, Engine], state: RebalanceState) -> None:
    """Nothing is logged for a copy any more, and what was copied of slots that stay where they are is deleted.

    The database of a shard that is gone belongs to nobody any more. An abort leaves what the way back needs: what slots left
    behind, and the logs of what changed since.
    """
    for shard in handover.participating(fleet):
        for slot, generation in bases.there(databases[shard.name]):
            bases.discard(databases[shard.name], kinds_of(fleet, shard.name), slot, generation)
    for shard in handover.participating(fleet):
        with writing(databases[shard.name]) as connection:
            journal.close(connection, fleet, state)
            if state == RebalanceState.DONE and not shard.slots.ranges:
                membership.release(connection, Membership(fleet.fleet, shard.name))
    for shard in handover.participating(fleet):
        changes.empty(databases[shard.name])


def not_handed_over(fleet: Fleet, known: Mapping[str, Known]) -> Iterator[str]:
    """Why it can't be finished yet."""
    views = {name: report.lanes for name, report in known.items()}
    for name, report in known.items():
        if journal.entry_of(fleet, report.entries) is None:
            yield f"shard {name}: the rebalance was never opened there. `shardctl rebalance start` opens it."
    standings = [(hand_over, handover.standing(hand_over, views)) for hand_over in handover.hand_overs(fleet)]
    left = SlotSet.of(hand_over.slot for hand_over, standing in standings if standing.stage != Stage.ARRIVED)
    if left.ranges:
        yield f"{len(left):,} slots aren't handed over: {left}. `shardctl rebalance run` does it."
    twice = [fault for hand_over, _ in standings if (fault := handover.twice_active(hand_over, views))]
    twice += [
        f"slot {slot} is active in {place}, which the file doesn't list"
        for place, slot in handover.unexpected(fleet, views)
    ]
    for fault in twice[: preflight.MAX_SHOWN]:
        yield f"{fault}. Deleting would lose writes: find out which is right before anything else."


def last_barrier_us(known: Mapping[str, Known]) -> int:
    """When the last slot changed lanes, on Pub/Sub's clock."""
    active = (lane for report in known.values() for lane in report.lanes.values() if lane.state == LaneState.ACTIVE)
    return max((lane.barrier_time_us or 0 for lane in active), default=0)


def kept_until(known: Mapping[str, Known], keep: timedelta) -> datetime | None:
    """Until when the sources keep what slots left behind: for so long after the last slot moved. None once that is over.

    By the clock of the database that is behind the others: nobody knows better what the time is where the rows are.
    """
    until = datetime.fromtimestamp(last_barrier_us(known) / 1_000_000, UTC) + keep
    now = min((report.now for report in known.values() if report.now), default=None)
    return None if keep <= timedelta(0) or (now is not None and now >= until) else until


def not_drained(
    subscriptions: Sequence[str], backlogs: Mapping[str, Backlog], barrier_time_us: int, why_unknown: str
) -> tuple[list[str], list[str]]:
    """Reasons against deleting old subscriptions that are known for sure, and those that are only not known to be untrue."""
    sure, unsure = [], []
    for name in subscriptions:
        drained = backlogs.get(name, UNKNOWN).drained(barrier_time_us)
        if drained is False:
            count = backlogs[name].messages or 0
            sure.append(
                f"subscription {name} still holds messages from before the last barrier ({count:,} in all). Its consumers "
                "have to be up: wait until they have processed them."
            )
        elif drained is None:
            why = (
                why_unknown
                or "there is no count from after the last barrier, which takes Cloud Monitoring some minutes"
            )
            unsure.append(
                f"subscription {name}: not known to be empty, since {why}. Try again, or check it yourself and pass --drained."
            )
    return sure, unsure


def there(subscriber: Any, fleet: Fleet, names: Sequence[str]) -> list[str]:
    """Those of the subscriptions that exist. Raises PubSubError."""
    existing = []
    with _translated(fleet):
        for name in names:
            try:
                subscriber.get_subscription(request={"subscription": _path(fleet, name)}, timeout=TIMEOUT_SECONDS)
            except NotFound:
                continue
            existing.append(name)
    return existing


def old_strays(fleet: Fleet, publisher: Any) -> list[str]:
    """Subscriptions for strays that the settled fleet has under other names, since their filters change."""
    wanted = {stray.id for stray in topology.strays(fleet.settled())}
    strays = set()
    with _translated(fleet):
        for topic in topology.topics(fleet):
            request = {"topic": f"projects/{fleet.project}/topics/{topic.id}"}
            for path in publisher.list_topic_subscriptions(request=request, timeout=TIMEOUT_SECONDS):
                name = path.rpartition("/")[2]
                if topology.is_strays(fleet, name) and name not in wanted:
                    strays.add(name)
    return sorted(strays)


def delete_subscriptions(subscriber: Any, fleet: Fleet, names: Sequence[str], done: Callable[[str], None]) -> None:
    """Those that are gone already are fine. Raises PubSubError."""
    with _translated(fleet):
        for name in names:
            try:
                subscriber.delete_subscription(request={"subscription": _path(fleet, name)}, timeout=TIMEOUT_SECONDS)
            except NotFound:
                continue
            done(f"deleted subscription {name}")


def left_behind(shard: Shard, known: Known) -> SlotSet:
    """Slots that some generation of the shard had, and that aren't active in its database."""
    had = shard.slots
    for former in shard.previous or ():
        had |= former.slots
    return had - preflight.active_slots(known)


def not_deletable(fleet: Fleet, databases: Mapping[str, Engine], known: Mapping[str, Known]) -> Iterator[str]:
    """Why rows that are left behind can't be deleted: what was fit when it began may have changed since."""
    for shard in handover.participating(fleet):
        if left_behind(shard, known[shard.name]).ranges:
            for reason in removal.not_deletable(databases[shard.name], kinds_of(fleet, shard.name)):
                yield f"shard {shard.name}: {reason}"


def not_published(fleet: Fleet, databases: Mapping[str, Engine]) -> Iterator[str]:
    """Why a shard that has no slots any more can't go: what its sinks have emitted lies in its database alone."""
    for shard in handover.participating(fleet):
        if shard.slots.ranges:
            continue  # its consumers go on publishing
        with snapshot(databases[shard.name]) as connection:
            if reason := queue.why_kept(connection):
                yield f"shard {shard.name}: {reason}. Without it, what it has emitted would be lost with the database."
            elif queue.last(connection):
                yield (
                    f"shard {shard.name}: its outbox still holds events, which its consumers publish. They have to be up: wait "
                    "until it is empty, and look at their logs for `outbox` if it doesn't become so."
                )


def delete_rows(
    fleet: Fleet, databases: Mapping[str, Engine], known: Mapping[str, Known], progress: Callable[[str, int], None]
) -> int:
    """Delete the rows of slots that aren't active, then their lanes. `progress` receives each shard's count of deleted rows.

    Each transaction asks whether the rebalance is still open: raises JournalError where it isn't. The logs end in every database
    before the first row goes: killed in between, what is left of the rows must not count as a base for the way back.
    """
    total = 0
    opened = list(_opened(fleet, known))
    for shard, rebalance in opened:
        with writing(databases[shard.name]) as connection:
            lanes.end_logs(connection)
            journal.check_open(connection, rebalance)
    for shard, rebalance in opened:
        engine = databases[shard.name]
        with writing(engine) as connection:
            lanes.retire(connection)
            journal.check_open(connection, rebalance)
        total += removal.delete_slots(
            engine,
            kinds_of(fleet, shard.name),
            frozenset(left_behind(shard, known[shard.name])),
            check=partial(journal.check_open, rebalance=rebalance),
            progress=partial(progress, shard.name),
        )
        with writing(engine) as connection:  # last: what is left when this is killed is known by its lanes
            lanes.forget(connection)
            journal.check_open(connection, rebalance)
    return total


def _opened(fleet: Fleet, known: Mapping[str, Known]) -> Iterator[tuple[Shard, str]]:
    """Those that a run of this which was killed before it could settle the file hasn't closed, and the rebalance's id."""
    for shard in handover.participating(fleet):
        entry = journal.entry_of(fleet, known[shard.name].entries)
        if entry is not None and entry.state != RebalanceState.DONE:
            yield shard, entry.id


@contextmanager
def _translated(fleet: Fleet) -> Iterator[None]:
    try:
        yield
    except (GoogleAPICallError, RetryError) as error:
        raise PubSubError(
            f"Pub/Sub, project {fleet.project}: {type(error).__name__}: {error}. What was done stays; run it again."
        ) from error


def _path(fleet: Fleet, name: str) -> str:
    return f"projects/{fleet.project}/subscriptions/{name}"
