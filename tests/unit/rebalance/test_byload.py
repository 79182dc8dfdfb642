import random

import pytest
from fleets import fleet

from shardctl.fleet import coverage
from shardctl.rebalance.planning.plan import NothingToMoveError, plan
from shardctl.rebalance.planning.request import Request

FOUR = fleet(["0-255", "256-511", "512-767", "768-1023"])


def _loads(fleet, rates):
    return [sum(rates.get(slot, 0) for slot in shard.slots) for shard in fleet.shards]


def _even(**hot):
    return dict.fromkeys(range(1024), 1.0) | {int(slot[1:]): rate for slot, rate in hot.items()}


def test_the_hottest_shard_gives():
    rates = {slot: 3.0 if slot < 256 else 1.0 for slot in range(1024)}
    made = plan(FOUR, Request(rates=rates))
    assert {move.source for move in made.moves} == {"s0"}
    assert max(_loads(made.after, rates)) <= 1536 / 4 * 1.06


@pytest.mark.parametrize("seed", range(8))
def test_no_plan_by_load_makes_the_peak_higher(seed):
    draw = random.Random(seed)
    rates = {slot: draw.expovariate(1) ** draw.choice([1, 3]) for slot in range(1024)}
    made = plan(FOUR, Request(rates=rates, tolerance=0.01))
    assert max(_loads(made.after, rates)) < max(_loads(FOUR, rates))
    assert not coverage.faults(made.after)


def test_a_move_that_gains_less_than_asked_is_not_proposed():
    rates = {slot: 1.2 if slot < 256 else 1.0 for slot in range(1024)}
    assert plan(FOUR, Request(rates=rates)).moves
    with pytest.raises(NothingToMoveError, match="--min-gain"):
        plan(FOUR, Request(rates=rates, min_gain=0.5))


def test_a_slot_that_no_shard_can_share_out_is_reported():
    with pytest.raises(NothingToMoveError, match="Slot 7 alone exceeds a shard's part"):
        plan(fleet(["0-7", "8-15"], slot_bits=4), Request(rates={7: 100.0, 3: 0.001}))


def test_a_hot_slot_gets_a_shard_of_its_own():
    made = plan(FOUR, Request(rates=_even(s100=3000.0), add=("hot",)))
    assert made.hot_slots == (100,)
    assert str(made.after.shard("hot").slots) == "100"


def test_a_shard_is_emptied_by_load():
    made = plan(FOUR, Request(rates=_even(), remove=("s3",)))
    assert not made.after.shard("s3").slots.ranges
    assert made.moved == 256
