"""Whether an open or finished rebalance is the one that is asked for."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

import pytest
from fleets import fleet

from shardctl.errors import UsageError
from shardctl.fleet.keyspace import SlotSet
from shardctl.rebalance import journal
from shardctl.rebalance.journal import Entry
from shardctl.rebalance.planning import match
from shardctl.rebalance.planning.plan import plan
from shardctl.rebalance.planning.request import Request
from shardctl.shard.schema import RebalanceState

THREE = fleet(["0-15", "16-23", "24-31"], slot_bits=5)
RATES = {slot: 10.0 if slot < 4 else 1.0 for slot in range(32)}
REQUESTS = {
    "add": Request(add=("s3",)),
    "add two": Request(add=("s3", "s4")),
    "remove": Request(remove=("s1",)),
    "split": Request(split="s0", into="north"),
    "weights": Request(weights={"s0": 3.0}),
    "level": Request(),
}
BACK, FORWARD = Request(back=True), Request(forward=True)


@cache
def after(name):
    return plan(THREE, REQUESTS[name]).after


@pytest.mark.parametrize("asked", REQUESTS)
@pytest.mark.parametrize("is_open", REQUESTS)
def test_a_plan_by_counts_is_the_same_or_another(is_open, asked):
    assert bool(match.difference(after(is_open), REQUESTS[asked], by_load=False)) == (is_open != asked)


@pytest.mark.parametrize(
    ("is_open", "asked", "difference"),
    [
        (Request(add=("s3",), rates=RATES), Request(add=("s3",)), ""),
        (Request(add=("s3",), rates=RATES), Request(add=("s4",)), "it adds s3"),
        (Request(add=("s3",), rates=RATES), Request(), "it adds s3"),
        (Request(rates=RATES), Request(), ""),
        (Request(rates=RATES), Request(add=("s3",)), "it moves slots among the shards there are"),
        (Request(remove=("s1",), rates=RATES), Request(remove=("s1",)), ""),
        (Request(remove=("s1",), rates=RATES), Request(remove=("s2",)), "it removes s1"),
        (Request(split="s0", into="north", rates=RATES), Request(split="s0", into="north"), ""),
        (Request(split="s0", into="north", rates=RATES), Request(split="s0"), ""),
        (Request(split="s0", into="north", rates=RATES), Request(split="s1", into="north"), "it adds north"),
        (Request(split="s0", into="north", rates=RATES), Request(split="s0", into="south"), "it adds north"),
    ],
)
def test_a_plan_by_load_is_known_by_the_shards_that_come_and_go(is_open, asked, difference):
    assert match.difference(plan(THREE, is_open).after, asked, by_load=True) == difference


def test_a_way_back_is_the_same_as_a_way_back_alone():
    there = after("add")
    back = plan(there, BACK).after
    assert match.difference(back, BACK, by_load=False) == ""
    assert match.difference(back, REQUESTS["add"], by_load=False) == "it leads back to where it began"
    assert match.difference(there, BACK, by_load=False) == "it adds s3"
    assert match.difference(back, FORWARD, by_load=False) == "it leads back to where it began"
    assert match.difference(there, FORWARD, by_load=False) == ""
    again = plan(back, FORWARD).after
    assert match.difference(again, FORWARD, by_load=False) == ""
    assert match.difference(again, REQUESTS["add"], by_load=False) == "it leads forward again"
    assert match.difference(again, BACK, by_load=False) == "it leads forward again"


def test_a_way_back_of_some_slots_is_known_by_where_these_are():
    there = after("add")
    some, others = SlotSet(((0, 3),)), SlotSet(((8, 15),))
    assert (there.shard("s3").slots & some).ranges
    back = plan(there, replace(BACK, slots=some)).after
    assert match.difference(back, replace(BACK, slots=some), by_load=False) == ""
    assert match.difference(back, BACK, by_load=False) == "it leads some slots back"
    assert match.difference(there, replace(BACK, slots=others), by_load=False) == "it adds s3"
    assert match.done(back.settled(), done(back), replace(BACK, slots=some)).id == "id"
    assert match.done(back.settled(), done(back), BACK) is None


@pytest.mark.parametrize("turn", [BACK, FORWARD])
def test_slots_that_never_moved_have_not_been_led_back_or_forward(turn):
    """They are where both lead; taken for a way that has arrived, the next step would be `finish`."""
    again = plan(plan(after("add"), BACK).after, FORWARD).after
    stay = SlotSet.all(again.routing.slot_bits) - again.shard("s3").slots
    for slots in (stay, SlotSet(((90_000, 99_999),))):
        request = replace(turn, slots=slots)
        assert match.difference(again, request, by_load=False) == "it leads forward again"
        assert match.done(again.settled(), done(again), request) is None
        with pytest.raises(UsageError, match=r"--slots"):
            plan(again, request)


def done(transitional, state=RebalanceState.DONE):
    """The journals of its databases."""
    entry = Entry("id", state, {**journal.describe(transitional), "shard": "s0"}, datetime.now(UTC), None)
    return [{}, {"id": entry}]


@pytest.mark.parametrize("name", ["add", "add two", "remove", "split"])
def test_what_is_done_is_known_where_shards_came_or_went(name):
    transitional = after(name)
    settled = transitional.settled()
    assert match.done(settled, done(transitional), REQUESTS[name]).id == "id"
    assert match.done(settled, done(transitional, RebalanceState.ABORTED), REQUESTS[name]) is None
    assert match.done(settled, [], REQUESTS[name]) is None
    for other in REQUESTS.keys() - {name}:
        assert match.done(settled, done(transitional), REQUESTS[other]) is None


def test_a_split_without_a_name_for_its_new_half_is_never_done():
    transitional = after("split")
    assert match.done(transitional.settled(), done(transitional), replace(REQUESTS["split"], into="")) is None


def test_what_a_later_rebalance_changed_is_no_longer_done():
    first = after("add")
    later = plan(first.settled(), Request(add=("s4",))).after
    assert match.done(later.settled(), done(first), REQUESTS["add"]) is None


def test_a_way_back_that_is_done():
    back = plan(after("add"), BACK).after
    assert match.done(back.settled(), done(back), BACK).id == "id"
    assert match.done(back.settled(), done(after("add")), BACK) is None
    again = plan(back, FORWARD).after
    assert match.done(again.settled(), done(again), FORWARD).id == "id"
    assert match.done(again.settled(), done(again), BACK) is None
    assert match.done(again.settled(), done(again), REQUESTS["add"]).id == "id"
    assert match.done(back.settled(), done(back), REQUESTS["add"]) is None
