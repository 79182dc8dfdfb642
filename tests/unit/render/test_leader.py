"""What a shard that elects a leader needs of its cluster, and that no other shard gets any of it."""

from __future__ import annotations

from datetime import timedelta

import pytest
import yaml

from shardctl.fleet.advice import advice
from shardctl.fleet.shardconfig import ShardConfig, slice_of
from shardctl.fleet.spec_errors import SpecError
from shardctl.local.standins import on_this_machine
from shardctl.render import documents
from tests.unit.render.cloud_kit import FLEET, fleet_of

PLAIN = FLEET.replace("provisioner: terraform", "")
BOTH = PLAIN.replace("slots: 0-7}", "slots: 0-7, leader: kubernetes}") + "network_policy: {}\n"


def rendered(text, kind):
    texts = [document.text for document in documents(fleet_of(text), kinds=[kind])]
    return {manifest["metadata"]["name"]: manifest for manifest in map(yaml.safe_load, texts)}


def test_a_role_lets_a_shard_hold_its_own_lease_and_nothing_else():
    assert list(rendered(BOTH, "Role")) == ["orders-s0"]
    leases = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}
    assert rendered(BOTH, "Role")["orders-s0"]["rules"] == [
        {**leases, "resourceNames": ["orders-s0"], "verbs": ["get", "update"]},
        {**leases, "verbs": ["create"]},
    ]
    binding = rendered(BOTH, "RoleBinding")["orders-s0"]
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "orders-s0"}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "orders-s0", "namespace": "writers"}]


def test_a_token_is_mounted_where_it_is_used_alone():
    for name, wanted in (("orders-s0", True), ("orders-s1", False)):
        pod = rendered(BOTH, "Deployment")[name]["spec"]["template"]["spec"]
        [container] = pod["containers"]
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert ("/var/run/secrets/kubernetes.io/serviceaccount" in paths) is wanted
        assert any("projected" in volume for volume in pod["volumes"]) is wanted
        assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("leader", ["none", "redis"])
def test_without_kubernetes_nothing_of_it_is_rendered(leader):
    text = f"{PLAIN}leader: {leader}\n"
    assert rendered(text, "Role") == rendered(text, "RoleBinding") == {}


def test_the_way_to_the_api_is_open_where_it_is_used_alone():
    policies = rendered(BOTH, "NetworkPolicy")
    ports = {
        name: [[port["port"] for port in rule["ports"]] for rule in policy["spec"]["egress"]]
        for name, policy in policies.items()
    }
    assert [443, 6443] in ports["orders-s0"]
    assert [443, 6443] not in ports["orders-s1"]


def test_a_consumer_reads_back_what_was_rendered():
    fleet = fleet_of(f"{PLAIN}leader: {{kind: redis, lease_duration: 30s}}\n")
    text = slice_of(fleet, fleet.shards[0]).model_dump_json(exclude_defaults=True)
    leader = ShardConfig.model_validate_json(text).leader
    assert (leader.kind, leader.lease_duration, leader.retry_period) == (
        "redis",
        timedelta(seconds=30),
        timedelta(seconds=2),
    )


def test_times_that_dont_fit_are_refused():
    with pytest.raises(SpecError, match="retry_period"):
        fleet_of(f"{PLAIN}leader: {{kind: redis, renew_deadline: 20s}}\n")


def test_advice_on_how_many_stand_by():
    def sentences(scaling):
        text = PLAIN.replace("autoscaling: {max: 8}", f"autoscaling: {scaling}") + "leader: redis\n"
        return [sentence for sentence in advice(fleet_of(text)) if sentence.startswith("leader:")]

    assert "kind: none, min: 2" in sentences("{max: 8}")[0]
    assert "no standby" in sentences("{kind: none, min: 1}")[0]
    assert sentences("{kind: none, min: 2}") == []


def test_on_this_machine_it_is_elected_in_redis():
    fleet = on_this_machine(fleet_of(f"{BOTH}leader: kubernetes\n"))
    assert {shard.leader.kind for shard in fleet.shards} == {"redis"}
    assert on_this_machine(fleet_of(PLAIN)).shards == fleet_of(PLAIN).shards
