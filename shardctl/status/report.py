"""The state of a fleet at one moment, assembled from the answers of its sources. Pure.

Unknown values are None, never 0, and `Report.unknown` says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet, Shard
from shardctl.rebalance.backlog import Backlog
from shardctl.rebalance.preflight import Known, other_rebalances
from shardctl.shard.schema import LaneState
from shardctl.status.moving import Moving, moving

SILENT_SECONDS = 15.0  # consumers send a heartbeat every 3 s
FORGOTTEN_SECONDS = 300.0  # a replica without a heartbeat for longer has ended, and isn't reported


@dataclass(frozen=True, slots=True)
class Unknown:
    """Takes the place of an answer. `why` says what to do about it."""

    why: str


@dataclass(frozen=True, slots=True)
class NotReady:
    """A message type of which so many parked keys wait for its table, and what is wrong with that."""

    message_type: str
    keys: int
    why: str


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What one shard's database reports. By replica: seconds since its last heartbeat, and the generations that it reads."""

    known: Known
    parked_keys: int = 0
    parked_messages: int = 0
    silent_seconds: Mapping[str, float] | None = None
    generations: Mapping[str, tuple[int, ...]] | None = None
    not_ready: tuple[NotReady, ...] = ()
    recorded: bool = True  # whether it says which fleet and shard it belongs to


@dataclass(frozen=True, slots=True)
class Work:
    """What a shard's consumers count: totals since they began, recent rates. `rows_a_batch` is a mean.

    `names` are the expected replicas, where those are known; `troubles` says what is wrong with which. The inbox is as the
    database estimates it; `inbox_overdue_seconds`: for so long it should have forgotten the oldest row of a sample.
    """

    applied: int | None = None
    duplicates: int | None = None
    dead_lettered: int | None = None
    writes_per_second: float | None = None
    duplicates_per_second: float | None = None
    locks_contended_per_second: float | None = None
    rows_a_batch: float | None = None
    replicas: int | None = None
    ready: int | None = None
    names: frozenset[str] | None = None
    troubles: tuple[str, ...] = ()
    inbox_rows: int | None = None
    inbox_bytes: int | None = None
    inbox_overdue_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """`slots` are those that the file gives it; `lanes` counts what its database holds, by state."""

    name: str
    slots: int
    backlog: int | None
    oldest_seconds: float | None
    work: Work
    parked_keys: int | None
    parked_messages: int | None
    lanes: Mapping[str, int] | None
    troubles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """`unknown` has what no source could answer, and why; `nothing`: no source answered at all."""

    fleet: str
    at: datetime
    shards: tuple[ShardStatus, ...]
    dead_letters: int | None
    strays: int | None
    moving: Moving | None
    troubles: tuple[str, ...]
    unknown: Mapping[str, str]
    nothing: bool


def subscription_ids(fleet: Fleet) -> tuple[str, ...]:
    """Every subscription whose backlog is known."""
    shards = (sub.id for shard in fleet.shards for sub in topology.every_subscription(fleet, shard))
    strays = (stray.id for stray in topology.strays(fleet))
    return (*shards, topology.dead_letter_subscription(fleet), *strays)


def assemble(
    fleet: Fleet,
    at: datetime,
    databases: Mapping[str, DatabaseFacts | Unknown],
    backlogs: Mapping[str, Backlog] | Unknown,
    work: Mapping[str, Work] | Unknown,
) -> Report:
    """`databases` and `work` are by shard, `backlogs` by subscription."""
    unknown: dict[str, str] = {}
    for what, answer in (("backlog", backlogs), ("metrics", work)):
        if isinstance(answer, Unknown):
            unknown[what] = answer.why
    known_backlogs = {} if isinstance(backlogs, Unknown) else backlogs
    counted = {} if isinstance(work, Unknown) else work
    facts = {name: database for name, database in databases.items() if not isinstance(database, Unknown)}
    unknown |= _silent({name: database.why for name, database in databases.items() if isinstance(database, Unknown)})
    moves, why_not = moving(fleet, {name: database.known for name, database in facts.items()}, at)
    if why_not:
        unknown["rebalance"] = why_not
    shards = tuple(
        _shard(fleet, shard, facts.get(shard.name), known_backlogs, counted.get(shard.name)) for shard in fleet.shards
    )
    if not isinstance(backlogs, Unknown):
        lacking = [name for name in subscription_ids(fleet) if messages(backlogs, [name]) is None]
        if lacking:
            unknown["backlog"] = f"there is no figure for {_some(lacking)}: not there, or too new"
    return Report(
        fleet.fleet,
        at,
        shards,
        messages(known_backlogs, [topology.dead_letter_subscription(fleet)]),
        messages(known_backlogs, [stray.id for stray in topology.strays(fleet)]),
        moves,
        tuple(other_rebalances(fleet, {name: database.known for name, database in facts.items()})),
        unknown,
        nothing=not facts
        and isinstance(work, Unknown)
        and not any(backlog.messages is not None for backlog in known_backlogs.values()),
    )


def _silent(databases: Mapping[str, str]) -> dict[str, str]:
    """Databases that don't answer for one reason are reported together."""
    names_by_reason: dict[str, list[str]] = {}
    for name, why in databases.items():
        names_by_reason.setdefault(why, []).append(name)
    return {f"database{'s' if len(names) > 1 else ''} of {_some(names)}": why for why, names in names_by_reason.items()}


def _shard(
    fleet: Fleet, shard: Shard, facts: DatabaseFacts | None, backlogs: Mapping[str, Backlog], work: Work | None
) -> ShardStatus:
    names = [sub.id for sub in topology.every_subscription(fleet, shard)]
    counts = work or Work()
    has_tables = facts is not None and not facts.known.empty
    return ShardStatus(
        shard.name,
        len(shard.slots),
        messages(backlogs, names),
        oldest_seconds(backlogs, names),
        counts,
        facts.parked_keys if facts and has_tables else None,
        facts.parked_messages if facts and has_tables else None,
        lane_counts(facts.known) if facts and has_tables else None,
        tuple(chain(counts.troubles, _database_troubles(fleet, shard, facts, counts.names) if facts else ())),
    )


def lane_counts(known: Known) -> dict[str, int]:
    """How many slots a database holds in each state, every state named. A slot counts once for each generation it is in."""
    counted = Counter(str(lane.state) for lane in known.lanes.values())
    return {str(state): counted[state] for state in LaneState}


def _database_troubles(fleet: Fleet, shard: Shard, facts: DatabaseFacts, names: frozenset[str] | None) -> Iterator[str]:
    if facts.known.empty:
        yield "its database doesn't have shardctl's tables yet: `shardctl provision` creates them"
        return
    if not facts.recorded:
        yield "its database doesn't say which fleet and shard it belongs to: `shardctl provision` records it"
    for waiting in facts.not_ready:
        keys = "1 key waits" if waiting.keys == 1 else f"{waiting.keys:,} keys wait"
        yield f"the table of type {waiting.message_type!r} isn't ready, and the writes of {keys} for it: {waiting.why}"
    silent = facts.silent_seconds or {}
    for name, seconds in sorted(silent.items()):
        expected = names is None or name in names
        if SILENT_SECONDS <= seconds < FORGOTTEN_SECONDS and expected:
            yield f"replica {name} sent its last heartbeat {seconds:,.0f} s ago"
    active = {lane.generation for lane in facts.known.lanes.values() if lane.state == LaneState.ACTIVE}
    for generation in sorted(active):
        ago = facts.known.readers.get(generation)
        if ago is None or ago.total_seconds() >= SILENT_SECONDS:
            since = "no consumer has read" if ago is None else f"for {ago.total_seconds():,.0f} s no consumer has read"
            yield f"{since} generation {generation}, which holds slots"
    if not fleet.rebalancing and active - {shard.generation}:
        others = ", ".join(map(str, sorted(active - {shard.generation})))
        yield f"its database holds slots in generation {others}; the file says {shard.generation}"


def messages(backlogs: Mapping[str, Backlog], names: Sequence[str]) -> int | None:
    """The messages of all, or None where one isn't known: a part of a backlog would look like the whole."""
    counts = [backlogs[name].messages if name in backlogs else None for name in names]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def oldest_seconds(backlogs: Mapping[str, Backlog], names: Sequence[str]) -> float | None:
    """The age of the oldest message; 0 where there is none."""
    if messages(backlogs, names) is None:
        return None
    waiting = [backlogs[name] for name in names if backlogs[name].messages]
    ages = [None if backlog.oldest_us is None else (backlog.at_us - backlog.oldest_us) / 1e6 for backlog in waiting]
    known = [age for age in ages if age is not None]
    return max(0.0, *known, 0.0) if len(known) == len(ages) else None


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
