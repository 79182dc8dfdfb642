"""`redis` of shards.yaml: which kinds there are, and what is refused."""

from __future__ import annotations

import pytest

from shardctl.fleet.load import fleet_from
from shardctl.fleet.settings.redis import host_and_port
from shardctl.fleet.spec_errors import SpecError
from shardctl.fleet.yamlfile import parse

HEAD = """\
fleet: orders
project: my-project
image: example.com/consumer:1.0.0
message_types: {order: {table: orders, key: order_id, columns: {order_id: text}}}
shards: [{name: s0, slots: 0-1023}]
"""
SENTINEL = "{master: m, nodes: [a:1]}"


@pytest.mark.parametrize(
    ("redis", "says"),
    [
        ("{cluster: []}", "redis.cluster: needs at least 1 of these, and has 0"),
        ("{cluster: redis:6379}", "redis.cluster: a list is wanted, not text"),
        ("{cluster: [redis]}", r"redis.cluster\[0\]: 'redis' isn't host:port, such as redis-0"),
        ("{cluster: [redis:0]}", "the port of 'redis:0' isn't a number from 1 to 65535"),
        ("{cluster: [redis:65536]}", "the port of 'redis:65536' isn't a number from 1 to 65535"),
        ("{cluster: [a:1, b:1, a:1]}", "redis.cluster: 'a:1' is named twice"),
        ("{cluster: ['redis://:hunter2@a:1']}", r"'redis://:\*\*\*@a:1' isn't host:port"),
        ("{cluster: [-:1]}", "isn't host:port"),
        ("{sentinel: {nodes: [a:1]}}", "redis.sentinel.master: is missing"),
        ("{sentinel: {master: m}}", "redis.sentinel.nodes: is missing"),
        ("{sentinel: {master: 'a b', nodes: [a:1]}}", "redis.sentinel.master: 'a b' isn't a name of letters"),
        ("{sentinel: {master: m, node: [a:1]}}", "redis.sentinel.node: there is no such field. Did you mean nodes"),
        (f"{{cluster: [a:1], sentinel: {SENTINEL}}}", "redis: cluster and sentinel exclude each other"),
        ("{cluster: [a:1], memorystore: {region: europe-west1}}", "redis: cluster and memorystore exclude each other"),
    ],
)
def test_what_is_wrong_is_said(redis, says):
    with pytest.raises(SpecError, match=says) as refused:
        fleet_from(parse(f"{HEAD}redis: {redis}\n", "shards.yaml"))
    assert "hunter2" not in str(refused.value)


def test_a_list_is_not_also_too_short_for_its_wrong_items():
    with pytest.raises(SpecError) as refused:
        fleet_from(parse(f"{HEAD}redis: {{cluster: [redis]}}\n", "shards.yaml"))
    assert "at least" not in str(refused.value)


@pytest.mark.parametrize(
    ("endpoint", "parts"), [("redis-0.redis:6379", ("redis-0.redis", 6379)), ("[fd00::1]:1", ("fd00::1", 1))]
)
def test_host_and_port(endpoint, parts):
    fleet = fleet_from(parse(f"{HEAD}redis: {{cluster: ['{endpoint}']}}\n", "shards.yaml"))
    assert fleet.redis.cluster == (endpoint,)
    assert host_and_port(endpoint) == parts
