import pytest
import yaml

from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local.changes import why_not

FLEET = {
    "fleet": "f",
    "project": "my-project",
    "image": "example.com/c:1",
    "message_types": {"customer": {"table": "customers", "key": "id", "columns": {"id": "text"}}},
    "shards": [{"name": "s0", "slots": "0-511"}, {"name": "s1", "slots": "512-1023"}],
}
MOVING = [
    {"name": "s0", "slots": "0-255", "generation": 2, "previous": [{"generation": 1, "slots": "0-511"}]},
    {"name": "s1", "slots": "512-1023"},
    {"name": "s2", "slots": "256-511", "previous": []},
]
SETTLED = [
    {"name": "s0", "slots": "0-255", "generation": 2},
    {"name": "s1", "slots": "512-1023"},
    {"name": "s2", "slots": "256-511"},
]


def fleet(**changes):
    return fleet_from(yamlfile.parse(yaml.safe_dump(FLEET | changes), "shards.yaml"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"consumer": {"batch_max_rows": 10}, "image": "example.com/c:2"}),
        ({}, {"message_types": {"order": {"table": "orders", "key": "id", "columns": {"id": "text"}}}}),
        ({}, {"shards": MOVING}),
        ({"shards": MOVING}, {"shards": SETTLED}),
        ({"shards": SETTLED}, {"shards": MOVING}),
    ],
    ids=["settings", "types", "a rebalance begins", "it ends", "it is reported after a fresh start"],
)
def test_what_can_be_applied(before, after):
    assert why_not(fleet(**before), fleet(**after)) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fleet": "g"}, "`fleet`"),
        ({"project": "other-project"}, "`project`"),
        ({"topic": "other"}, "`topic`"),
        ({"routing": {"topic_bits": 1}}, "`routing`"),
        ({"local": {"database": "sqlite"}}, "`local`"),
        ({"shards": SETTLED}, "the slots of s0 changed"),
    ],
)
def test_what_cant_is_reported(changes, message):
    (reason,) = why_not(fleet(), fleet(**changes))
    assert message in reason
