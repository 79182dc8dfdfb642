"""Where a slot stands, by what the databases hold of its lanes."""

import pytest
from rebalance_kit import after

from shardctl.fleet.keyspace import lane_of
from shardctl.rebalance import handover
from shardctl.rebalance.handover import Place, Stage
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import LaneState

SLOT = 6  # goes from s0 to s2


def hand_over_of(slot=SLOT):
    return next(hand_over for hand_over in handover.hand_overs(after()) if hand_over.slot == slot)


def views(**lanes):
    """`s0_1="active"`: the slot's lane in generation 1 of s0; `s0_1=("left", 5)` with its barrier's time."""
    lanes_by_shard = {"s0": {}, "s1": {}, "s2": {}}
    for name, lane in lanes.items():
        shard, generation = name.split("_")
        state, time_us = lane if isinstance(lane, tuple) else (lane, None)
        lanes_by_shard[shard][lane_of(SLOT, int(generation))] = Lane(SLOT, int(generation), LaneState(state), time_us)
    return lanes_by_shard


def test_one_for_each_slot_of_each_participating_shard():
    hand_overs = handover.hand_overs(after())
    assert sorted(hand_over.slot for hand_over in hand_overs) == list(range(16))
    assert hand_over_of().to == Place("s2", 1)
    assert hand_over_of().sources == (Place("s0", 1),)
    assert hand_over_of(3).to == Place("s0", 2)
    assert hand_over_of(3).sources == (Place("s0", 1),)


def test_shards_that_take_other_types_own_the_same_slots_apart():
    fleet = after(
        (
            ["slots: 0-7", "types: [a]", "generation: 2", "previous: [{generation: 1, slots: 0-15}]"],
            ["slots: 8-15", "types: [a]", "previous: []"],
            ["slots: 0-15", "types: [b]", "generation: 2", "previous: [{generation: 1, slots: 0-15}]"],
        )
    )
    sources = {(hand_over.slot, hand_over.to): hand_over.sources for hand_over in handover.hand_overs(fleet)}
    assert sources[9, Place("s1", 1)] == (Place("s0", 1),)
    assert sources[9, Place("s2", 2)] == (Place("s2", 1),)


@pytest.mark.parametrize(
    ("lanes", "stage", "source"),
    [
        ({"s0_1": "active", "s2_1": "arriving"}, Stage.WAITING, Place("s0", 1)),
        ({"s0_1": "active", "s2_1": "due"}, Stage.DUE, Place("s0", 1)),
        ({"s0_1": ("left", 5), "s2_1": "due"}, Stage.LEFT, Place("s0", 1)),
        ({"s0_1": ("left", 5), "s2_1": ("active", 5)}, Stage.ARRIVED, None),
        ({"s0_1": "active", "s2_1": ("active", 5)}, Stage.ARRIVED, None),  # the source was looked at before
        ({}, Stage.BROKEN, None),
        ({"s0_1": "active"}, Stage.BROKEN, None),
        ({"s2_1": "due"}, Stage.BROKEN, None),
        ({"s0_1": ("left", 5), "s2_1": "arriving"}, Stage.BROKEN, None),
        ({"s0_1": ("left", 5), "s2_1": ("left", 6)}, Stage.BROKEN, None),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_the_stage_of_a_slot_follows_from_its_lanes(lanes, stage, source):
    standing = handover.standing(hand_over_of(), views(**lanes))
    assert (standing.stage, standing.source) == (stage, source)
    assert bool(standing.fault) == (stage == Stage.BROKEN)


BACK = (
    ["slots: 0-7", "generation: 3", "previous: [{generation: 1, slots: 0-7}, {generation: 2, slots: 0-5}]"],
    ["slots: 8-15"],
    ["slots: []", "generation: 2", "previous: [{generation: 1, slots: 6-7}]"],
)


@pytest.mark.parametrize(
    ("lanes", "stage", "source"),
    [
        ({"s0_1": "active", "s2_1": "arriving", "s0_3": "arriving"}, Stage.WAITING, Place("s0", 1)),
        ({"s0_1": ("left", 5), "s2_1": ("active", 5), "s0_3": "arriving"}, Stage.WAITING, Place("s2", 1)),
        ({"s0_1": ("left", 5), "s2_1": ("left", 9), "s0_3": "due"}, Stage.LEFT, Place("s2", 1)),
        ({"s0_1": ("left", 9), "s2_1": "arriving", "s0_3": "due"}, Stage.LEFT, Place("s0", 1)),
    ],
)
def test_of_several_places_the_last_one_is_the_source(lanes, stage, source):
    back = next(hand_over for hand_over in handover.hand_overs(after(BACK)) if hand_over.slot == SLOT)
    standing = handover.standing(back, views(**lanes))
    assert (standing.stage, standing.source) == (stage, source)


def test_a_slot_that_is_active_twice():
    seen = views(s0_1="active", s2_1="active")
    assert handover.twice_active(hand_over_of(), seen) == "slot 6 is active in s2 g1 and in s0 g1"
    assert not handover.twice_active(hand_over_of(), views(s0_1="left", s2_1="active"))


def test_a_slot_that_is_active_in_a_lane_the_file_does_not_list():
    assert list(handover.unexpected(after(), views(s1_1="active"))) == [(Place("s1", 1), SLOT)]
    assert list(handover.unexpected(after(), views(s0_7="active"))) == [(Place("s0", 7), SLOT)]
    assert not list(handover.unexpected(after(), views(s0_1="active", s1_1="left")))
