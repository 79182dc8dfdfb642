"""Why there is no plan, why nothing moves, why more slots move than balance alone asks for: with a way out. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shardctl.fleet.filters import MAX_FILTER_BYTES
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet
from shardctl.rebalance.planning.request import Asked, Request, asked
from shardctl.rebalance.planning.room import FilterRoom
from shardctl.rebalance.planning.solving import LESS_EFFORT, sets_after

WIDER = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # tolerances to offer where a closer one has no plan, or moves many slots
WORTH_OFFERING = 0.9  # of the slots that move: a wider tolerance that moves no more than that


def why_not(fleet: Fleet, request: Request) -> str:
    what = f"no plan within {request.tolerance:.0%} of each target keeps every filter within {MAX_FILTER_BYTES} bytes"
    for tolerance in WIDER:
        if tolerance > request.tolerance:
            wider = replace(request, tolerance=tolerance)
            wanted = asked(fleet, wider)
            sets = sets_after(fleet, wanted, wider, LESS_EFFORT) or {}
            if any(slots != wanted.shards[number].slots for number, slots in sets.items()):
                return f"{what}. The nearest that does: --tolerance {tolerance:.0%}."
    if request.add:
        largest = max(fleet.shards, key=lambda shard: len(shard.slots)).name
        return f"{what}, nor a wider one. The nearest way: --split {largest}."
    if request.remove:
        return f"{what}, nor a wider one. The nearest way: level the others first, `plan` without --remove."
    return f"{what}, nor a wider one. The nearest way: fewer message types a shard, or weights nearer to each other."


def why_nothing(wanted: Asked, request: Request, hot_slots: Sequence[int]) -> str:
    if not any(quota.must_give or quota.must_take for group in wanted.groups for quota in group.quotas):
        within = f"{request.tolerance:.0%}"
        return f"nothing to move: every shard is within {within} of its target. --tolerance asks for a closer one."
    what = f"no move takes {request.min_gain:.0%} off a peak and fits the filters"
    if hot_slots:
        return f"{what}. Slot {hot_slots[0]} alone exceeds a shard's part: give it a shard of its own with --add."
    return f"{what}. --min-gain 0% proposes smaller ones."


def why_more(fleet: Fleet, request: Request, moved: int) -> str:
    """Of a plan that moves more slots than its minimum: what the filters keep it from, and which tolerance costs less.

    It makes further plans, with less effort: ask only where a person reads the answer.
    """
    if request.rates is not None:
        return "slots aren't split, and each move must lower a peak"
    limit = f"a filter holds at most {MAX_FILTER_BYTES} bytes"
    wanted = asked(fleet, request)
    free = sets_after(fleet, wanted, request, LESS_EFFORT, math.inf)
    if free is not None and (fewer := _moved(wanted, free)) < moved:
        name, length = _longest(fleet, wanted, free)
        limit += f"; with {fewer:,} slots moved, that of {name} would take {length}"
    for tolerance in WIDER:
        if tolerance > request.tolerance:
            wider = replace(request, tolerance=tolerance)
            sets = sets_after(fleet, asked(fleet, wider), wider, LESS_EFFORT)
            if sets is not None and 0 < (fewer := _moved(wanted, sets)) <= WORTH_OFFERING * moved:
                return f"{limit}. --tolerance {tolerance:.0%} moves {fewer:,}"
    return limit


def _moved(wanted: Asked, sets: Mapping[int, SlotSet]) -> int:
    return sum(len(wanted.shards[number].slots - slots) for number, slots in sets.items())


def _longest(fleet: Fleet, wanted: Asked, sets: Mapping[int, SlotSet]) -> tuple[str, int]:
    """The shard whose filter is the longest among those that change, and its bytes."""
    lengths = {
        wanted.shards[number].name: FilterRoom(fleet, wanted.shards[number]).longest(slots)
        for number, slots in sets.items()
        if slots.ranges and slots != wanted.shards[number].slots
    }
    return max(lengths.items(), key=lambda entry: entry[1])
