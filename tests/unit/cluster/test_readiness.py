"""When an object counts as ready, as its controller and `kubectl rollout status` see it."""

import pytest

from shardctl.cluster.readiness import pods_trouble, unready


def deployment(wanted=2, generation=3, **status):
    return {
        "kind": "Deployment",
        "metadata": {"name": "d", "generation": generation},
        "spec": {"replicas": wanted},
        "status": {"observedGeneration": 3, **status},
    }


def stateful_set(**status):
    status = {"observedGeneration": 1, "currentRevision": "a", "updateRevision": "a", **status}
    return {"kind": "StatefulSet", "metadata": {"generation": 1}, "spec": {"replicas": 2}, "status": status}


def subscription(*conditions, observed=1):
    status = {"observedGeneration": observed, "conditions": list(conditions)}
    return {"kind": "PubSubSubscription", "metadata": {"generation": 1}, "spec": {}, "status": status}


STALE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


@pytest.mark.parametrize(
    ("live", "reason"),
    [
        (deployment(updatedReplicas=2, replicas=2, availableReplicas=2), None),
        (deployment(wanted=0), None),
        (deployment(generation=4, updatedReplicas=2, replicas=2, availableReplicas=2), "hasn't seen the change"),
        (deployment(updatedReplicas=1, replicas=3, availableReplicas=2), "1 of 2 pods are new"),
        (deployment(updatedReplicas=2, replicas=3, availableReplicas=3), "1 old pods have yet to stop"),
        (deployment(updatedReplicas=2, replicas=2, availableReplicas=1), "1 of 2 pods are available"),
        (deployment(conditions=[STALE]), "no progress"),
        (stateful_set(readyReplicas=2, updatedReplicas=2), None),
        (stateful_set(readyReplicas=1), "1 of 2 pods are ready"),
        (stateful_set(readyReplicas=2, updatedReplicas=1, updateRevision="b"), "1 of 2 pods are new"),
        (subscription({"type": "Ready", "status": "True"}), None),
        (subscription({"type": "Ready", "status": "True"}, observed=0), "hasn't seen the change"),
        (subscription({"type": "Ready", "status": "False", "reason": "R", "message": "m"}), "R: m"),
        (subscription(), "hasn't reported anything yet"),
        ({"kind": "ConfigMap", "metadata": {"generation": 1}}, None),
    ],
)  # fmt: skip
def test_readiness(live, reason):
    why = unready(live)
    assert why is None if reason is None else reason in str(why)
    assert why is None or why.failed == (reason == "no progress")


def test_a_pod_that_starts_as_it_should_has_no_trouble():
    starting = {"state": {"waiting": {"reason": "ContainerCreating"}}}
    assert pods_trouble([{"metadata": {"name": "p"}, "status": {"containerStatuses": [starting]}}]) == ""


def test_a_pod_that_no_node_takes_is_named():
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    pod = {"metadata": {"name": "p"}, "status": {"conditions": [condition]}}
    assert pods_trouble([pod]) == "pod p: Unschedulable: 0/3 nodes"
