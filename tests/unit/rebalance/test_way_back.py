import pytest
from fleets import fleet

from shardctl.errors import UsageError
from shardctl.fleet import coverage
from shardctl.rebalance.planning.plan import NothingToMoveError, plan
from shardctl.rebalance.planning.request import Request

THREE = fleet(["0-351", "352-671", "672-1023"])
BACK = Request(back=True)


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


def test_without_a_rebalance_there_is_no_way_back():
    with pytest.raises(UsageError, match="no rebalance is open"):
        plan(THREE, BACK)


def test_the_way_back_goes_with_no_other_change():
    with pytest.raises(UsageError, match="no other change"):
        plan(plan(THREE, Request(add=("s3",))).after, Request(back=True, add=("s4",)))
