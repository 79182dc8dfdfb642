import re
from dataclasses import replace

import pytest
from fleets import fleet
from optimum import fewest_moved
from planner_kit import any_case, with_long_filters

from shardctl.errors import UsageError
from shardctl.fleet import scaffold
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.rebalance.planning.board import least_moved
from shardctl.rebalance.planning.plan import NoPlanError, NothingToMoveError, plan
from shardctl.rebalance.planning.reasons import why_more
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


@pytest.mark.slow
def test_why_more_slots_move_than_balance_asks_for_names_the_filter_and_a_looser_balance():
    before, request = fleet(["0-255", "256-511", "512-767", "768-1023"], slot_bits=10), Request(add=("new",))
    made = plan(before, request)
    assert made.moved > made.minimum
    match = re.fullmatch(
        r"a filter holds at most 256 bytes; with (\d+) slots moved, that of (\w+) would take (\d+)\. "
        r"--tolerance (\d+)% moves (\d+)",
        why_more(before, request, made.moved),
    )
    fewer, _, length, tolerance, offered = match.groups()
    assert int(fewer) == made.minimum
    assert int(length) > 256
    assert plan(before, replace(request, tolerance=int(tolerance) / 100)).moved <= int(offered) < made.moved


@pytest.mark.slow
@pytest.mark.parametrize("shards", [3, 6])
def test_plans_stay_near_the_least_that_can_move(shards):
    """Of fleets that `shardctl init` makes: within twice what no plan stays under, and each reason that is given is true."""
    before = fleet_from(parse(scaffold.text(shards), "test"))
    for request in (Request(add=("new",)), Request(remove=("s0",)), Request(add=("new", "other"))):
        made = plan(before, request)
        assert made.minimum <= made.moved <= 2 * made.minimum
        if made.moved > made.minimum:
            assert "256 bytes" in why_more(before, request, made.moved)


def test_a_slot_goes_on_from_shard_to_shard_where_no_filter_has_room_for_many_givers():
    before = with_long_filters(fleet([f"{first}-{first + 7}" for first in range(0, 256, 8)], slot_bits=8), 4)
    made = plan(before, Request(add=("new",), tolerance=0.15))
    counts = {shard.name: len(shard.slots) for shard in made.after.shards}
    assert made.moved > made.minimum
    assert all(7 <= count <= 9 for count in counts.values())
