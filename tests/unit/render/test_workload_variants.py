"""Deployment or StatefulSet, where its pods run, and how they are replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifests import CASES, WORKLOADS, fleet_of, objects, only, pod_of

from shardctl.fleet.load import load_fleet
from shardctl.fleet.spec_errors import SpecError

cases = pytest.mark.parametrize("path", CASES, ids=lambda path: path.parent.name)

DISK = "workload: {kind: statefulset, storage: {size: 5Gi}}"


# --- which kind -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["workload: statefulset", "workload: {kind: statefulset}"], ids=["short", "long"])
def test_a_stateful_set_takes_the_deployments_place(text: str) -> None:
    fleet = fleet_of(text)
    assert objects(fleet, "Deployment") == []
    assert [item["metadata"]["name"] for item in objects(fleet, "StatefulSet")] == ["orders-s0", "orders-s1"]


def test_a_default_fleet_has_deployments_and_nothing_of_stateful_sets() -> None:
    assert len(objects(fleet_of(), "Deployment")) == 2
    assert objects(fleet_of(), "StatefulSet", "Service") == []


def test_both_kinds_run_the_same_pods() -> None:
    deployment, stateful_set = only(fleet_of(), "Deployment"), only(fleet_of("workload: statefulset"), "StatefulSet")
    assert deployment["spec"]["template"] == stateful_set["spec"]["template"]
    assert deployment["spec"]["selector"] == stateful_set["spec"]["selector"]


@pytest.mark.parametrize(
    "more", ["", "workload: statefulset", DISK, "autoscaling: keda", "network_policy: {}"], ids=ascii
)
def test_selectors_never_change(more: str) -> None:
    for item in objects(fleet_of(more), *WORKLOADS):
        shard = item["metadata"]["labels"]["shard"]
        assert item["spec"]["selector"] == {"matchLabels": {"app": "orders-consumer", "shard": shard}}


def test_a_shard_says_what_differs_from_the_fleet() -> None:
    shards = "shards:\n  - {name: s0, slots: 0-7}\n  - {name: s1, slots: 8-15, workload: {storage: {size: 9Gi}}}\n"
    fleet = fleet_of("workload: statefulset", shards)
    assert "volumeClaimTemplates" not in only(fleet, "StatefulSet", "orders-s0")["spec"]
    (claim,) = only(fleet, "StatefulSet", "orders-s1")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"] == {"storage": "9Gi"}


# --- disks ------------------------------------------------------------------------------------------------------------


def test_each_pod_of_a_stateful_set_has_its_disk_where_sinks_may_write() -> None:
    stateful_set = only(fleet_of(DISK), "StatefulSet")
    (claim,) = stateful_set["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert claim["spec"]["resources"] == {"requests": {"storage": "5Gi"}}
    (container,) = pod_of(stateful_set)["containers"]
    mount = {"name": claim["metadata"]["name"], "mountPath": "/var/lib/shardctl"}
    assert mount in container["volumeMounts"]
    assert pod_of(stateful_set)["securityContext"]["fsGroup"] == 65532


def test_disks_outlive_replicas_and_sets() -> None:
    policy = only(fleet_of(DISK), "StatefulSet")["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert set(policy.values()) == {"Retain"}


def test_a_storage_class_is_shown_when_named() -> None:
    fleet = fleet_of("workload: {kind: statefulset, storage: {size: 5Gi, storage_class: premium-rwo}}")
    (claim,) = only(fleet, "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "premium-rwo"


def test_a_deployment_with_a_disk_is_refused() -> None:
    with pytest.raises(SpecError, match=r"workload: storage needs kind: statefulset"):
        fleet_of("workload: {storage: {size: 5Gi}}")


def test_a_stateful_sets_service_chooses_its_pods_and_balances_nothing() -> None:
    fleet = fleet_of("workload: statefulset")
    service = only(fleet, "Service", only(fleet, "StatefulSet")["spec"]["serviceName"])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"app": "orders-consumer", "shard": "s0"}


# --- replacing pods ---------------------------------------------------------------------------------------------------


@cases
def test_no_rollout_of_a_deployment_takes_a_pod_before_it_adds_one(path: Path) -> None:
    for item in objects(load_fleet(path), "Deployment"):
        rolling = item["spec"]["strategy"]["rollingUpdate"]
        assert rolling["maxUnavailable"] == 0
        assert rolling["maxSurge"] >= 1


@pytest.mark.slow
def test_a_rollout_may_add_more_pods_at_once() -> None:
    rolling = only(fleet_of("workload: {max_surge: 3}"), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 3, "maxUnavailable": 0}


def test_a_pod_lives_through_its_wait_and_its_drain() -> None:
    fleet = fleet_of("workload: {pre_stop: 12s}\nconsumer: {drain_timeout: 40s}")
    pod = pod_of(only(fleet, "Deployment"))
    assert pod["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 12}}}
    assert pod["terminationGracePeriodSeconds"] >= 12 + 40 + 5


def test_without_a_wait_there_is_no_hook() -> None:
    assert "lifecycle" not in pod_of(only(fleet_of(), "Deployment"))["containers"][0]


@cases
def test_a_budget_lets_every_drain_go_on(path: Path) -> None:
    """A minimum, or a maximum of none, would hold up a drain for ever where there is one replica."""
    for item in objects(load_fleet(path), "PodDisruptionBudget"):
        assert item["spec"]["maxUnavailable"] == 1
        assert "minAvailable" not in item["spec"]
        assert item["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@cases
def test_probes_ask_three_different_things(path: Path) -> None:
    """Dead, not writing, not started yet: a database that is away must not restart a pod."""
    for item in objects(load_fleet(path), *WORKLOADS):
        (container,) = pod_of(item)["containers"]
        startup, liveness, readiness = (container[f"{name}Probe"] for name in ("startup", "liveness", "readiness"))
        assert liveness["httpGet"]["path"] == startup["httpGet"]["path"] == "/health"
        assert readiness["httpGet"]["path"] == "/ready"
        assert startup["failureThreshold"] > liveness["failureThreshold"] > readiness["failureThreshold"]


# --- where pods run ---------------------------------------------------------------------------------------------------


@cases
def test_replicas_of_a_shard_keep_apart(path: Path) -> None:
    for item in objects(load_fleet(path), *WORKLOADS):
        labels = item["spec"]["selector"]
        pod = pod_of(item)
        (spread,) = pod["topologySpreadConstraints"]
        assert (spread["topologyKey"], spread["maxSkew"]) == ("topology.kubernetes.io/zone", 1)
        assert spread["labelSelector"] == labels
        (term,) = _host_terms(pod["affinity"]["podAntiAffinity"])
        assert term == {"topologyKey": "kubernetes.io/hostname", "labelSelector": labels}


def _host_terms(rules: dict) -> list[dict]:
    preferred = [rule["podAffinityTerm"] for rule in rules.get("preferredDuringSchedulingIgnoredDuringExecution", ())]
    return [*preferred, *rules.get("requiredDuringSchedulingIgnoredDuringExecution", ())]


@pytest.mark.parametrize(("wish", "unsatisfiable"), [("prefer", "ScheduleAnyway"), ("require", "DoNotSchedule")])
def test_spreading_is_a_wish_or_a_condition(wish: str, unsatisfiable: str) -> None:
    pod = pod_of(only(fleet_of(f"placement: {{hosts: {wish}, zones: {wish}}}"), "Deployment"))
    assert pod["topologySpreadConstraints"][0]["whenUnsatisfiable"] == unsatisfiable
    strength = "required" if wish == "require" else "preferred"
    assert list(pod["affinity"]["podAntiAffinity"]) == [f"{strength}DuringSchedulingIgnoredDuringExecution"]


def test_dedicated_nodes() -> None:
    fleet = fleet_of(
        "placement:\n"
        "  node_selector: {cloud.google.com/gke-nodepool: writers}\n"
        "  tolerations: [{key: dedicated, value: writers}, {key: spot, effect: NoExecute}]\n"
        "  priority_class: writes\n"
    )
    pod = pod_of(only(fleet, "Deployment"))
    assert pod["nodeSelector"] == {"cloud.google.com/gke-nodepool": "writers"}
    assert pod["tolerations"] == [
        {"key": "dedicated", "operator": "Equal", "value": "writers", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists", "effect": "NoExecute"},
    ]
    assert pod["priorityClassName"] == "writes"
