"""A shard on Cloud SQL: the Auth Proxy beside its consumer, its grants, and its way through the network."""

from __future__ import annotations

from typing import Any

import pytest
from manifests import fleet_of, objects, only, pod_of

from shardctl.fleet.spec import Fleet

ON_CLOUD_SQL = "{instance: 'data-project:europe-west1:orders', database: orders%s}"


def fleet(more: str = "", *, of_instance: str = "", secret: str = "") -> Fleet:
    database = f"{{{secret}cloud_sql: {ON_CLOUD_SQL % of_instance}}}"
    return fleet_of(
        more, f"shards:\n  - {{name: s0, slots: 0-7, database: {database}}}\n  - {{name: s1, slots: 8-15}}\n"
    )


def sidecar(made: Fleet) -> dict[str, Any]:
    (container,) = pod_of(only(made, "Deployment"))["initContainers"]
    return container


def database_url(made: Fleet) -> dict[str, Any]:
    (consumer,) = pod_of(only(made, "Deployment"))["containers"]
    (entry,) = (entry for entry in consumer["env"] if entry["name"] == "DATABASE_URL")
    return entry


def test_the_proxy_is_a_native_sidecar_that_logs_in_as_the_shard() -> None:
    container = sidecar(fleet("consumer: {drain_timeout: 40s}"))
    assert container["restartPolicy"] == "Always"
    assert container["args"] == [
        "--structured-logs",
        "--port=5432",
        "--health-check",
        "--http-address=0.0.0.0",
        "--http-port=9090",
        "--exit-zero-on-sigterm",
        "--max-sigterm-delay=40s",
        "--auto-iam-authn",
        "data-project:europe-west1:orders",
    ]


@pytest.mark.parametrize(("ip", "flags"), [("public", set()), ("private", {"--private-ip"}), ("psc", {"--psc"})])
def test_the_proxy_connects_to_the_address_that_the_file_names(ip: str, flags: set[str]) -> None:
    assert {"--private-ip", "--psc"} & set(sidecar(fleet(of_instance=f", ip: {ip}"))["args"]) == flags


def test_the_proxys_probes_are_its_own() -> None:
    container = sidecar(fleet("probes: {startup_failures: 10, period_seconds: 6}"))
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/startup", "liveness": "/liveness", "readiness": "/readiness"}
    assert (container["startupProbe"]["periodSeconds"], container["startupProbe"]["failureThreshold"]) == (1, 60)
    assert container["ports"] == [{"name": "proxy-health", "containerPort": 9090}]


def test_no_secret_is_read_where_consumers_log_in_by_iam() -> None:
    made = fleet("secrets: external-secrets")
    assert (
        database_url(made)["value"] == "postgresql://orders-s0%40my-project.iam@127.0.0.1:5432/orders?sslmode=disable"
    )
    assert [item["metadata"]["name"] for item in objects(made, "ExternalSecret")] == ["orders-redis", "orders-s1-db"]


def test_a_password_comes_from_its_secret_and_goes_through_the_proxy() -> None:
    made = fleet(of_instance=", iam: false", secret="name: login, ")
    assert database_url(made)["valueFrom"] == {"secretKeyRef": {"name": "login", "key": "url"}}
    assert "--auto-iam-authn" not in sidecar(made)["args"]


def test_a_shard_without_an_instance_has_no_sidecar() -> None:
    assert "initContainers" not in pod_of(only(fleet(), "Deployment", "orders-s1"))


@pytest.mark.parametrize(
    ("iam", "roles"),
    [("true", {"roles/cloudsql.client", "roles/cloudsql.instanceUser"}), ("false", {"roles/cloudsql.client"})],
)
def test_a_shard_may_connect_to_its_own_instance_alone(iam: str, roles: set[str]) -> None:
    specs = [item["spec"] for item in objects(fleet(of_instance=f", iam: {iam}"), "IAMPolicyMember")]
    granted = [spec for spec in specs if spec["resourceRef"]["kind"] == "Project"]
    assert {spec["role"] for spec in granted} == roles
    for spec in granted:
        assert spec["resourceRef"]["external"] == "projects/data-project"
        assert spec["memberFrom"] == {"serviceAccountRef": {"name": "orders-s0"}}
        assert spec["condition"]["expression"] == (
            "resource.name == 'projects/data-project/instances/orders' && resource.service == 'sqladmin.googleapis.com'"
        )


def database_ports(made: Fleet) -> set[int]:
    egress = only(made, "NetworkPolicy")["spec"]["egress"]
    return {port["port"] for rule in egress for port in rule["ports"]} & {3306, 3307, 5432}


def test_a_policy_lets_the_proxy_out_and_the_consumer_to_no_database() -> None:
    assert database_ports(fleet("network_policy: {}")) == {3307}
    assert database_ports(fleet("network_policy: {database: {ports: [5432]}}")) == {5432}


def test_a_quota_counts_the_sidecars() -> None:
    alone, with_proxies = (
        only(made, "ResourceQuota", "orders")["spec"]["hard"]["requests.memory"]
        for made in (fleet_of("resource_quota: {}"), fleet("resource_quota: {}"))
    )
    assert (alone, with_proxies) == ("9Gi", "9792Mi")  # 9 pods of s0, in a rollout, with 64Mi more each
