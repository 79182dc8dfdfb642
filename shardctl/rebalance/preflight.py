"""May the slots move? Every reason against it, each with the way out. Only looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from google.api_core.exceptions import GoogleAPICallError, RetryError
from sqlalchemy import Engine, func, select

from shardctl import provision
from shardctl.errors import ShardctlError
from shardctl.fleet import topology
from shardctl.fleet.keyspace import SlotSet, lane_of
from shardctl.fleet.spec import Fleet, Shard
from shardctl.outbox import queue
from shardctl.rebalance import handover, journal
from shardctl.rebalance.backlog import UNKNOWN, Backlog
from shardctl.rebalance.handover import Stage, kinds_of
from shardctl.rebalance.journal import Entry
from shardctl.rebalance.rows.fitness import doubts, unfit
from shardctl.shard import revisions
from shardctl.shard.database import DatabaseError, snapshot
from shardctl.shard.lanes import Lane
from shardctl.shard.lanes import read as read_lanes
from shardctl.shard.outboxtables import outbox
from shardctl.shard.schema import LaneState, RebalanceState, fault_of_version, missing_tables, rebalances, replicas

MAX_LAG = 10_000
SEEN = timedelta(seconds=60)
MAX_SHOWN = 5  # slots of one kind of fault


class PreflightError(ShardctlError):
    """The slots may not move, for each of these reasons. Nothing was changed."""

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("not now:\n" + "\n".join(f"- {reason}" for reason in reasons))


@dataclass(frozen=True, slots=True)
class Known:
    """What one participating database reports. `readers`: generations that consumers read, by how long ago they reported it.

    `now` is the time by its own clock; None where nobody asked.
    """

    lanes: Mapping[int, Lane]
    entries: Mapping[str, Entry]
    readers: Mapping[int, timedelta]
    empty: bool = False  # there are no tables of ours
    lacks: tuple[str, ...] = ()  # tables of ours that an older version didn't make
    now: datetime | None = None
    revisions: Mapping[str, revisions.Entry] = field(default_factory=dict)


def look(databases: Mapping[str, Engine]) -> tuple[dict[str, Known], list[str]]:
    """What each database reports, and why some don't."""
    known, reasons = {}, []
    for name, engine in databases.items():
        try:
            known[name] = _known(engine)
        except DatabaseError as error:
            reasons.append(f"shard {name}: {error}. Fix it, or give the right URL; nothing moves while it is away.")
    return known, reasons


def _known(engine: Engine) -> Known:
    with snapshot(engine) as connection:
        if not engine.dialect.has_table(connection, rebalances.name):
            return Known({}, {}, {}, empty=True)
        if fault := fault_of_version(connection):
            raise DatabaseError(fault)
        lacks = missing_tables(connection)
        readers: dict[int, timedelta] = {}
        now = connection.scalar(select(func.now()))
        for row in connection.execute(select(replicas.c.generations, replicas.c.seen_time)):
            ago = _utc(now) - _utc(row.seen_time)
            for generation in map(int, filter(None, row.generations.split(","))):
                readers[generation] = min(ago, readers.get(generation, ago))
        return Known(
            read_lanes(connection),
            journal.read(connection),
            readers,
            lacks=lacks,
            now=_utc(now),
            revisions=revisions.read(connection),
        )


def _utc(moment: Any) -> datetime:
    """Sessions are in UTC; not every driver marks them so."""
    time: datetime = moment
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def not_transitional(fleet: Fleet) -> Iterator[str]:
    if not fleet.rebalancing:
        yield (
            "no slots are on the move in this file: no shard has `previous`. `shardctl rebalance plan …` writes a file in "
            "which some are, and `shardctl rebalance start` puts it in this one's place."
        )


def other_rebalances(fleet: Fleet, known: Mapping[str, Known]) -> Iterator[str]:
    for name, report in known.items():
        mine = journal.entry_of(fleet, report.entries)
        for entry in report.entries.values():
            if entry.state == RebalanceState.OPEN and entry is not mine:
                yield f"shard {name}: {journal.summary_of(entry)}. {journal.WAY_OUT}"
            if entry.state == RebalanceState.DONE and entry is mine:
                yield (
                    f"shard {name}: this rebalance is done. `shardctl rebalance finish` ends what is left of it and writes "
                    "the settled file."
                )
            elif entry.state == RebalanceState.DONE and (ended := journal.ended_with(entry) & _listed_before(fleet)):
                shard, generation = min(ended)
                yield (
                    f"shard {name}: this file still has generation {generation} of shard {shard}, which ended with rebalance "
                    f"{entry.id}. Go on from the settled file that `shardctl rebalance finish` wrote."
                )


def _listed_before(fleet: Fleet) -> set[tuple[str, int]]:
    return {(shard.name, former.generation) for shard in fleet.shards for former in shard.previous or ()}


def not_started(fleet: Fleet, known: Mapping[str, Known]) -> Iterator[str]:
    """For `run`: the journal must be open everywhere, and no abort under way."""
    for name, report in known.items():
        entry = journal.entry_of(fleet, report.entries)
        if entry is None:
            yield f"shard {name}: the rebalance isn't open there. `shardctl rebalance start` opens it; it may run again."
        elif entry.state == RebalanceState.ABORTED:
            yield (
                f"shard {name}: the rebalance was aborted. `shardctl rebalance start` goes on with it; "
                "`shardctl rebalance plan --back` leads back."
            )
        elif entry.stopping:
            yield f"shard {name}: an abort is under way. `shardctl rebalance abort` again brings it to its end."


def past_return(fleet: Fleet, known: Mapping[str, Known]) -> Iterator[str]:
    """For what leads back, and what opens again: `finish` has begun, or has done all but write the settled file."""
    for name, report in known.items():
        entry = journal.entry_of(fleet, report.entries)
        if entry is not None and (
            entry.state == RebalanceState.DONE or (entry.state == RebalanceState.OPEN and entry.finishing)
        ):
            yield f"shard {name}: {journal.PointOfNoReturnError(entry.id)}"
            return


def kept_events(databases: Mapping[str, Engine]) -> Iterator[str]:
    """For `start`: slots would wait for what their shard's sinks have emitted and Pub/Sub refuses."""
    for name, engine in databases.items():
        with snapshot(engine) as connection:
            if engine.dialect.has_table(connection, outbox.name) and (reason := queue.why_kept(connection)):
                yield f"shard {name}: {reason}. No slot leaves this shard before."


def no_tables(known: Mapping[str, Known]) -> Iterator[str]:
    """For `status`: a database without tables of ours leaves its slots unknown; they aren't broken."""
    for name, report in known.items():
        if report.empty:
            yield (
                f"shard {name}: its database has none of shardctl's tables. `shardctl rebalance start` makes them; if it ran "
                "already, this is another database: give the right URL."
            )


def lacking_tables(known: Mapping[str, Known]) -> Iterator[str]:
    """For `run` and `abort` of what an older version of this program has started; `start` makes them."""
    for name, report in known.items():
        if report.lacks:
            yield (
                f"shard {name}: its database lacks {', '.join(report.lacks)}, which this version needs. "
                "`shardctl provision` makes what is missing."
            )


def odd_slots(fleet: Fleet, known: Mapping[str, Known], *, announced: bool) -> Iterator[str]:
    """Slots that aren't active exactly once. Before `start`, none has been announced."""
    views = {shard.name: dict(known[shard.name].lanes) for shard in handover.participating(fleet)}
    if not announced:
        _announce(fleet, views)
    faults = []
    for hand_over in handover.hand_overs(fleet):
        standing = handover.standing(hand_over, views)
        faults += [standing.fault] if standing.stage == Stage.BROKEN else []
        faults += (
            [twice] if standing.stage != Stage.BROKEN and (twice := handover.twice_active(hand_over, views)) else []
        )
    faults += [
        f"slot {slot} is active in {place}, which the file doesn't list"
        for place, slot in handover.unexpected(fleet, views)
    ]
    for fault in faults[:MAX_SHOWN]:
        yield (
            f"{fault}. Only the file that was last deployed, and its databases, tell who owns what: look for an edit by "
            "hand, and for a URL that names another shard's database."
        )
    if len(faults) > MAX_SHOWN:
        yield f"… and {len(faults) - MAX_SHOWN:,} slots more."


def _announce(fleet: Fleet, views: dict[str, dict[int, Lane]]) -> None:
    """As if every slot had been announced already."""
    for shard in handover.participating(fleet):
        for slot in shard.slots:
            arriving = Lane(slot, shard.generation, LaneState.ARRIVING)
            views[shard.name].setdefault(lane_of(slot, shard.generation), arriving)


def unequal_revisions(known: Mapping[str, Known]) -> Iterator[str]:
    """Shards whose schema is being changed, or that lack what others have. A database that has no tables yet lacks nothing."""
    present = {name: report.revisions for name, report in known.items() if not report.empty}
    everything = sorted({revision for entries in present.values() for revision in revisions.done(entries)})
    for name, entries in present.items():
        lacking = [revision for revision in everything if revision not in revisions.done(entries)]
        for revision in dict.fromkeys((*revisions.under_way(entries), *lacking)):
            yield (
                f"shard {name}: it doesn't have schema revision {revision}, and slots move between equal tables alone. "
                "`shardctl migrate apply` gives it to every shard."
            )


def unfit_tables(fleet: Fleet, databases: Mapping[str, Engine], known: Mapping[str, Known]) -> Iterator[str]:
    """Of each pair of databases between which slots move. A new shard's may have no tables yet: `start` makes them."""
    for source, destination in _ways(fleet, known):
        for reason in unfit(databases[source], databases[destination], kinds_of(fleet, destination)):
            yield f"from {source} to {destination}: {reason}"


def doubtful_tables(fleet: Fleet, databases: Mapping[str, Engine], known: Mapping[str, Known]) -> Iterator[str]:
    """What may go wrong or be slow though rows can be moved, where `unfit_tables` finds nothing. Each reported once."""
    reasons = (
        doubt
        for source, destination in _ways(fleet, known)
        for doubt in doubts(databases[source], databases[destination], kinds_of(fleet, destination))
    )
    yield from dict.fromkeys(reasons)


def _ways(fleet: Fleet, known: Mapping[str, Known]) -> list[tuple[str, str]]:
    """The shards between whose databases slots move, or will once they are announced. An empty one has no tables to compare."""
    views = {name: dict(report.lanes) for name, report in known.items()}
    _announce(fleet, views)
    pairs = {
        (standing.source.shard, hand_over.to.shard)
        for hand_over in handover.hand_overs(fleet)
        if (standing := handover.standing(hand_over, views)).source and standing.source.shard != hand_over.to.shard
    }
    return sorted(pair for pair in pairs if not any(known[name].empty for name in pair))


def lacking_subscriptions(fleet: Fleet, publisher: Any, subscriber: Any, *, every: bool) -> Iterator[str]:
    """Subscriptions of old generations that aren't there, or are otherwise than the file says; with `every`, the new ones too."""
    try:
        steps = provision.plan_pubsub(fleet, publisher, subscriber)
    except provision.ProvisionError as error:
        yield from str(error).splitlines()
        return
    except (GoogleAPICallError, RetryError) as error:
        yield f"Pub/Sub, project {fleet.project}, doesn't answer: {type(error).__name__}: {error}. Fix that first."
        return
    missing = {
        step.name.rpartition("/")[2] for step in steps if step.action == "create" and step.kind == "subscription"
    }
    old = {
        sub.id
        for shard in handover.participating(fleet)
        for sub in topology.every_subscription(fleet, shard)
        if sub.generation != shard.generation
    }
    for name in sorted(missing & old):
        yield (
            f"subscription {name} isn't there, though slots may be active behind it: what was published since it went is lost. "
            "`shardctl provision` makes it again; publish what is missing again."
        )
    for name in sorted(missing - old) if every else ():
        yield f"subscription {name} isn't there. `shardctl rebalance start` makes it; it may run again."


def lagging(fleet: Fleet, backlogs: Mapping[str, Backlog], max_lag: int) -> Iterator[str]:
    for shard in handover.participating(fleet):
        counts = [backlogs[sub.id].messages or 0 for sub in old_subscriptions(fleet, shard) if sub.id in backlogs]
        if sum(counts) > max_lag:
            yield (
                f"shard {shard.name} lags by {sum(counts):,} messages, and barriers would wait behind them. Let it catch up, "
                f"or allow it with --max-lag {sum(counts)}."
            )


def unknown_lag(fleet: Fleet, backlogs: Mapping[str, Backlog]) -> list[str]:
    """Old subscriptions that there is no figure for: `lagging` counts nothing of them."""
    return [
        sub.id
        for shard in handover.participating(fleet)
        for sub in old_subscriptions(fleet, shard)
        if backlogs.get(sub.id, UNKNOWN).messages is None
    ]


def absent_consumers(fleet: Fleet, known: Mapping[str, Known]) -> Iterator[str]:
    """Generations whose messages no consumer reads: then their barriers are never met, or what arrives is never written."""
    for shard in handover.participating(fleet):
        active = {lane.generation for lane in known[shard.name].lanes.values() if lane.state == LaneState.ACTIVE}
        wanted = active | ({shard.generation} if shard.slots.ranges else set())
        readers = known[shard.name].readers
        for generation in sorted(wanted):
            if readers.get(generation, SEEN) >= SEEN:
                yield (
                    f"no consumer of shard {shard.name} has been reading generation {generation} for the last {SEEN.seconds} s."
                )


def old_subscriptions(fleet: Fleet, shard: Shard) -> tuple[topology.Subscription, ...]:
    """Those of the generations before the one that the file gives the shard."""
    return tuple(sub for sub in topology.every_subscription(fleet, shard) if sub.generation != shard.generation)


def active_slots(known: Known) -> SlotSet:
    return SlotSet.of(lane.slot for lane in known.lanes.values() if lane.state == LaneState.ACTIVE)
