import math

import pytest
from fleets import fleet

from shardctl.errors import UsageError
from shardctl.rebalance.planning.request import Request, asked

FLEET = fleet(["0-511", "512-1023"])
BY_TYPE = fleet(
    [["slots: 0-1023", "types: [a]"], *([f"slots: {slots}", "except_types: [a]"] for slots in ("0-511", "512-1023"))]
)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(add=("s0",)), "there already"),
        (Request(add=("n", "n")), "there already"),
        (Request(add=("No",)), "isn't a Kubernetes name"),
        (Request(add=("n",), remove=("s0",)), "changes of their own"),
        (Request(remove=("s9",)), "no shard 's9'"),
        (Request(remove=("s0", "s1")), "can't go"),
        (Request(like="s0"), "--add"),
        (Request(into="n"), "--split"),
        (Request(split="s9"), "no shard 's9'"),
        (Request(weights={"s9": 1}), "to weigh"),
        (Request(weights={"s0": 0}), "Weights are over 0"),
        (Request(weights={"s0": 2}, remove=("s0",)), "has no weight"),
        (Request(tolerance=1), "isn't a part"),
        (Request(min_gain=-0.1), "isn't a part"),
        (Request(rates={}), "every rate is 0"),
        (Request(rates={1024: 1.0}), "doesn't exist"),
        (Request(rates={1: math.nan}), "Rates are 0 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused(request_, message):
    with pytest.raises(UsageError, match=message):
        asked(FLEET, request_)


def test_more_shards_than_slots_are_refused():
    with pytest.raises(UsageError, match="each needs one"):
        asked(fleet(["0", "1"], slot_bits=1), Request(add=("n",)))


def test_slots_move_only_among_shards_of_the_same_types():
    groups = asked(BY_TYPE, Request()).groups
    assert [group.shards for group in groups] == [(0,), (1, 2)]


def test_an_added_shard_must_say_whose_types_it_takes_where_they_differ():
    with pytest.raises(UsageError, match="--like: s0, s1"):
        asked(BY_TYPE, Request(add=("n",)))
    wanted = asked(BY_TYPE, Request(add=("n",), like="s2"))
    assert wanted.shards[-1].except_types == ("a",)
    assert [group.shards for group in wanted.groups] == [(1, 2, 3)]


def test_the_only_shard_of_its_types_cannot_go():
    with pytest.raises(UsageError, match="--like s0"):
        asked(BY_TYPE, Request(remove=("s0",)))


@pytest.mark.parametrize(("name", "new"), [("s0", "s2"), ("s1", "s2")])
def test_a_split_finds_a_free_name(name, new):
    assert asked(FLEET, Request(split=name)).new == (new,)
