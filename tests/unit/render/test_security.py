"""What pods may do, and whom they may talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from manifests import CASES, WORKLOADS, containers_of, fleet_of, objects, only, pod_of

from shardctl.fleet.load import load_fleet
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec_errors import SpecError

cases = pytest.mark.parametrize("path", CASES, ids=lambda path: path.parent.name)


# --- pods -------------------------------------------------------------------------------------------------------------

RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


@cases
def test_pods_meet_the_restricted_pod_security_standard(path: Path) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, rule by rule."""
    for item in objects(load_fleet(path), *WORKLOADS):
        pod = pod_of(item)
        assert not {"hostNetwork", "hostPID", "hostIPC", "ephemeralContainers"} & pod.keys()
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "sysctls" not in pod["securityContext"]
        for volume in pod["volumes"]:
            assert volume.keys() - {"name"} <= RESTRICTED_VOLUMES
        for container in containers_of(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not {"privileged", "procMount", "seccompProfile", "runAsUser", "runAsNonRoot"} & context.keys()
            assert all("hostPort" not in port for port in container["ports"])


@cases
def test_pods_have_no_more_than_they_need(path: Path) -> None:
    for item in objects(load_fleet(path), *WORKLOADS):
        pod = pod_of(item)
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert min(pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")) > 10_000
        for container in containers_of(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            for bound in ("requests", "limits"):
                assert container["resources"][bound].keys() == {"cpu", "memory", "ephemeral-storage"}
    for account in objects(load_fleet(path), "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


# --- grants -----------------------------------------------------------------------------------------------------------


def test_a_consumer_publishes_data_only_while_slots_leave_it_or_where_its_sinks_emit() -> None:
    def publishers(shards: str, **types: MessageType) -> set[str]:
        fleet = fleet_of("", shards)
        fleet = fleet.model_copy(update={"message_types": {**fleet.message_types, **types}})
        members = objects(fleet, "IAMPolicyMember")
        data = [item["spec"] for item in members if item["spec"]["resourceRef"]["name"] == "data-writes"]
        return {body["memberFrom"]["serviceAccountRef"]["name"] for body in data}

    moving = (
        "shards:\n"
        "  - {name: s0, slots: 0-3, generation: 2, previous: [{generation: 1, slots: 0-7}]}\n"
        "  - {name: s1, slots: 4-7, previous: []}\n"
        "  - {name: s2, slots: 8-15}\n"
    )
    assert publishers(moving) == {"orders-s0"}
    assert publishers("shards:\n  - {name: s0, slots: 0-15}\n") == set()
    emitting = MessageType(sink="a:b", routing_key="id", emits=("order",))
    shards = "shards:\n  - {name: s0, slots: 0-7}\n  - {name: s1, slots: 8-15}\n"
    assert publishers(shards, b=emitting) == {"orders-s0", "orders-s1"}


# --- network ----------------------------------------------------------------------------------------------------------

METADATA = [
    ("169.254.169.252/32", "TCP", 987),
    ("169.254.169.252/32", "TCP", 988),
    ("169.254.169.254/32", "TCP", 80),
    ("169.254.169.254/32", "TCP", 8080),
]


def reached(policy: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Each (addresses, protocol, port) that a policy lets out; "anywhere" where a rule names no addresses."""

    def peers() -> Iterator[tuple[str, str, int]]:
        for rule in policy["spec"]["egress"]:
            for port in rule["ports"]:
                for peer in rule.get("to", [{"ipBlock": {"cidr": "anywhere"}}]):
                    yield peer["ipBlock"]["cidr"], port["protocol"], port["port"]

    return sorted(peers())


def test_without_being_asked_for_nothing_is_closed_capped_or_fetched() -> None:
    assert objects(fleet_of(), "NetworkPolicy", "ResourceQuota", "ExternalSecret") == []


def test_a_policy_lets_out_what_a_consumer_needs_and_no_more() -> None:
    ways = [("TCP", 53), ("UDP", 53), ("TCP", 443), ("TCP", 3306), ("TCP", 5432), ("TCP", 6379)]
    anywhere = [("anywhere", *way) for way in ways]
    assert reached(only(fleet_of("network_policy: {}"), "NetworkPolicy")) == sorted([*METADATA, *anywhere])


def test_a_policy_of_known_addresses() -> None:
    fleet = fleet_of(
        "network_policy:\n"
        "  dns: {ports: [53], cidrs: [10.96.0.10/32]}\n"
        "  google_apis: {ports: [443], cidrs: [199.36.153.8/30]}\n"
        "  redis: {ports: [6378], cidrs: [10.1.0.0/29]}\n"
        "  database: {ports: [5432], cidrs: [10.2.0.0/24, fd00::/64]}\n"
        "  also: [{ports: [8443], cidrs: [10.3.0.1/32]}]\n"
    )
    assert reached(only(fleet, "NetworkPolicy")) == sorted(
        [
            *METADATA,
            ("10.96.0.10/32", "UDP", 53),
            ("10.96.0.10/32", "TCP", 53),
            ("199.36.153.8/30", "TCP", 443),
            ("10.1.0.0/29", "TCP", 6378),
            ("10.2.0.0/24", "TCP", 5432),
            ("fd00::/64", "TCP", 5432),
            ("10.3.0.1/32", "TCP", 8443),
        ]
    )


def test_each_shard_reaches_its_own_database() -> None:
    shards = (
        "shards:\n"
        "  - {name: s0, slots: 0-7, network_policy: {database: {ports: [5432], cidrs: [10.2.0.1/32]}}}\n"
        "  - {name: s1, slots: 8-15, network_policy: {database: {ports: [5432], cidrs: [10.2.0.2/32]}}}\n"
    )
    fleet = fleet_of("network_policy: {redis: {ports: [6378]}}", shards)
    first, second = (only(fleet, "NetworkPolicy", name) for name in ("orders-s0", "orders-s1"))
    assert set(reached(first)) - set(reached(second)) == {("10.2.0.1/32", "TCP", 5432)}
    assert set(reached(second)) - set(reached(first)) == {("10.2.0.2/32", "TCP", 5432)}
    assert ("anywhere", "TCP", 6378) in reached(second)


def test_a_policy_lets_in_scrapes_on_one_port() -> None:
    policy = only(fleet_of("network_policy: {from_namespaces: [gmp-system, edge]}"), "NetworkPolicy")["spec"]
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]
    (peer,) = rule["from"]
    (wanted,) = peer["namespaceSelector"]["matchExpressions"]
    assert wanted == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["gmp-system", "edge"]}
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_a_policy_that_lets_nobody_in() -> None:
    policy = only(fleet_of("network_policy: {from_namespaces: []}"), "NetworkPolicy")["spec"]
    assert "ingress" not in policy
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_a_policy_holds_for_the_pods_of_its_shard() -> None:
    fleet = fleet_of("network_policy: {}")
    for name in ("orders-s0", "orders-s1"):
        assert (
            only(fleet, "NetworkPolicy", name)["spec"]["podSelector"]
            == only(fleet, "Deployment", name)["spec"]["selector"]
        )


@pytest.mark.parametrize("cidr", ["10.0.0.1/8", "10.0.0.0/33", "300.0.0.0/8", "example.com", "fd00::1/8"])
def test_a_range_of_addresses_is_checked(cidr: str) -> None:
    with pytest.raises(SpecError, match=r"network_policy\.redis\.cidrs\[0\]: .* isn't a range of addresses"):
        fleet_of(f'network_policy: {{redis: {{ports: [6379], cidrs: ["{cidr}"]}}}}')
