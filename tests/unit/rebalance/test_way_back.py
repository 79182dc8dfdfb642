from dataclasses import replace

import pytest
from fleets import fleet

from shardctl.errors import UsageError
from shardctl.fleet import coverage
from shardctl.fleet.keyspace import SlotSet
from shardctl.rebalance.planning.plan import NoPlanError, NothingToMoveError, plan
from shardctl.rebalance.planning.request import Request

THREE = fleet(["0-351", "352-671", "672-1023"])
BACK, FORWARD = Request(back=True), Request(forward=True)


@pytest.mark.parametrize("request_", [Request(add=("s3",)), Request(remove=("s1",)), Request(split="s0")])
def test_the_way_back_ends_where_it_began(request_):
    there = plan(THREE, request_).after
    back = plan(there, BACK)
    assert not coverage.faults(back.after)
    settled = {shard.name: shard.slots for shard in back.after.settled().shards}
    assert settled == {shard.name: shard.slots for shard in THREE.shards}
    for was, will in zip(there.shards, back.after.shards, strict=True):
        if was.previous is None:
            assert will == was
        else:
            assert will.generation == was.generation + 1
            assert will.previous[: len(was.previous)] == was.previous
            assert [previous.slots for previous in will.previous[len(was.previous) :]] == [was.slots] * bool(
                was.slots.ranges
            )


@pytest.mark.parametrize("request_", [Request(add=("s3",)), Request(remove=("s1",))])
def test_once_is_enough(request_):
    back = plan(plan(THREE, request_).after, BACK).after
    with pytest.raises(NothingToMoveError):
        plan(back, BACK)


def slots_of(fleet):
    return {shard.name: shard.slots for shard in fleet.settled().shards}


@pytest.mark.parametrize("request_", [Request(add=("s3",)), Request(remove=("s1",)), Request(split="s0")])
def test_there_back_and_there_again(request_):
    """Any number of times, whichever shards have no slots in between."""
    there = plan(THREE, request_).after
    fleet = there
    for _ in range(3):
        fleet = plan(fleet, BACK).after
        assert slots_of(fleet) == slots_of(THREE)
        fleet = plan(fleet, FORWARD).after
        assert slots_of(fleet) == slots_of(there)
        assert not coverage.faults(fleet)
    with pytest.raises(NothingToMoveError, match="where the rebalance leads already"):
        plan(fleet, FORWARD)


def test_some_slots_go_and_the_others_stay():
    there = plan(THREE, Request(add=("s3",))).after
    moved = there.shard("s3").slots & there.shard("s0").previous[0].slots
    some = SlotSet(((176, 207),))
    assert (moved & some) == some
    back = plan(there, replace(BACK, slots=some))
    assert [(move.source, move.destination, move.slots) for move in back.moves] == [("s3", "s0", some)]
    changed = [shard.name for shard in back.after.shards if shard.generation == there.shard(shard.name).generation + 1]
    assert changed == ["s0", "s1", "s2", "s3"]
    assert not coverage.faults(back.after)
    assert slots_of(plan(back.after, BACK).after) == slots_of(THREE)
    assert slots_of(plan(back.after, FORWARD).after) == slots_of(there)
    assert plan(back.after, replace(FORWARD, slots=some)).after == plan(back.after, FORWARD).after
    with pytest.raises(NothingToMoveError, match="these slots are where the rebalance began"):
        plan(back.after, replace(BACK, slots=some))


@pytest.mark.parametrize(
    ("request_", "error", "reason"),
    [
        (Request(back=True, slots=SlotSet.of((0, 1))), UsageError, "this rebalance doesn't move 0-1"),
        (Request(back=True, slots=SlotSet.of((1023, 1024))), UsageError, "there are no slots 1024"),
        (Request(back=True, slots=SlotSet.of((181, 190))), NoPlanError, r"nearest that fit: --slots 176-191\."),
        (Request(slots=SlotSet.of((181,))), UsageError, "give it with --back or --forward"),
        (Request(back=True, forward=True), UsageError, "each goes with no other change"),
        (Request(forward=True), NothingToMoveError, "the slots are where the rebalance leads"),
    ],
)
def test_slots_that_cant_go(request_, error, reason):
    with pytest.raises(error, match=reason):
        plan(plan(THREE, Request(add=("s3",))).after, request_)


def test_a_file_whose_previous_was_edited_by_hand():
    there = plan(THREE, Request(add=("s3",))).after
    shards = [
        shard if shard.name != "s0" else shard.model_copy(update={"previous": (), "generation": 1})
        for shard in there.shards
    ]
    with pytest.raises(UsageError, match="edited by hand"):
        plan(there.model_copy(update={"shards": tuple(shards)}), BACK)


def test_without_a_rebalance_there_is_no_way_back():
    with pytest.raises(UsageError, match="no rebalance is open"):
        plan(THREE, BACK)


def test_the_way_back_goes_with_no_other_change():
    with pytest.raises(UsageError, match="no other change"):
        plan(plan(THREE, Request(add=("s3",))).after, Request(back=True, add=("s4",)))
