"""The slots that each shard of a fleet ends with, for what is asked. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from shardctl.fleet.filters import MAX_FILTER_BYTES
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet
from shardctl.rebalance.planning import byload
from shardctl.rebalance.planning.board import Sets
from shardctl.rebalance.planning.request import Asked, Group, Request
from shardctl.rebalance.planning.room import FilterRoom
from shardctl.rebalance.planning.search import Search

EFFORT = 16_000  # steps that a search may look at: seconds, for the largest fleets
LESS_EFFORT = EFFORT // 8  # where the answer is only a hint


def sets_after(
    fleet: Fleet, wanted: Asked, request: Request, effort: int = EFFORT, limit: float = MAX_FILTER_BYTES
) -> dict[int, SlotSet] | None:
    """Each shard's slots after the moves, by its number, for those in a group that changes; None where none fit."""
    after: dict[int, SlotSet] = {}
    for group in wanted.groups:
        sets = _group_sets(fleet, wanted, group, request, effort, limit)
        if sets is None:
            return None
        after |= dict(zip(group.shards, sets, strict=True))
    return after


def _group_sets(fleet: Fleet, wanted: Asked, group: Group, request: Request, effort: int, limit: float) -> Sets | None:
    room = FilterRoom(fleet, wanted.shards[group.shards[0]])
    sets = [wanted.shards[number].slots for number in group.shards]
    if request.rates is None:
        return Search(sets, group.quotas, room, effort, limit).fewest()
    return byload.lightest(sets, group.quotas, _rates(fleet, request.rates), room, request.min_gain, 2 * effort)


def _rates(fleet: Fleet, rates: Mapping[int, float]) -> list[float]:
    return [rates.get(slot, 0.0) for slot in range(1 << fleet.routing.slot_bits)]
