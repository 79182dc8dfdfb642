"""The fleet's Redis as a Valkey on Memorystore, in each format, and the consumers that log in by IAM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from manifests import fleet_of, objects, only

from shardctl.fleet.spec import Fleet
from shardctl.fleet.spec_errors import SpecError
from shardctl.local.standins import on_this_machine
from tests.unit.render import cloud_kit
from tests.unit.render.test_gcloud import Cloud
from tests.unit.render.test_terraform import check, module

# As the provider documents them; True: must be given.
ARGUMENTS = {"instance_id": True, "location": True, "shard_count": True} | dict.fromkeys(
    (
        "project",
        "mode",
        "replica_count",
        "node_type",
        "engine_version",
        "transit_encryption_mode",
        "authorization_mode",
        "deletion_protection_enabled",
        "labels",
    ),
    False,
)
NETWORK = "projects/my-project/global/networks/default"


def fleet(settings: str = "", more: str = "") -> Fleet:
    return fleet_of(f"redis: {{memorystore: {{engine: valkey, region: europe-west1{settings}}}}}\n{more}")


def in_cloud(settings: str = "") -> Fleet:
    valkey = f"engine: valkey, region: europe-west1{settings}"
    return cloud_kit.fleet_of(cloud_kit.FLEET.replace("region: europe-west1}}", valkey + "}}"))


def instance(valkey: Fleet) -> dict[str, Any]:
    assert objects(valkey, "RedisInstance") == []
    (item,) = objects(valkey, "MemorystoreInstance")
    return item


def test_by_default_it_encrypts_wants_a_login_and_survives_a_zone() -> None:
    item = instance(fleet())
    assert item["metadata"]["name"] == "orders-redis"
    assert item["metadata"]["annotations"]["cnrm.cloud.google.com/deletion-policy"] == "abandon"
    project = item["spec"]["projectRef"]["external"]
    network = {"external": f"projects/{project}/global/networks/default"}
    connection = {"pscAutoConnection": {"networkRef": network, "projectRef": {"external": project}}}
    assert item["spec"] == {
        "projectRef": {"external": project},
        "location": "europe-west1",
        "mode": "CLUSTER_DISABLED",
        "shardCount": 1,
        "replicaCount": 1,
        "nodeType": "STANDARD_SMALL",
        "engineVersion": "VALKEY_8_0",
        "transitEncryptionMode": "SERVER_AUTHENTICATION",
        "authorizationMode": "IAM_AUTH",
        "deletionProtectionEnabled": True,
        "endpoints": [{"connections": [connection]}],
    }


def test_its_settings() -> None:
    spec = instance(fleet(", tier: basic, tls: false, auth: false, node_type: shared-core-nano, version: VALKEY_9_0"))[
        "spec"
    ]
    names = ("replicaCount", "transitEncryptionMode", "authorizationMode", "nodeType", "engineVersion")
    assert [spec[name] for name in names] == [
        0,
        "TRANSIT_ENCRYPTION_DISABLED",
        "AUTH_DISABLED",
        "SHARED_CORE_NANO",
        "VALKEY_9_0",
    ]


@pytest.mark.parametrize("auth", ["true", "false"])
def test_each_consumer_may_log_in_to_this_instance_alone(auth: str) -> None:
    valkey = fleet(f", auth: {auth}, name: locks")
    grants = [item for item in objects(valkey, "IAMPolicyMember") if "memorystore" in item["metadata"]["name"]]
    (configuration,) = only(valkey, "ConfigMap")["data"].values()
    assert json.loads(configuration).get("redis_iam", False) == (auth == "true") == bool(grants)
    for grant, shard in zip(grants, valkey.shards, strict=False):
        assert grant["spec"]["role"] == "roles/memorystore.dbConnectionUser"
        assert grant["spec"]["memberFrom"]["serviceAccountRef"]["name"] == f"orders-{shard.name}"
        condition = grant["spec"]["condition"]["expression"]
        assert condition == f"resource.name == 'projects/{valkey.project}/locations/europe-west1/instances/locks'"
    assert len(grants) == (len(valkey.shards) if auth == "true" else 0)


def test_a_policy_lets_consumers_out_to_all_its_ports() -> None:
    egress = only(fleet("", "network_policy: {}"), "NetworkPolicy")["spec"]["egress"]
    redis, ranged = {"protocol": "TCP", "port": 6379}, {"protocol": "TCP", "port": 11000, "endPort": 13047}
    assert [redis, ranged] in [rule["ports"] for rule in egress]


def test_on_this_machine_nobody_logs_in_by_iam() -> None:
    assert on_this_machine(fleet()).redis.memorystore is None


def test_terraform_has_documented_arguments_alone() -> None:
    valkey = in_cloud()
    resources = module(valkey)["resource"]
    (made,) = resources["google_memorystore_instance"].values()
    assert made.pop("lifecycle") == {"prevent_destroy": True}
    assert made.pop("desired_auto_created_endpoints") == [{"network": NETWORK, "project_id": "my-project"}]
    check(made, ARGUMENTS, "valkey")
    assert module(valkey)["terraform"]["required_providers"]["google"]["version"] == ">= 7.0"
    assert "google_redis_instance" not in resources
    roles = [grant["role"] for grant in resources["google_project_iam_member"].values()]
    assert roles.count("roles/memorystore.dbConnectionUser") == len(valkey.shards)


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["standard", pytest.param("basic", marks=pytest.mark.proof)])
def test_gcloud_makes_it_once_and_changes_it_never(tmp_path: Path, tier: str) -> None:
    cloud, valkey = Cloud(tmp_path), in_cloud(f", tier: {tier}")
    assert "create instance orders-redis" in cloud.done(valkey)
    made = cloud.state["memorystore instances orders-redis"]["flags"]
    assert json.loads(made["--endpoints"]) == [
        {"connections": [{"pscAutoConnection": {"network": NETWORK, "projectId": "my-project"}}]}
    ]
    assert cloud.done(valkey) == []
    cloud.change("memorystore instances orders-redis", node_type="highmem-medium")
    before = cloud.changes
    run = cloud.run(valkey)
    assert "different instance orders-redis" in run.stdout
    assert "the file wants CLUSTER_DISABLED|1|" in run.stderr
    assert (run.returncode, cloud.changes) == (0, before)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (", memory_gb: 1", r"redis\.memorystore: memory_gb: engine valkey has no such setting"),
        (", connect: direct-peering", r"redis\.memorystore: connect: engine valkey has no such setting"),
        (", version: REDIS_7_2", r"'REDIS_7_2' is no version of engine valkey"),
        (", node_type: large", r"redis\.memorystore\.node_type: 'large' isn't one of"),
        (", name: V", r"'V' isn't an instance's id"),
    ],
)
def test_an_instance_that_cannot_be_made_is_refused(settings: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        fleet(settings)


def test_a_redis_has_no_settings_of_valkey() -> None:
    with pytest.raises(SpecError, match="node_type: engine redis has no such setting"):
        fleet_of("redis: {memorystore: {region: europe-west1, node_type: standard-small}}\n")


@pytest.mark.parametrize("ports", ["[0]", "[65536]", "['6379']", "[9-8]", "[0-1]", "['1-65536']", "[true]", "[1.5]"])
def test_ports_are_numbers_or_ranges(ports: str) -> None:
    with pytest.raises(
        SpecError, match=r"network_policy\.redis\.ports\[0\]: .* isn't a port from 1 to 65535, or a range"
    ):
        fleet_of(f"network_policy: {{redis: {{ports: {ports}}}}}\n")
