"""The fleet's Redis on Memorystore: the instance, its authority's certificate in the pods, and their way to it."""

from __future__ import annotations

from typing import Any

import pytest
from manifests import fleet_of, objects, only, pod_of

from shardctl.fleet.spec import Fleet
from shardctl.fleet.spec_errors import SpecError


def fleet(settings: str = "", more: str = "") -> Fleet:
    return fleet_of(f"redis: {{memorystore: {{region: europe-west1{settings}}}}}\n{more}")


def instance(fleet: Fleet) -> dict[str, Any]:
    (item,) = objects(fleet, "RedisInstance")
    return item


def test_nothing_is_made_unless_the_file_asks_for_it() -> None:
    assert objects(fleet_of(), "RedisInstance") == []


def test_by_default_it_encrypts_asks_for_a_password_and_survives_a_zone() -> None:
    item = instance(fleet())
    assert item["metadata"]["name"] == "orders-redis"
    assert item["metadata"]["annotations"]["cnrm.cloud.google.com/deletion-policy"] == "abandon"
    assert item["spec"] == {
        "region": "europe-west1",
        "tier": "STANDARD_HA",
        "memorySizeGb": 1,
        "redisVersion": "REDIS_7_2",
        "transitEncryptionMode": "SERVER_AUTHENTICATION",
        "authEnabled": True,
        "connectMode": "DIRECT_PEERING",
    }


def test_its_network_is_the_one_that_the_file_names() -> None:
    network = "projects/p-shared/global/networks/default"
    spec = instance(fleet(f", network: {network}, connect: private-service-access"))["spec"]
    assert (spec["authorizedNetworkRef"], spec["connectMode"]) == ({"external": network}, "PRIVATE_SERVICE_ACCESS")


def mounted(fleet: Fleet) -> dict[str, str]:
    pod = pod_of(only(fleet, "Deployment"))
    secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    return {
        f"{mounts[name]}/{item['key']}": secret["secretName"]
        for name, secret in secrets.items()
        for item in secret["items"]
    }


def test_consumers_mount_the_authoritys_certificate() -> None:
    assert mounted(fleet()) == {"/var/run/secrets/shardctl/orders-redis-ca/ca.crt": "orders-redis-ca"}
    assert mounted(fleet(", tls: false")) == {}


@pytest.mark.parametrize(("settings", "port"), [("", 6378), (", tls: false", 6379)])
def test_a_policy_lets_consumers_out_to_its_port(settings: str, port: int) -> None:
    egress = only(fleet(settings, "network_policy: {}"), "NetworkPolicy")["spec"]["egress"]
    assert {entry["port"] for rule in egress for entry in rule["ports"]} & {6378, 6379} == {port}


@pytest.mark.parametrize(
    ("settings", "more", "says"),
    [
        (", tier: big", "", r"redis\.memorystore\.tier: 'big' isn't one of 'standard' or 'basic'"),
        (", memory_gb: 0", "", r"redis\.memorystore\.memory_gb: must be greater than or equal to 1"),
        (", name: Redis", "", r"redis\.memorystore\.name: 'Redis' isn't an instance's id"),
        (", network: default", "", r"redis\.memorystore\.network: 'default' isn't a VPC network, projects/PROJECT/"),
        ("", "provisioner: api", r"redis\.memorystore: `provisioner: api` makes topics and subscriptions alone"),
    ],
)
def test_an_instance_that_cannot_be_made_is_refused(settings: str, more: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        fleet(settings, more)
