"""The way back from a rebalance that is open or was aborted. Pure."""

from __future__ import annotations

from shardctl.errors import UsageError
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet, Previous, Shard


def fleet_back(fleet: Fleet) -> Fleet | None:
    """Each changed shard with the slots it began with, under a new generation; None where it has them already.

    The generations on the way stay in `previous`, since any of them may hold slots active. Raises UsageError where no
    rebalance is open.
    """
    if not fleet.rebalancing:
        raise UsageError("no rebalance is open in this file: no shard has `previous`, so there is no way back.")
    moving = [shard for shard in fleet.shards if shard.previous is not None]
    # A shard that was new and gave its slots back also has `previous` and other slots than its first entry's. But then
    # every shard that still holds slots is back where it began.
    if all(shard.slots == _began_with(shard) for shard in moving if shard.slots.ranges):
        return None
    return fleet.model_copy(update={"shards": tuple(_back(shard) for shard in fleet.shards)})


def _back(shard: Shard) -> Shard:
    if shard.previous is None:
        return shard
    present = (Previous(generation=shard.generation, slots=shard.slots),) if shard.slots.ranges else ()
    return shard.model_copy(
        update={
            "slots": _began_with(shard),
            "generation": shard.generation + 1,
            "previous": (*shard.previous, *present),
        }
    )


def _began_with(shard: Shard) -> SlotSet:
    return shard.previous[0].slots if shard.previous else SlotSet()
