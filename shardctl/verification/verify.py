"""Checks a fleet's databases against the file: every row where its slot is active, every slot active once.

Each database is read in one snapshot, table by table, in SQL. While slots move, rows that were copied away and await deletion
are no fault, and a slot may be active in any generation that the file lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, inspect, select

from shardctl.fleet import topology
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec import Fleet, Shard
from shardctl.rebalance.rows.checksum import MODULUS
from shardctl.rebalance.rows.shape import Named, SlotTableError, look_at
from shardctl.rebalance.rows.tables import named
from shardctl.shard import database, lanes, membership, schema
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import LaneState, RebalanceState
from shardctl.verification.rows import Fault, TableCheck, check_parked, check_table

Progress = Callable[[str, str], None]  # called with each shard and table before it is read


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """What one shard's database holds. `active`: its slots by what its lanes say; None where its tables are missing.

    `recorded`: whether it says which fleet and shard it belongs to.
    """

    shard: str
    active: SlotSet | None
    tables: tuple[TableCheck, ...] = ()
    recorded: bool = True

    @property
    def waiting(self) -> int:
        return sum(table.waiting for table in self.tables)


@dataclass(frozen=True, slots=True)
class Report:
    shards: tuple[ShardCheck, ...]
    faults: tuple[Fault, ...]
    rebalancing: bool

    def totals(self) -> dict[str, tuple[int, int]]:
        """Rows and checksum of each table in all shards together: the same before and after its slots have moved."""
        totals: dict[str, tuple[int, int]] = {}
        for shard in self.shards:
            for table in shard.tables:
                rows, checksum = totals.get(table.table, (0, 0))
                totals[table.table] = rows + table.rows, (checksum + table.checksum) % MODULUS
        return totals


@dataclass(slots=True)
class _Findings:
    faults: list[Fault] = field(default_factory=list)
    lanes: dict[str, tuple[Lane, ...]] = field(default_factory=dict)


def verify(fleet: Fleet, databases: Mapping[str, Engine], progress: Progress = lambda _, __: None) -> Report:
    """Check every shard of the fleet. Changes nothing.

    Raises DatabaseError, and SlotTableError for a file that contradicts itself.
    """
    findings = _Findings()
    checks = []
    for shard in fleet.shards:
        with database.snapshot(databases[shard.name]) as connection:
            checks.append(_check_shard(fleet, shard, connection, findings, progress))
    faults = list(lane_faults(fleet, findings.lanes))
    if faults and fleet.rebalancing:
        # The databases were read one after the other, and a slot may have moved between two of them.
        second_faults = set(lane_faults(fleet, _read_lanes(fleet, databases, findings.lanes)))
        faults = [fault for fault in faults if fault in second_faults]
    return Report(tuple(checks), (*faults, *findings.faults), fleet.rebalancing)


def tables_of(fleet: Fleet, shard: Shard) -> tuple[Named, ...]:
    """How often `progress` will be called."""
    return named(kinds_of(fleet, shard))


def kinds_of(fleet: Fleet, shard: Shard) -> dict[str, MessageType]:
    return {name: kind for name, kind in fleet.message_types.items() if shard.takes(name)}


def _check_shard(
    fleet: Fleet, shard: Shard, connection: Connection, findings: _Findings, progress: Progress
) -> ShardCheck:
    inspector = inspect(connection)
    missing = [table.name for table in schema.metadata.sorted_tables if not inspector.has_table(table.name)]
    fault = None if schema.inbox.name in missing else schema.fault_of_version(connection)
    if fault:
        findings.faults.append(Fault(shard.name, fault, ""))
        return ShardCheck(shard.name, None)
    if missing:
        what = f"the database has no table {', '.join(missing)}"
        findings.faults.append(Fault(shard.name, what, "Run `shardctl provision`, or fix the database's URL."))
        return ShardCheck(shard.name, None)
    shard_lanes = findings.lanes[shard.name] = tuple(lanes.read(connection).values())
    active = SlotSet.of(lane.slot for lane in shard_lanes if lane.state == LaneState.ACTIVE)
    is_open = select(schema.rebalances.c.id).where(schema.rebalances.c.state == RebalanceState.OPEN)
    moving = fleet.rebalancing or connection.scalar(is_open.limit(1)) is not None
    elsewhere = SlotSet.of(lane.slot for lane in shard_lanes) - active if moving else SlotSet()
    kinds = kinds_of(fleet, shard)
    checks = []
    for named_table in named(kinds):
        progress(shard.name, named_table.name)
        try:
            table = look_at(inspector, named_table)
        except SlotTableError as error:
            findings.faults.append(Fault(shard.name, str(error), "", named_table.name))
            continue
        if table is None:
            findings.faults.append(
                Fault(shard.name, "the table is missing", "Run `shardctl provision`.", named_table.name)
            )
            continue
        mapped = [kind for kind in kinds.values() if kind.table == named_table.name]
        checked, faults = check_table(connection, shard.name, table, mapped, active, elsewhere, fleet.routing.rule)
        checks.append(checked)
        findings.faults += faults
    findings.faults += check_parked(connection, shard.name, active)
    return ShardCheck(shard.name, active, tuple(checks), recorded=membership.read(connection) is not None)


def _read_lanes(
    fleet: Fleet, databases: Mapping[str, Engine], known: Mapping[str, object]
) -> dict[str, tuple[Lane, ...]]:
    lanes_by_shard = {}
    for shard in fleet.shards:
        if shard.name in known:
            with database.snapshot(databases[shard.name]) as connection:
                lanes_by_shard[shard.name] = tuple(lanes.read(connection).values())
    return lanes_by_shard


def lane_faults(fleet: Fleet, lanes_by_shard: Mapping[str, Iterable[Lane]]) -> Iterator[Fault]:
    """What is wrong with who owns which slot. Pure. Slots of shards that `lanes_by_shard` lacks are assumed to be right."""
    groups: dict[object, list[Shard]] = {}
    for shard in fleet.shards:
        groups.setdefault((frozenset(shard.types), frozenset(shard.except_types)), []).append(shard)
        if shard.name in lanes_by_shard:
            yield from _unlisted(shard, lanes_by_shard[shard.name])
    for shards in groups.values():
        yield from _not_once(shards, lanes_by_shard)


def _unlisted(shard: Shard, shard_lanes: Iterable[Lane]) -> Iterator[Fault]:
    """Slots that are active in a generation that the file doesn't give them."""
    active = ((lane.slot, lane.generation) for lane in shard_lanes if lane.state == LaneState.ACTIVE)
    for generation, slots in topology.unlisted(shard, active).items():
        yield Fault(
            shard.name,
            f"active in generation {generation}, where the file doesn't have them",
            "If the URL names another shard's database, fix it. Else take the file that the last `shardctl rebalance` wrote, or "
            "undo the edit of its slots.",
            slots=slots,
        )


def _not_once(shards: list[Shard], lanes_by_shard: Mapping[str, Iterable[Lane]]) -> Iterator[Fault]:
    holders: dict[int, list[str]] = {}
    on_the_way: set[int] = set()
    for shard in shards:
        for lane in lanes_by_shard.get(shard.name, ()):
            if lane.state == LaneState.ACTIVE:
                holders.setdefault(lane.slot, []).append(shard.name)
            elif lane.state == LaneState.DUE and shard.previous is not None:
                on_the_way.add(lane.slot)
    twice: dict[str, list[int]] = {}
    for slot, names in holders.items():
        if len(names) > 1:
            twice.setdefault(", ".join(sorted(names)), []).append(slot)
    for names_text, slots in sorted(twice.items()):
        yield Fault(
            names_text,
            "active more than once: two consumers may write to the same keys",
            "Stop the consumers of all but the right shard, and find out which rows each has written since.",
            slots=SlotSet.of(slots),
        )
    for shard in shards:
        nowhere = SlotSet.of(slot for slot in shard.slots if slot not in holders and slot not in on_the_way)
        if nowhere.ranges and all(other.name in lanes_by_shard for other in shards):
            yield Fault(
                shard.name,
                "active in no database, so their writes wait",
                "`shardctl rebalance run` continues with those that were moving; else restore the database's shardctl_lanes.",
                slots=nowhere,
            )
