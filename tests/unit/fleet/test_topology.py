"""Names on Pub/Sub."""

import re
from datetime import timedelta

import pytest
from fleets import HEAD, TYPE, fleet

from shardctl.fleet import topology
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse

BACKEND = "  call: {routing_key: id, http: {url: 'https://a.example'}}\n"

WITHOUT_ROOM = (("0-335", "336-687", "688-1023"), ("0-415", "416-683", "684-1023"))


def test_strays_have_a_plain_name_while_their_filter_is_always_the_same():
    (strays,) = topology.strays(fleet(("0-511", "512-1023")))
    assert strays.id == "orders-strays"


@pytest.mark.parametrize("layout", WITHOUT_ROOM)
def test_strays_whose_filter_goes_with_the_slots_have_a_name_that_does(layout):
    """A filter can't be changed, so another one needs another subscription."""
    (strays,) = topology.strays(fleet(layout))
    assert re.fullmatch("orders-strays-[0-9a-f]{6}", strays.id)
    assert topology.is_strays(fleet(layout), strays.id)


def test_other_filters_have_other_names():
    first, second = (topology.strays(fleet(layout))[0] for layout in WITHOUT_ROOM)
    assert first.filter != second.filter
    assert first.id != second.id


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("orders-strays", True),
        ("orders-strays-t3", True),
        ("orders-strays-0a1b2c", True),
        ("orders-strays-t3-0a1b2c", True),
        ("orders-s0-g1", False),
        ("orders-strays-s0-g1", False),
        ("others-strays", False),
    ],
)
def test_which_subscriptions_are_for_strays(name, is_one):
    assert topology.is_strays(fleet(("0-1023",)), name) is is_one


@pytest.mark.parametrize(
    ("subscription", "kind", "expected"),
    [
        ("{}", "", 1),
        ("{}", BACKEND, 10),
        ("{retry_maximum: 5s}", BACKEND, 5),
        ("{retry_maximum: 0s}", "", 0),
        ("{retry_minimum: 3s}", BACKEND, 3),
    ],
)
def test_a_backend_is_given_more_time_than_a_table_before_a_message_comes_again(subscription, kind, expected):
    types = f"message_types:\n{TYPE.format(name='a')}{kind}"
    text = f"{HEAD}subscription: {subscription}\n{types}shards: [{{name: s0, slots: 0-1023}}]\n"
    assert topology.retry_minimum(fleet_from(parse(text))) == timedelta(seconds=expected)
