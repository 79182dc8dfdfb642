import pytest
from fleets import fleet
from hypothesis import given
from hypothesis import strategies as st
from planner_kit import any_case, contiguous, with_long_filters
from properties import examples

from shardctl.errors import UsageError
from shardctl.fleet import coverage, topology
from shardctl.fleet.filters import MAX_FILTER_BYTES
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Previous
from shardctl.rebalance.planning.plan import NoPlanError, NothingToMoveError, plan
from shardctl.rebalance.planning.request import Request, asked

THREE = fleet(["0-351", "352-671", "672-1023"])


def _slots(fleet):
    return {shard.name: str(shard.slots) for shard in fleet.shards}


@examples(0.2)
@given(st.integers(0, 100_000))
def test_a_plan_is_a_fleet_within_its_quotas_and_filters_and_always_the_same(seed):
    case = any_case(seed, bits=(4, 5), shards=(1, 4))
    try:
        made = plan(*case) if case else None
    except (NoPlanError, NothingToMoveError, UsageError):
        return
    if not made:
        return
    fleet_, request = case
    assert plan(fleet_, request) == made
    after = made.after
    assert not coverage.faults(after)
    assert not coverage.faults(after.settled())
    for shard in made.changed:
        assert all(len(sub.filter.encode()) <= MAX_FILTER_BYTES for sub in topology.subscriptions(after, shard))
    wanted = asked(fleet_, request)
    for number, quota in zip(wanted.groups[0].shards, wanted.groups[0].quotas, strict=True):
        assert quota.low <= len(after.shards[number].slots) <= quota.high
    owner = {slot: shard.name for shard in fleet_.shards for slot in shard.slots}
    for move in made.moves:
        assert {owner.pop(slot) for slot in move.slots} == {move.source}
        assert move.slots & after.shard(move.destination).slots == move.slots
    assert all(slot in after.shard(name).slots for slot, name in owner.items())


def test_a_changed_shard_names_the_generation_it_had():
    after = plan(THREE, Request(add=("s3",))).after
    assert [shard.generation for shard in after.shards] == [2, 2, 2, 1]
    assert after.shards[0].previous == (Previous(generation=1, slots=THREE.shards[0].slots),)
    assert after.shards[3].previous == ()
    assert after.rebalancing


def test_a_removed_shard_stays_without_slots_until_the_end():
    after = plan(THREE, Request(remove=("s1",))).after
    assert after.shard("s1").slots == SlotSet()
    assert [shard.name for shard in after.settled().shards] == ["s0", "s2"]


def test_a_shard_whose_slots_stay_keeps_its_generation():
    made = plan(THREE, Request(split="s1", into="new"))
    assert [shard.name for shard in made.changed] == ["s1", "new"]
    assert made.after.shards[0] == THREE.shards[0]


@pytest.mark.slow
def test_several_shards_come_and_go_at_once():
    four = plan(contiguous([256, 512, 768], 1024), Request(remove=("s0", "s3"))).after.settled()
    assert sorted(_slots(four)) == ["s1", "s2"]
    assert len(plan(THREE, Request(add=("a", "b"))).after.shards) == 5


@pytest.mark.slow
def test_weights_share_out_by_weight():
    after = plan(contiguous([64, 128, 192], 256, slot_bits=8), Request(weights={"s0": 3})).after
    assert 122 <= len(after.shard("s0").slots) <= 134


def test_where_the_fewest_dont_fit_a_little_more_move():
    """Of even shards, a new one can't have a part each: its filter would be too long. It takes rounder runs of some of them."""
    planned = plan(contiguous([256, 512, 768], 1024, slot_bits=10), Request(add=("new",)))
    assert planned.minimum < planned.moved < 1.3 * planned.minimum


def test_one_file_one_rebalance():
    after = plan(THREE, Request(add=("s3",))).after
    with pytest.raises(UsageError, match="a rebalance is open"):
        plan(after, Request(remove=("s0",)))


def test_nothing_to_move_is_reported():
    with pytest.raises(NothingToMoveError, match="within 10% of its target"):
        plan(THREE, Request(tolerance=0.1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cuts", "request_", "hint"),
    [
        ([64], Request(weights={"s0": 1.37}, tolerance=0), "or weights nearer to each other"),
        ([64], Request(add=("n",)), "--tolerance 50%"),
    ],
)
def test_a_refusal_names_the_nearest_way(cuts, request_, hint):
    """Where each filter has room for one prefix."""
    with pytest.raises(NoPlanError, match=f"keeps every filter within 256 bytes.*{hint}"):
        plan(with_long_filters(contiguous(cuts, 128, slot_bits=7), 200), request_)


def test_moves_keep_to_their_types():
    """Where shards of other types own, give and take the same slots."""
    kinds = ("types: [a]", "except_types: [a]")
    by_type = fleet([[f"slots: {slots}", kind] for kind in kinds for slots in ("0-255", "256-1023")])
    made = plan(by_type, Request(tolerance=0))
    assert [(move.source, move.destination) for move in made.moves] == [("s1", "s0"), ("s3", "s2")]
    assert not coverage.faults(made.after)


def test_of_plans_that_move_as_much_the_one_with_the_simplest_filters():
    made = plan(contiguous([256], 1024), Request(tolerance=0))
    assert [str(move.slots) for move in made.moves] == ["256-511"]
    assert plan(THREE, Request(add=("s3",))).inexact == ()
