"""What applying does to a cluster: its order, its waits, and that it may be killed anywhere."""

import pytest
from cluster_kit import Killed, Recorder, apply, cluster_for, fleet_of, preview

from shardctl.cluster.api import Api, RefusedError, Resource
from shardctl.cluster.manifests import Name
from shardctl.cluster.run import ApplyError
from shardctl.render.kinds import KINDS, Stage

pytestmark = pytest.mark.slow
ONE = "shards:\n  - {name: s0, slots: 0-15}\n"


def kinds_written(cluster):
    return [write.split()[1].partition("/")[0] for write in cluster.writes]


def test_no_workload_is_written_before_what_its_pods_need():
    fleet = fleet_of()
    cluster = cluster_for(fleet)
    apply(cluster, fleet)
    stages = [KINDS[kind].stage for kind in kinds_written(cluster)]
    assert stages == sorted(stages)
    assert {Stage.CLOUD, Stage.CONFIGURATION, Stage.WORKLOADS, Stage.AROUND} == set(stages)


def test_a_schedule_comes_last_since_its_message_needs_its_subscription():
    fleet = fleet_of(
        "schedules:\n  - {name: nightly, cron: 30 4 * * *, region: europe-west1, type: order, body: {order_id: sweep}}"
    )
    cluster = cluster_for(fleet)
    apply(cluster, fleet)
    assert kinds_written(cluster)[-1] == "CloudSchedulerJob"


def test_pods_wait_for_a_subscription_that_never_gets_ready():
    fleet, recorder = fleet_of(), Recorder()
    cluster = cluster_for(fleet)
    cluster.stuck.add("PubSubSubscription/orders-s1-g1")
    with pytest.raises(
        ApplyError, match=r"1 of .* objects aren't ready.*kubectl describe PubSubSubscription/orders-s1-g1"
    ):
        apply(cluster, fleet, recorder=recorder)
    assert cluster.names("Deployment") == []
    assert recorder.waits_lines[0] == (
        "Google Cloud",
        ("PubSubSubscription/orders-s1-g1: UpdateFailed: the service account lacks pubsub.admin",),
    )
    cluster.stuck.clear()
    apply(cluster, fleet)
    assert cluster.names("Deployment") == ["Deployment/orders-s0", "Deployment/orders-s1"]


def test_a_rollout_that_never_ends_is_an_error_with_what_its_pods_report():
    fleet, recorder = fleet_of(), Recorder()
    cluster = cluster_for(fleet)
    cluster.stuck.add("Deployment/orders-s0")
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    labels = {"app": "orders-consumer", "shard": "s0"}
    status = {"containerStatuses": [{"state": state}]}
    cluster.pods.append({"metadata": {"name": "orders-s0-x", "labels": labels}, "status": status})
    with pytest.raises(
        ApplyError, match=r"rollout: 1 of 2 objects aren't ready.*describe Deployment/orders-s0 -n writers"
    ):
        apply(cluster, fleet, recorder=recorder)
    assert recorder.waits_lines[-1] == (
        "rollout",
        ("Deployment/orders-s0: 0 of 1 pods are available; pod orders-s0-x: ImagePullBackOff: no such image",),
    )
    assert "HorizontalPodAutoscaler/orders-s0" in cluster.names()


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_that_cant_answer_for_a_moment_is_asked_again(code):
    """It says so itself, as one that restarts or changes its leader does."""
    fleet, recorder = fleet_of(), Recorder()
    cluster = cluster_for(fleet)
    cluster.failing = [code]
    apply(cluster, fleet, recorder=recorder)
    (what, (why,)) = recorder.waits_lines[0]
    assert what == "rollout"
    assert why.startswith(f"the cluster doesn't answer: HTTP {code}: etcdserver: leader changed.")


def test_a_second_run_changes_nothing():
    fleet = fleet_of()
    cluster = cluster_for(fleet)
    apply(cluster, fleet)
    recorder = Recorder()
    changes, _ = apply(cluster, fleet, recorder=recorder)
    assert {change.action for change in changes} == {"identical"}
    assert recorder.done_lines == []
    assert {body["metadata"]["generation"] for body in cluster.objects.values()} == {1}


def test_killed_before_any_write_the_next_run_finishes():
    before, after = fleet_of("provisioner: api"), fleet_of("provisioner: api\nautoscaling: none", ONE)
    start = cluster_for(before)
    apply(start, before)
    clean = start.copy()
    apply(clean, after)
    steps = len(clean.writes) - len(start.writes)
    assert steps == 10
    for step in range(steps):
        cluster = start.copy()
        cluster.left = step
        with pytest.raises(Killed):
            apply(cluster, after)
        cluster.left = None
        apply(cluster, after)
        assert cluster.state() == clean.state()


def test_from_an_hpa_to_a_fixed_number_the_hpa_goes_before_the_number_is_set():
    cluster = cluster_for(fleet_of())
    apply(cluster, fleet_of())
    cluster.set_by("kube-controller-manager", "Deployment", "orders-s0", ["spec", "replicas"], 7, "scale")
    cluster.writes.clear()
    apply(cluster, fleet_of("autoscaling: {kind: none, min: 3}"))
    assert cluster.names("HorizontalPodAutoscaler") == []
    assert cluster.find("Deployment", "orders-s0")["spec"]["replicas"] == 3
    assert cluster.writes.index("delete HorizontalPodAutoscaler/orders-s0") < cluster.writes.index(
        "patch Deployment/orders-s0"
    )


def test_from_a_fixed_number_to_an_hpa_the_number_stays_until_the_hpa_sets_it():
    fixed, scaled = fleet_of("autoscaling: {kind: none, min: 4}"), fleet_of()
    cluster = cluster_for(fixed)
    apply(cluster, fixed)
    apply(cluster, scaled)
    assert cluster.find("Deployment", "orders-s0")["spec"]["replicas"] == 4
    cluster.set_by("kube-controller-manager", "Deployment", "orders-s0", ["spec", "replicas"], 6, "scale")
    apply(cluster, scaled)
    assert cluster.find("Deployment", "orders-s0")["spec"]["replicas"] == 6


def test_a_person_who_scaled_by_hand_is_not_overruled_unasked():
    fleet = fleet_of("autoscaling: {kind: none, min: 3}")
    cluster = cluster_for(fleet)
    apply(cluster, fleet)
    cluster.set_by("kubectl-scale", "Deployment", "orders-s0", ["spec", "replicas"], 0, "scale")
    (change,) = (change for change in preview(cluster, fleet, force=False) if change.blocked)
    assert '.spec.replicas (owned by "kubectl-scale"' in change.problem
    assert "--force-conflicts" in change.problem
    apply(cluster, fleet, force=True)
    assert cluster.find("Deployment", "orders-s0")["spec"]["replicas"] == 3


def test_an_object_created_again_under_its_name_is_not_deleted():
    fleet = fleet_of("provisioner: api")
    cluster = cluster_for(fleet)
    apply(cluster, fleet)
    api, name = Api(cluster.client()), Name("HorizontalPodAutoscaler", "orders-s0", "writers", "autoscaling")
    resource = Resource("autoscaling/v2", name.kind, "horizontalpodautoscalers", namespaced=True)
    with pytest.raises(RefusedError, match="UID"):
        api.delete(resource, name, "the one that was seen before")
    assert cluster.find(name.kind, name.name) is not None
    assert api.delete(resource, name, cluster.find(name.kind, name.name)["metadata"]["uid"])
    assert not api.delete(resource, name, "any")
