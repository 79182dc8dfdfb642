"""Whether a rebalance that is planned, open or done is the one that is asked for. Pure.

What was asked for isn't recorded anywhere. It follows from what changed: a plan by counts is made again, and is the same or
another one. A plan by load depends on rates that are gone, so only the shards that come and go are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shardctl.errors import ShardctlError
from shardctl.fleet.spec import Fleet, Shard
from shardctl.rebalance.journal import Entry
from shardctl.rebalance.planning import way_back
from shardctl.rebalance.planning.plan import plan
from shardctl.rebalance.planning.request import Request
from shardctl.rebalance.planning.way_back import Goal
from shardctl.shard.schema import RebalanceState


@dataclass(frozen=True, slots=True)
class Change:
    """The shards that come and go, and where it leads if slots are on their way back, or forward again."""

    new: frozenset[str]
    gone: frozenset[str]
    turn: str = ""

    def __str__(self) -> str:
        if self.turn:
            return self.turn
        parts = [f"adds {', '.join(sorted(self.new))}"] if self.new else []
        parts += [f"removes {', '.join(sorted(self.gone))}"] if self.gone else []
        return " and ".join(parts) or "moves slots among the shards there are"


def change_of(fleet: Fleet) -> Change:
    """What a transitional file changes."""
    moving = [shard for shard in fleet.shards if shard.previous is not None]
    new = frozenset(shard.name for shard in moving if not shard.previous)
    gone = frozenset(shard.name for shard in moving if not shard.slots.ranges)
    return Change(new, gone, _turn(way_back.course_of(fleet)))


def _turn(course: way_back.Course) -> str:
    if not course.turned:
        return ""
    if course.is_at(Goal.BACK):
        return "leads back to where it began"
    return "leads forward again" if course.is_at(Goal.FORWARD) else "leads some slots back"


def difference(fleet: Fleet, request: Request, *, by_load: bool) -> str:
    """How the rebalance of a transitional file differs from the one that is asked for; "" where it doesn't."""
    change = change_of(fleet)
    if request.back or request.forward:
        return "" if leads_there(way_back.course_of(fleet), request) else f"it {change}"
    if change.turn:
        return f"it {change}"
    if not by_load:
        return "" if _same_plan(fleet, request) else f"it {change}, and these options give another plan"
    if (frozenset(request.remove), request.split in _changed(fleet) or not request.split) != (change.gone, True):
        return f"it {change}"
    return "" if change.new == _new(request, change) else f"it {change}"


def leads_there(course: way_back.Course, request: Request) -> bool:
    """Whether the slots of a request are where it wants them, `back` or `forward`. Where nothing has turned, none are back.

    Slots that never moved haven't been led anywhere.
    """
    if request.slots is not None and not (request.slots & course.moving).ranges:
        return False
    goal = Goal.BACK if request.back else Goal.FORWARD
    return (course.turned or request.forward) and course.is_at(goal, request.slots)


def done(fleet: Fleet, journals: Iterable[Mapping[str, Entry]], request: Request) -> Entry | None:
    """The rebalance that has made the settled fleet what is asked for; None where it isn't known that one has.

    Which slots have moved doesn't show what was asked for, so that only shards that came or went, or a way back, are known again.
    """
    for entries in journals:
        for entry in entries.values():
            if entry.state == RebalanceState.DONE and _in_force(fleet, entry) and _asked(entry, request):
                return entry
    return None


def _same_plan(fleet: Fleet, request: Request) -> bool:
    try:
        return plan(_before(fleet), request).after == fleet
    except ShardctlError:  # it can't be asked for where this one began
        return False


def _before(fleet: Fleet) -> Fleet:
    """The settled fleet that a rebalance began with; not of a way back."""
    return fleet.model_copy(
        update={"shards": tuple(_shard_before(shard) for shard in fleet.shards if shard.previous != ())}
    )


def _shard_before(shard: Shard) -> Shard:
    if not shard.previous:
        return shard
    first = shard.previous[0]
    return shard.model_copy(update={"slots": first.slots, "generation": first.generation, "previous": None})


def _changed(fleet: Fleet) -> frozenset[str]:
    return frozenset(shard.name for shard in fleet.shards if shard.previous is not None)


def _new(request: Request, change: Change) -> frozenset[str]:
    if request.split and not request.into:
        return change.new if len(change.new) == 1 else frozenset()
    return frozenset([request.into] if request.split else request.add)


def _in_force(fleet: Fleet, entry: Entry) -> bool:
    """Whether the fleet's shards are as the rebalance left them."""
    shards = {shard.name: (shard.generation, str(shard.slots)) for shard in fleet.shards}
    return all(shards.get(shard["name"]) == _left(shard) for shard in entry.plan["shards"])


def _left(shard: Mapping[str, Any]) -> tuple[int, str] | None:
    return (shard["generation"], shard["slots"]) if shard["slots"] else None


def _asked(entry: Entry, request: Request) -> bool:
    course = way_back.course_of_journal(entry.plan)
    if request.back or request.forward:
        return course.turned and leads_there(course, request)
    new = {name for name, states in course.states.items() if not states[0].ranges}
    gone = {name for name, states in course.states.items() if not states[-1].ranges}
    if request.split:
        return new == {request.into}
    return bool(new or gone) and (new, gone) == (set(request.add), set(request.remove))
