"""Fleets and requests for tests of the planner."""

import random
from itertools import pairwise

from fleets import fleet

from shardctl.errors import UsageError
from shardctl.fleet import coverage
from shardctl.rebalance.planning.request import Request


def with_long_filters(fleet, length):
    """The same fleet with a slot attribute of so long a name that filters hold few prefixes."""
    attributes = fleet.routing.attributes.model_copy(update={"slot": "s" * length})
    return fleet.model_copy(update={"routing": fleet.routing.model_copy(update={"attributes": attributes})})


def contiguous(cuts, slots, **settings):
    """A fleet whose shards begin at 0 and at each cut."""
    return fleet([f"{first}-{end - 1}" for first, end in pairwise([0, *sorted(cuts), slots])], **settings)


def any_case(seed, *, bits=(3, 4), shards=(1, 3)):
    """A fleet and a request, the same for the same seed; None where that isn't a fleet."""
    draw = random.Random(seed)
    slot_bits, count = draw.choice(bits), draw.randint(*shards)
    try:
        fleet = contiguous(draw.sample(range(1, 1 << slot_bits), count - 1), 1 << slot_bits, slot_bits=slot_bits)
    except UsageError:
        return None
    shard = f"s{draw.randrange(count)}"
    kind = draw.choice(
        [
            {},
            {"add": ("new",)},
            {"remove": (shard,)},
            {"split": shard},
            {"weights": {shard: draw.choice([0.5, 2.0, 3.0])}},
        ]
    )
    fleet = with_long_filters(fleet, draw.choice([4, 30, 50, 70, 90]))
    return None if coverage.faults(fleet) else (fleet, Request(tolerance=draw.choice([0, 0.05, 0.2]), **kind))
