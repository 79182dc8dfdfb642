"""Which slots change lanes in a transitional file, and where each of them stands. Pure.

What is to be done for a slot follows from the file, which names the lane that is to have it, and from the databases, one of which
holds it active: never from the executor's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from shardctl.fleet import topology
from shardctl.fleet.keyspace import lane_of
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec import Fleet, Shard
from shardctl.rebalance.planning.request import types_of
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import LaneState

Views = Mapping[str, Mapping[int, Lane]]  # the lanes of each shard's database, by `keyspace.lane_of`


@dataclass(frozen=True, slots=True)
class Place:
    """One generation of one shard."""

    shard: str
    generation: int

    def __str__(self) -> str:
        return f"{self.shard} g{self.generation}"


@dataclass(frozen=True, slots=True, eq=False)
class HandOver:
    """One slot that `to` is to have, and the places that may hold it until then. Equal only to itself."""

    slot: int
    to: Place
    sources: tuple[Place, ...]


class Stage(StrEnum):
    """Where a slot stands, in the order in which it goes through them."""

    WAITING = "waiting"  # its barrier isn't out
    DUE = "due"  # its barrier may be out
    LEFT = "left"  # nobody writes to it
    ARRIVED = "arrived"
    BROKEN = "broken"  # as no hand-over leaves it: only a person can tell what happened


@dataclass(frozen=True, slots=True)
class Standing:
    """`source`: who holds the slot, or held it last. `fault` says what is broken."""

    stage: Stage
    source: Place | None = None
    fault: str = ""


def participating(fleet: Fleet) -> tuple[Shard, ...]:
    """The shards that give or take slots in a transitional file."""
    return tuple(shard for shard in fleet.shards if shard.previous is not None)


def kinds_of(fleet: Fleet, shard: str) -> dict[str, MessageType]:
    """The message types that a shard's database holds."""
    of = fleet.shard(shard)
    return {name: kind for name, kind in fleet.message_types.items() if of.takes(name)}


def hand_overs(fleet: Fleet) -> tuple[HandOver, ...]:
    """One for each slot of each participating shard, by shard and slot."""
    places: dict[tuple[object, int], list[Place]] = {}
    for shard in participating(fleet):
        for each in topology.generations(shard):
            for slot in each.slots:
                places.setdefault((types_of(shard), slot), []).append(Place(shard.name, each.generation))
    return tuple(
        HandOver(slot, to, tuple(place for place in places[types_of(shard), slot] if place != to))
        for shard in participating(fleet)
        for to in (Place(shard.name, shard.generation),)
        for slot in shard.slots
    )


def standing(of: HandOver, views: Views) -> Standing:
    """Where a slot stands. From views that were read a moment apart, only BROKEN needs a second look.

    So a slot that has arrived may still look active where it came from; see `twice_active`.
    """
    target = _lane(views, of.to, of.slot)
    found = [(place, lane) for place in of.sources if (lane := _lane(views, place, of.slot))]
    active = [place for place, lane in found if lane.state == LaneState.ACTIVE]
    left = [(lane.barrier_time_us or 0, place) for place, lane in found if lane.state == LaneState.LEFT]
    match target.state if target else None:
        case LaneState.ACTIVE:
            return Standing(Stage.ARRIVED)
        case LaneState.ARRIVING | LaneState.DUE as state if len(active) == 1:
            return Standing(Stage.WAITING if state == LaneState.ARRIVING else Stage.DUE, active[0])
        case LaneState.DUE if left and not active:
            return Standing(Stage.LEFT, max(left, key=lambda one: one[0])[1])  # of those it went through, the last
        case state:
            return Standing(Stage.BROKEN, fault=f"slot {of.slot}: {_fault(of, state, active, left=bool(left))}")


def _fault(of: HandOver, state: LaneState | None, active: list[Place], *, left: bool) -> str:
    if len(active) > 1:
        return f"it is active in {' and in '.join(map(str, active))}"
    if state == LaneState.LEFT:
        return f"a later rebalance took it out of {of.to}"
    if state is None and active:
        return f"{of.to} doesn't know that it is to come: `shardctl rebalance start` announces it"
    if left:
        return f"nobody has it, and {of.to} wasn't told that it would come"
    return "it is active in no lane that the file tells of"


def twice_active(of: HandOver, views: Views) -> str:
    """Tells of a slot that is active in two places; "" for all others. The views were read while nothing changed."""
    lanes = {place: _lane(views, place, of.slot) for place in (of.to, *of.sources)}
    active = [place for place, lane in lanes.items() if lane and lane.state == LaneState.ACTIVE]
    return f"slot {of.slot} is active in {' and in '.join(map(str, active))}" if len(active) > 1 else ""


def unexpected(fleet: Fleet, views: Views) -> Iterator[tuple[Place, int]]:
    """Slots that a database holds active in a lane that the file doesn't have."""
    for shard in fleet.shards:
        listed = {lane_of(slot, each.generation) for each in topology.generations(shard) for slot in each.slots}
        for lane, held in views.get(shard.name, {}).items():
            if held.state == LaneState.ACTIVE and lane not in listed:
                yield Place(shard.name, held.generation), held.slot


def _lane(views: Views, place: Place, slot: int) -> Lane | None:
    return views[place.shard].get(lane_of(slot, place.generation))
