"""A Redis Cluster and Sentinels in what is rendered, and on this machine."""

from __future__ import annotations

import json

import pytest
from manifests import fleet_of, only

from shardctl.local.standins import on_this_machine

KINDS = {
    "cluster": "redis: {cluster: ['a:7000', 'b:7001', 'c:7000']}\n",
    "sentinel": "redis: {sentinel: {master: m, nodes: ['a:26379', 'b:26380']}}\n",
}


@pytest.mark.parametrize(("kind", "ports"), [("cluster", [7000, 7001]), ("sentinel", [6379, 26379, 26380])])
def test_the_network_policy_lets_consumers_out_to_the_nodes(kind: str, ports: list[int]) -> None:
    egress = only(fleet_of(KINDS[kind] + "network_policy: {}\n"), "NetworkPolicy")["spec"]["egress"]
    assert ports in [[port["port"] for port in rule["ports"]] for rule in egress]


def test_ports_that_the_file_names_are_all_that_is_open() -> None:
    fleet = fleet_of(KINDS["sentinel"] + "network_policy: {redis: {ports: [6390, 26379]}}\n")
    egress = only(fleet, "NetworkPolicy")["spec"]["egress"]
    rules = [[port["port"] for port in rule["ports"]] for rule in egress]
    assert [6390, 26379] in rules
    assert not any(6379 in rule for rule in rules)


@pytest.mark.parametrize("kind", KINDS)
def test_the_consumers_configuration_names_the_nodes(kind: str) -> None:
    (text,) = only(fleet_of(KINDS[kind]), "ConfigMap")["data"].values()
    assert json.loads(text)[f"redis_{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_on_this_machine_redis_is_one_server(kind: str) -> None:
    assert on_this_machine(fleet_of(KINDS[kind])).redis == fleet_of("").redis
