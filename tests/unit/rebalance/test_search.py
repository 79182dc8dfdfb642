import pytest
from fleets import fleet
from optimum import fewest_moved
from planner_kit import any_case, with_long_filters

from shardctl.errors import UsageError
from shardctl.rebalance.planning.board import least_moved
from shardctl.rebalance.planning.plan import NoPlanError, NothingToMoveError, plan
from shardctl.rebalance.planning.request import Request, asked


def _moved(fleet, request):
    try:
        return plan(fleet, request).moved
    except NothingToMoveError:
        return 0
    except NoPlanError:
        return None


BOUND = (16, 87, 103)  # seeds of cases whose filters have no room for the least moves


@pytest.mark.parametrize(
    "seeds",
    [BOUND, pytest.param(range(30), marks=pytest.mark.slow), pytest.param((82, 219), marks=pytest.mark.slow)],
    ids=str,
)
def test_no_plan_moves_fewer_slots(seeds):
    for seed in seeds:
        case = any_case(seed)
        try:
            wanted = asked(*case) if case else None
        except UsageError:
            continue
        moved = _moved(*case) if wanted else None
        if wanted and (moved or 0) <= 4:
            limit = 4 if moved is None else moved
            assert fewest_moved(case[0], wanted.groups[0], wanted.shards, limit) == moved, seed


@pytest.mark.slow
def test_some_of_those_cases_are_bound_by_their_filters():
    for seed in BOUND:
        case = any_case(seed)
        assert _moved(*case) > sum(least_moved(group.quotas) for group in asked(*case).groups)


def test_fewer_moves_win_over_filters_that_take_malformed_slots():
    before = with_long_filters(fleet(["0-4", "5-15"], slot_bits=4), 30)
    made = plan(before, Request(tolerance=0))
    assert (made.moved, made.minimum) == (3, 3)


def test_a_slot_goes_on_from_shard_to_shard_where_no_filter_has_room_for_many_givers():
    before = with_long_filters(fleet([f"{first}-{first + 7}" for first in range(0, 256, 8)], slot_bits=8), 4)
    made = plan(before, Request(add=("new",), tolerance=0.15))
    counts = {shard.name: len(shard.slots) for shard in made.after.shards}
    assert made.moved > made.minimum
    assert all(7 <= count <= 9 for count in counts.values())
