from fleets import fleet
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from shardctl.fleet import filters, topology
from shardctl.fleet.keyspace import SlotSet
from shardctl.rebalance.planning.room import FilterRoom

FLEETS = [
    fleet([[f'slots: "0-{(1 << bits) - 1}"', *types]], slot_bits=bits, topic_bits=topics)
    for bits, topics in ((1, 0), (4, 0), (6, 2), (10, 0), (10, 3), (5, 5), (16, 0))
    for types in ((), ("types: [a, b]",), ("except_types: []",))
]


@examples(1.5)
@given(st.sampled_from(FLEETS), st.sets(st.floats(0, 1, exclude_max=True), min_size=1, max_size=10))
def test_a_set_takes_as_many_bytes_as_its_longest_filter(fleet, cuts):
    count = 1 << fleet.routing.slot_bits
    ends = sorted({int(cut * count) for cut in cuts} | {count})
    slots = SlotSet(tuple((first, end - 1) for first, end in zip(ends[::2], ends[1::2], strict=False)))
    shard = fleet.shards[0].model_copy(update={"slots": slots})
    longest = max(len(sub.filter.encode()) for sub in topology.subscriptions(fleet, shard))
    room = FilterRoom(fleet, shard)
    if len(slots.ranges) <= filters._MAX_RANGES:
        assert room.longest(slots) == longest
    complete = all(topology._filter_on(fleet, shard, sub.topic).padded for sub in topology.subscriptions(fleet, shard))
    assert (room.padded(slots) <= filters.MAX_FILTER_BYTES) == complete
