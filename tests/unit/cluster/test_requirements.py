"""What must be there before anything is applied: each fault with what, where and the next step."""

import pytest
from cluster_kit import cluster_for, fleet_of

from shardctl.cluster.api import Api
from shardctl.cluster.manifests import manifests
from shardctl.cluster.requirements import check, served, wanted_secrets

pytestmark = pytest.mark.slow


def checked(cluster, fleet):
    api, rendered = Api(cluster.client()), manifests(fleet)
    return check(api, fleet, rendered, served(api, rendered))


def lacks_config_connector(cluster):
    cluster.without("PubSubTopic", "PubSubSubscription")


def lacks_keda(cluster):
    cluster.without("ScaledObject", "TriggerAuthentication")


def lacks_namespace(cluster):
    del cluster.objects["v1", "namespaces", "", "writers"]


def ends_namespace(cluster):
    cluster.find("Namespace", "writers")["status"] = {"phase": "Terminating"}


def denies(cluster):
    cluster.denied |= {("patch", "deployments"), ("create", "deployments")}


def lacks_metrics(cluster):
    del cluster.served["external.metrics.k8s.io/v1beta1"]


def lacks_secret(cluster):
    del cluster.objects["v1", "secrets", "writers", "orders-s1-db"]


def lacks_key(cluster):
    cluster.find("Secret", "orders-redis")["data"] = {"uri": "eA=="}


@pytest.mark.parametrize(
    ("settings", "harm", "parts"),
    [
        (
            "",
            lacks_config_connector,
            ["PubSubTopic, PubSubSubscription (pubsub.cnrm", "install Config Connector", "terraform"],
        ),
        ("autoscaling: keda", lacks_keda, ["TriggerAuthentication, ScaledObject (keda.sh", "install KEDA"]),
        (
            "",
            lacks_namespace,
            ["namespace writers doesn't exist", "kubectl create namespace writers", "create_namespace"],
        ),
        ("", ends_namespace, ["namespace writers is being deleted"]),
        (
            "",
            denies,
            ["may not create, patch deployments in namespace writers", "kubectl auth can-i create deployments"],
        ),
        ("", lacks_metrics, ["external.metrics.k8s.io/v1beta1", "Custom Metrics Stackdriver Adapter"]),
        (
            "",
            lacks_secret,
            ["Secret orders-s1-db isn't in namespace writers", "create secret generic orders-s1-db -n writers"],
        ),
        ("", lacks_key, ["Secret orders-redis in namespace writers has no key url", "kubectl edit secret"]),
    ],
    ids=["crd", "keda", "namespace", "terminating", "rights", "metrics", "secret", "key"],
)
def test_what_is_missing_is_named_with_the_next_step(settings, harm, parts):
    fleet = fleet_of(settings)
    cluster = cluster_for(fleet)
    assert checked(cluster, fleet).missing == ()
    harm(cluster)
    (sentence,) = checked(cluster, fleet).missing
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize(
    ("settings", "minor", "part"),
    [
        ("autoscaling: {kind: hpa, min: 0}", 36, "min 0) needs Kubernetes 1.37, and the cluster has 1.36"),
        ("autoscaling: {kind: hpa, min: 0}", 37, ""),
        ("workload: {pre_stop: 5s}", 29, "needs Kubernetes 1.30, and the cluster has 1.29: Deployment/orders-s0"),
        ("workload: {pre_stop: 5s}", 30, ""),
        ("workload: statefulset", 26, "needs Kubernetes 1.27"),
    ],
)
def test_what_an_older_server_would_refuse_is_found_first(settings, minor, part):
    fleet = fleet_of(settings)
    missing = checked(cluster_for(fleet, minor=minor), fleet).missing
    assert part in missing[0] if part else missing == ()


@pytest.mark.parametrize(
    ("minor", "part"), [(28, "needs Kubernetes 1.29, and the cluster has 1.28: Deployment/orders-s0"), (29, "")]
)
def test_a_server_without_native_sidecars_is_found_first(minor, part):
    database = "{cloud_sql: {instance: 'my-project:europe-west1:a', database: b}}"
    fleet = fleet_of("", f"shards:\n  - {{name: s0, slots: 0-15, database: {database}}}\n")
    missing = checked(cluster_for(fleet, minor=minor), fleet).missing
    assert part in missing[0] if part else missing == ()


def test_a_secret_that_may_not_be_read_is_unknown_and_not_there():
    fleet = fleet_of()
    cluster = cluster_for(fleet)
    cluster.denied.add(("get", "secrets"))
    known = checked(cluster, fleet)
    assert known.missing == ()
    assert known.unknown == ("orders-redis", "orders-s0-db", "orders-s1-db")


def test_a_secret_that_an_external_secret_makes_need_not_be_there():
    assert wanted_secrets(manifests(fleet_of("secrets: external-secrets"))) == {}


def test_a_secret_of_a_namespace_to_come_is_asked_for_after_the_namespace():
    fleet = fleet_of("create_namespace: true")
    cluster = cluster_for(fleet)
    lacks_secret(cluster)
    assert "render --kind Namespace" not in checked(cluster, fleet).missing[0]
    lacks_namespace(cluster)
    (sentence,) = checked(cluster, fleet).missing
    assert (
        "`shardctl render --kind Namespace | kubectl apply --server-side -f -`, then `kubectl create secret" in sentence
    )


def test_a_namespace_to_be_made_need_not_be_there():
    fleet = fleet_of("create_namespace: true\nsecrets: external-secrets")
    cluster = cluster_for(fleet)
    lacks_namespace(cluster)
    assert checked(cluster, fleet).missing == ()
