"""The progress of an open rebalance, and which shard has which slot. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet, Shard
from shardctl.rebalance import handover, journal
from shardctl.rebalance.handover import Stage
from shardctl.rebalance.planning.request import types_of
from shardctl.rebalance.preflight import Known
from shardctl.rebalance.summary import Summary, summarize
from shardctl.shard.schema import LaneState, RebalanceState


@dataclass(frozen=True, slots=True)
class Moving:
    """`id` is None where no database has opened it. `states` has the journal's state in each participating shard.

    `summary` is None where a database doesn't answer, or has no tables.
    """

    id: str | None
    states: Mapping[str, str]
    summary: Summary | None


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Who holds which slots, of the shards that take the same message types. Each slot is in one of these at most.

    `from_file` has the shards whose databases don't answer: their slots here are those of the file.
    """

    types: str
    holders: Mapping[str, SlotSet]
    from_file: tuple[str, ...]
    stages: Mapping[str, SlotSet]  # of the slots that a rebalance hands over


def moving(fleet: Fleet, known: Mapping[str, Known], at: datetime) -> tuple[Moving | None, str]:
    """The rebalance that the file describes, and why its progress is unknown, if it is."""
    if not fleet.rebalancing:
        return None, ""
    taking_part = [shard.name for shard in handover.participating(fleet)]
    states = {name: state_of(fleet, known[name]) for name in taking_part if name in known}
    try:
        rebalance_id = journal.id_of(fleet, [known[name].entries for name in states])
    except journal.JournalError as error:
        return Moving(None, states, None), str(error)
    silent = [name for name in taking_part if name not in known]
    if silent:
        return Moving(rebalance_id, states, None), f"the databases of {', '.join(silent)} don't answer"
    if empty := [name for name in taking_part if known[name].empty]:  # then their slots are unknown, not broken
        return Moving(rebalance_id, states, None), f"the databases of {', '.join(empty)} have none of shardctl's tables"
    return Moving(rebalance_id, states, summarize(fleet, known, int(at.timestamp() * 1e6))), ""


def state_of(fleet: Fleet, known: Known) -> str:
    """The state of one database's journal."""
    entry = journal.entry_of(fleet, known.entries)
    if entry is None:
        return "not opened"
    if entry.state == RebalanceState.OPEN and (entry.finishing or entry.stopping):
        return "finishing" if entry.finishing else "aborting"
    return str(entry.state)


def slot_maps(fleet: Fleet, known: Mapping[str, Known]) -> tuple[SlotMap, ...]:
    """One for each set of shards that share the slots among them."""
    groups: dict[object, list[Shard]] = {}
    for shard in fleet.shards:
        groups.setdefault(types_of(shard), []).append(shard)
    stages = _stages(fleet, known)
    return tuple(_map(shards, known, stages) for shards in groups.values())


def _map(shards: Iterable[Shard], known: Mapping[str, Known], stages: Mapping[str, Mapping[str, SlotSet]]) -> SlotMap:
    holders, from_file, slots_by_stage = {}, [], dict[str, SlotSet]()
    types = ""
    for shard in shards:
        types = ", ".join(shard.types) or ("all but " + ", ".join(shard.except_types) if shard.except_types else "")
        database = known.get(shard.name)
        if database is None or database.empty:
            from_file.append(shard.name)
            holders[shard.name] = shard.slots
        else:
            holders[shard.name] = SlotSet.of(
                lane.slot for lane in database.lanes.values() if lane.state == LaneState.ACTIVE
            )
        for stage, slots in stages.get(shard.name, {}).items():
            slots_by_stage[stage] = slots_by_stage.get(stage, SlotSet()) | slots
    return SlotMap(types, holders, tuple(from_file), slots_by_stage)


def _stages(fleet: Fleet, known: Mapping[str, Known]) -> dict[str, dict[str, SlotSet]]:
    """The slots of each shard by the stage of their hand-over; nothing where a database doesn't answer, or has no tables."""
    taking_part = [shard.name for shard in handover.participating(fleet)]
    if not fleet.rebalancing or any(name not in known or known[name].empty for name in taking_part):
        return {}
    views = {name: database.lanes for name, database in known.items()}
    slots_by_shard: dict[str, dict[Stage, list[int]]] = {}
    for hand_over in handover.hand_overs(fleet):
        stage = handover.standing(hand_over, views).stage
        slots_by_shard.setdefault(hand_over.to.shard, {}).setdefault(stage, []).append(hand_over.slot)
    return {
        shard: {str(stage): SlotSet.of(slots) for stage, slots in by_stage.items()}
        for shard, by_stage in slots_by_shard.items()
    }
