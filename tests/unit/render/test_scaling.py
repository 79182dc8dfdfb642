"""An HPA, KEDA or nobody sets the number of replicas."""

from __future__ import annotations

from typing import Any

import pytest
from manifests import WORKLOADS, fleet_of, objects, only

from shardctl.fleet.advice import advice
from shardctl.fleet.shardconfig import slice_of
from shardctl.fleet.spec_errors import SpecError

KEDA = (
    "autoscaling: {kind: keda, min: 0, max: 6, backlog_per_replica: 250, keda: {activation_backlog: 3, polling: 10s}}"
)
MOVING = """\
shards:
  - {name: s0, slots: 0-3, generation: 2, previous: [{generation: 1, slots: 0-7}]}
  - {name: s1, slots: 4-7, previous: []}
  - {name: s2, slots: 8-15}
"""


def triggers(item: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [trigger for trigger in item["spec"]["triggers"] if trigger["type"] == kind]


def scalers(more: str) -> list[str]:
    return sorted(
        {item["kind"] for item in objects(fleet_of(more)) if "Scale" in item["kind"] or "Auto" in item["kind"]}
    )


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", ["HorizontalPodAutoscaler"]),
        ("autoscaling: hpa", ["HorizontalPodAutoscaler"]),
        ("autoscaling: keda", ["ScaledObject"]),
        ("autoscaling: {kind: none}", []),
    ],
)
def test_one_thing_scales_a_shard(more: str, expected: list[str]) -> None:
    assert scalers(more) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "replicas"), [("hpa", None), ("keda", None), ("none", 3)])
@pytest.mark.parametrize("workload", ["deployment", "statefulset"])
def test_a_manifest_states_replicas_only_where_nothing_else_does(
    kind: str, replicas: int | None, workload: str
) -> None:
    for item in objects(fleet_of(f"autoscaling: {{kind: {kind}, min: 3}}\nworkload: {workload}"), *WORKLOADS):
        assert item["spec"].get("replicas") == replicas


@pytest.mark.parametrize(
    ("more", "target"), [("", "Deployment"), ("workload: statefulset", "StatefulSet")], ids=["deployment", "set"]
)
@pytest.mark.parametrize("scaler", ["HorizontalPodAutoscaler", "ScaledObject"])
def test_a_scaler_points_at_what_runs_the_pods(more: str, target: str, scaler: str) -> None:
    kind = "keda" if scaler == "ScaledObject" else "hpa"
    reference = only(fleet_of(f"autoscaling: {kind}\n{more}"), scaler)["spec"]["scaleTargetRef"]
    assert reference == {"apiVersion": "apps/v1", "kind": target, "name": "orders-s0"}


def test_keda_asks_cloud_monitoring_for_the_backlog() -> None:
    scaled = only(fleet_of(KEDA), "ScaledObject")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    assert triggers(scaled, "prometheus") == [
        {
            "type": "prometheus",
            "metricType": "AverageValue",
            "metadata": {
                "serverAddress": "https://monitoring.googleapis.com/v1/projects/my-project/location/global/prometheus",
                "query": "sum(pubsub_googleapis_com:subscription_num_undelivered_messages{"
                'monitored_resource="pubsub_subscription",subscription_id="orders-s0-g1"})',
                "threshold": "250",
                "activationThreshold": "3",
                "ignoreNullValues": "false",
            },
            "authenticationRef": {"name": "orders-cloud-monitoring"},
        }
    ]
    assert triggers(scaled, "cpu") == [{"type": "cpu", "metricType": "Utilization", "metadata": {"value": "70"}}]
    bounds = {name: scaled["spec"][name] for name in ("minReplicaCount", "maxReplicaCount", "pollingInterval")}
    assert bounds == {"minReplicaCount": 0, "maxReplicaCount": 6, "pollingInterval": 10}


def test_every_setting_of_a_trigger_is_text() -> None:
    """KEDA refuses anything else."""
    for trigger in only(fleet_of(KEDA), "ScaledObject")["spec"]["triggers"]:
        assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_keda_signs_in_by_workload_identity_once_a_fleet() -> None:
    (authentication,) = objects(fleet_of(KEDA), "TriggerAuthentication")
    assert authentication["spec"] == {"podIdentity": {"provider": "gcp"}}
    assert objects(fleet_of(), "TriggerAuthentication") == []


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_while_slots_move_both_generations_scale_a_shard(kind: str) -> None:
    fleet = fleet_of(f"autoscaling: {kind}", MOVING)
    if kind == "hpa":
        metrics = only(fleet, "HorizontalPodAutoscaler")["spec"]["metrics"]
        shown = [m["external"]["metric"]["selector"]["matchLabels"] for m in metrics if m["type"] == "External"]
        assert [labels["resource.labels.subscription_id"] for labels in shown] == ["orders-s0-g1", "orders-s0-g2"]
    else:
        queries = [trigger["metadata"]["query"] for trigger in triggers(only(fleet, "ScaledObject"), "prometheus")]
        assert [query.partition('subscription_id="')[2] for query in queries] == ['orders-s0-g1"})', 'orders-s0-g2"})']


def test_no_shard_sleeps_while_slots_move() -> None:
    """Its barriers would wait for a reader, and the rebalance for its barriers."""
    moving = objects(fleet_of(KEDA, MOVING), "ScaledObject")
    assert [item["spec"]["minReplicaCount"] for item in moving] == [1, 1, 1]
    assert {item["spec"]["minReplicaCount"] for item in objects(fleet_of(KEDA), "ScaledObject")} == {0}


def test_without_an_autoscaler_no_shard_goes_to_zero() -> None:
    with pytest.raises(SpecError, match="autoscaling: min 0 needs kind: keda, or hpa on"):
        fleet_of("autoscaling: {kind: none, min: 0}")


def test_an_hpa_goes_to_zero_and_the_version_it_needs_is_named() -> None:
    fleet = fleet_of("autoscaling: {kind: hpa, min: 0}")
    assert {item["spec"]["minReplicas"] for item in objects(fleet, "HorizontalPodAutoscaler")} == {0}
    assert any("min 0 needs Kubernetes 1.37" in sentence for sentence in advice(fleet))


def test_a_shards_own_numbers_keep_the_fleets_kind() -> None:
    shards = (
        "shards:\n  - {name: s0, slots: 0-7, autoscaling: {max: 3}}\n  - {name: s1, slots: 8-15, autoscaling: hpa}\n"
    )
    fleet = fleet_of("autoscaling: keda", shards)
    assert [item["spec"]["maxReplicaCount"] for item in objects(fleet, "ScaledObject")] == [3]
    assert [item["metadata"]["name"] for item in objects(fleet, "HorizontalPodAutoscaler")] == ["orders-s1"]


@pytest.mark.parametrize(("kind", "replicas"), [("hpa", 9), ("keda", 9), ("none", 3)])
def test_a_rate_limit_is_divided_among_the_most_replicas_there_can_be(kind: str, replicas: int) -> None:
    fleet = fleet_of(f"autoscaling: {{kind: {kind}, min: 3, max: 9}}\nconsumer: {{rate_limit: 100}}")
    assert {slice_of(fleet, shard).replicas for shard in fleet.shards} == {replicas}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("autoscaling: {min: 1}", "autoscaling.min is 1: while that pod is moved"),
        ("autoscaling: {kind: none, min: 1}", "autoscaling.min is 1: while that pod is moved"),
        (KEDA, "autoscaling.min is 0: the first writes after a quiet time wait"),
        (KEDA, "autoscaling.keda.activation_backlog lets that many messages"),
    ],
)
def test_validate_warns_of_few_replicas(more: str, sentence: str) -> None:
    (text,) = (text for text in advice(fleet_of(more)) if text.startswith(sentence))
    assert text.endswith("s0, s1.")


def test_a_default_fleet_needs_no_advice_on_replicas() -> None:
    assert not [text for text in advice(fleet_of("autoscaling: {max: 8}")) if text.startswith("autoscaling")]
