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
    LEFT = "left"  # no generation writes to it
    ARRIVED = "arrived"
    BROKEN = "broken"  # as no hand-over leaves it: only a person can find out what happened


@dataclass(frozen=True, slots=True)
class Standing:
    """`source`: the place where the slot is active, or was last. `fault` says what is broken."""

    stage: Stage
    source: Place | None = None
    fault: str = ""


def participating(fleet: Fleet) -> tuple[Shard, ...]:
    """The shards that give or take slots in a transitional file."""
    return tuple(shard for shard in fleet.shards if shard.previous is not None)


def kinds_of(fleet: Fleet, shard: str) -> dict[str, MessageType]:
    """The message types that a shard's database holds."""
    holder = fleet.shard(shard)
    return {name: kind for name, kind in fleet.message_types.items() if holder.takes(name)}


def hand_overs(fleet: Fleet) -> tuple[HandOver, ...]:
    """One for each slot of each participating shard, by shard and slot."""
    places: dict[tuple[object, int], list[Place]] = {}
    for shard in participating(fleet):
        for generation in topology.generations(shard):
            for slot in generation.slots:
                places.setdefault((types_of(shard), slot), []).append(Place(shard.name, generation.generation))
    return tuple(
        HandOver(slot, to, tuple(place for place in places[types_of(shard), slot] if place != to))
        for shard in participating(fleet)
        for to in (Place(shard.name, shard.generation),)
        for slot in shard.slots
    )


def standing(hand_over: HandOver, views: Views) -> Standing:
    """Where a slot stands. From views that were read a moment apart, only BROKEN needs a second look.

    So a slot that has arrived may still look active where it came from; see `twice_active`.
    """
    target = _lane(views, hand_over.to, hand_over.slot)
    source_lanes = [(place, lane) for place in hand_over.sources if (lane := _lane(views, place, hand_over.slot))]
    active = [place for place, lane in source_lanes if lane.state == LaneState.ACTIVE]
    left = [(lane.barrier_time_us or 0, place) for place, lane in source_lanes if lane.state == LaneState.LEFT]
    match target.state if target else None:
        case LaneState.ACTIVE:
            return Standing(Stage.ARRIVED)
        case LaneState.ARRIVING | LaneState.DUE as state if len(active) == 1:
            return Standing(Stage.WAITING if state == LaneState.ARRIVING else Stage.DUE, active[0])
        case LaneState.DUE if left and not active:
            return Standing(
                Stage.LEFT, max(left, key=lambda departure: departure[0])[1]
            )  # of those it went through, the last
        case state:
            return Standing(
                Stage.BROKEN, fault=f"slot {hand_over.slot}: {_fault(hand_over, state, active, left=bool(left))}"
            )


def _fault(hand_over: HandOver, state: LaneState | None, active: list[Place], *, left: bool) -> str:
    if len(active) > 1:
        return f"it is active in {' and in '.join(map(str, active))}"
    if state == LaneState.LEFT:
        return f"a later rebalance took it out of {hand_over.to}"
    if state is None and active:
        return f"{hand_over.to} doesn't know that it is to come: `shardctl rebalance start` announces it"
    if left:
        return f"it is active nowhere, and was never announced to {hand_over.to}"
    return "it is active in no lane that the file lists"


def twice_active(hand_over: HandOver, views: Views) -> str:
    """A report where the slot is active in two places; else "". The views were read while nothing changed."""
    lanes = {place: _lane(views, place, hand_over.slot) for place in (hand_over.to, *hand_over.sources)}
    active = [place for place, lane in lanes.items() if lane and lane.state == LaneState.ACTIVE]
    return f"slot {hand_over.slot} is active in {' and in '.join(map(str, active))}" if len(active) > 1 else ""


def unexpected(fleet: Fleet, views: Views) -> Iterator[tuple[Place, int]]:
    """Slots that a database holds active in a lane that the file doesn't have."""
    for shard in fleet.shards:
        listed = {
            lane_of(slot, generation.generation)
            for generation in topology.generations(shard)
            for slot in generation.slots
        }
        for number, lane in views.get(shard.name, {}).items():
            if lane.state == LaneState.ACTIVE and number not in listed:
                yield Place(shard.name, lane.generation), lane.slot


def _lane(views: Views, place: Place, slot: int) -> Lane | None:
    return views[place.shard].get(lane_of(slot, place.generation))
