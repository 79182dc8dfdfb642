"""The barrier: a marker on one slot that separates what the old generation writes from what the new one writes.

Every publisher can send one, so a barrier is a hint and never an order: it ends a lane only where the lane's own database
awaits it, with the token that it carries. See `shardctl.shard.lanes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardctl.fleet.keyspace import digits_of
from shardctl.wire.message import Encoded

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet, Shard

REBALANCE = "shardctl-barrier"
SHARD = "shardctl-shard"
GENERATION = "shardctl-generation"
TOKEN = "shardctl-token"  # noqa: S105 - the name of an attribute
MAX_DIGITS = 9  # of a generation
OWN_TYPE = "shardctl-barrier"  # passes every filter that doesn't name its types


@dataclass(frozen=True, slots=True)
class Barrier:
    """Ends a slot's lane in `generation` of `shard`, where `rebalance` is open and the database awaits `token`."""

    rebalance: str
    shard: str
    generation: int
    token: str


def encode(fleet: Fleet, shard: Shard, slot: int, barrier: Barrier) -> Encoded:
    """The barrier as a message that the filters of `shard` let through, in the order of its slot."""
    digits = digits_of(slot, fleet.routing.slot_bits)
    names = fleet.routing.attributes
    attributes = {
        names.slot: digits,
        names.message_type: shard.types[0] if shard.types else OWN_TYPE,
        REBALANCE: barrier.rebalance,
        SHARD: barrier.shard,
        GENERATION: str(barrier.generation),
        TOKEN: barrier.token,
    }
    return Encoded(slot, digits, b"", attributes)


def read(attributes: Mapping[str, str]) -> Barrier | None:
    """The barrier that a message is; None for every other message."""
    rebalance = attributes.get(REBALANCE, "")
    if not rebalance:
        return None
    generation = attributes.get(GENERATION, "")
    number = int(generation) if generation.isdecimal() and len(generation) <= MAX_DIGITS else 0
    return Barrier(rebalance, attributes.get(SHARD, ""), number, attributes.get(TOKEN, ""))
