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
from shardctl.shard.schema import RebalanceState


@dataclass(frozen=True, slots=True)
class Change:
    """The shards that come and go, and whether it leads back to where another rebalance began."""

    new: frozenset[str]
    gone: frozenset[str]
    back: bool

    def __str__(self) -> str:
        if self.back:
            return "leads back to where it began"
        parts = [f"adds {', '.join(sorted(self.new))}"] if self.new else []
        parts += [f"removes {', '.join(sorted(self.gone))}"] if self.gone else []
        return " and ".join(parts) or "moves slots among the shards there are"


def change_of(fleet: Fleet) -> Change:
    """What a transitional file changes."""
    moving = [shard for shard in fleet.shards if shard.previous is not None]
    new = frozenset(shard.name for shard in moving if not shard.previous)
    gone = frozenset(shard.name for shard in moving if not shard.slots.ranges)
    return Change(new, gone, back=way_back.fleet_back(fleet) is None)


def difference(fleet: Fleet, request: Request, *, by_load: bool) -> str:
    """How the rebalance of a transitional file differs from the one that is asked for; "" where it doesn't."""
    change = change_of(fleet)
    if change.back or request.back:
        return "" if change.back and request.back else f"it {change}"
    if not by_load:
        return "" if _same_plan(fleet, request) else f"it {change}, and these options give another plan"
    if (frozenset(request.remove), request.split in _changed(fleet) or not request.split) != (change.gone, True):
        return f"it {change}"
    return "" if change.new == _new(request, change) else f"it {change}"


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
    shards = entry.plan["shards"]
    if request.back:
        return any(len(shard["previous"]) > 1 for shard in shards)
    new = {shard["name"] for shard in shards if not shard["previous"]}
    gone = {shard["name"] for shard in shards if not shard["slots"]}
    if request.split:
        return new == {request.into}
    return bool(new or gone) and (new, gone) == (set(request.add), set(request.remove))
