"""What the file no longer names: found by labels, and deleted only where nothing is lost with it."""

import pytest
from cluster_kit import apply, cluster_for, fleet_of

from shardctl.cluster.api import Api
from shardctl.cluster.manifests import Name, delete_command, manifests, no_longer_rendered
from shardctl.cluster.requirements import served
from shardctl.cluster.surplus import Surplus, deletions, find
from shardctl.render import KINDS as RENDERED
from shardctl.render.kinds import CLUSTER_SCOPED, KINDS

ONE = "shards:\n  - {name: s0, slots: 0-15}\n"


def entry(kind, name, shard="", uses=""):
    return Surplus(Name(kind, name, "writers", KINDS[kind].group), "u1", shard, uses)


READER = entry("Deployment", "orders-s1", "s1")
SUBSCRIPTION = entry("PubSubSubscription", "orders-s1-g1", "s1", "orders-s1-g1")
OLD = entry("PubSubSubscription", "orders-s0-g1", "s0", "orders-s0-g1")
GRANT = entry("IAMPolicyMember", "orders-s0-g1-subscriber", "s0", "orders-s0-g1")
TOPIC = entry("PubSubTopic", "data-writes")
INSTANCE = entry("SQLInstance", "orders-s1", "s1")
RULES = entry("GlobalRules", "orders")
HPA = entry("HorizontalPodAutoscaler", "orders-s0", "s0")


def test_every_rendered_kind_has_its_place():
    assert set(KINDS) == set(RENDERED)


@pytest.mark.parametrize(
    ("surplus", "backlogs", "deleted", "reasons"),
    [
        ([HPA], {}, [HPA], []),
        ([TOPIC], {}, [], ["a topic is never deleted"]),
        ([RULES], {}, [], ["cluster-scoped"]),
        ([INSTANCE], {}, [], ["it holds rows"]),
        ([OLD, GRANT], {"orders-s0-g1": 0}, [OLD, GRANT], []),
        ([OLD, GRANT], {"orders-s0-g1": 5}, [], ["a backlog of 5 messages", "it grants subscription orders-s0-g1"]),
        ([OLD], {"orders-s0-g1": None}, [], ["its backlog is unknown, since nobody answers"]),
        ([READER, SUBSCRIPTION], {"orders-s1-g1": 1}, [], ["needed while subscription orders-s1-g1", "a backlog of 1"]),
        ([READER, SUBSCRIPTION], {"orders-s1-g1": 0}, [READER, SUBSCRIPTION], []),
        ([HPA, OLD], {"orders-s0-g1": 9}, [HPA], ["a backlog of 9"]),
    ],
    ids=[
        "hpa",
        "topic",
        "global",
        "instance",
        "drained",
        "backlog",
        "unknown",
        "reader-kept",
        "reader-gone",
        "shard-that-stays",
    ],
)
def test_what_is_deleted_and_why_the_rest_is_left(surplus, backlogs, deleted, reasons):
    decided = deletions(fleet_of(shards=ONE), surplus, backlogs, "nobody answers")
    assert list(decided.deleted) == deleted
    assert len(decided.left) == len(reasons)
    for (_, reason), expected in zip(decided.left, reasons, strict=True):
        assert expected in reason


MOVING = """\
shards:
  - {name: s0, slots: 0-15, generation: 2, previous: [{generation: 1, slots: 0-7}]}
  - {name: s1, slots: [], generation: 2, previous: [{generation: 1, slots: 8-15}]}
"""


def test_after_a_rebalance_no_grant_of_the_old_generation_stays_and_nothing_of_the_removed_shard():
    fleet = fleet_of("workload: statefulset\nautoscaling: keda\nnetwork_policy: {}\nleader: kubernetes", MOVING)
    names = [str(name) for name in no_longer_rendered(fleet, fleet.settled())]
    grants = {f"s0-{grant}" for grant in ("g1-subscriber", "g1-agent", "data-writes-publisher")}
    grants |= {
        f"s1-{grant}"
        for grant in (
            "g1-subscriber",
            "g1-agent",
            "data-writes-publisher",
            "dead-letter-publisher",
            "workload-identity",
        )
    }
    assert {name for name in names if name.startswith("IAMPolicyMember/")} == {
        f"IAMPolicyMember/orders-{grant}" for grant in grants
    }
    for kind in (
        "StatefulSet",
        "ScaledObject",
        "Role",
        "NetworkPolicy",
        "IAMServiceAccount",
        "ServiceAccount",
        "ConfigMap",
    ):
        assert [name for name in names if name.startswith(f"{kind}/")] == [f"{kind}/orders-s1"]
    order = [name.partition("/")[0] for name in names]
    assert order.index("ScaledObject") < order.index("StatefulSet") < order.index("PubSubSubscription")
    assert order[-1] == "PubSubSubscription"


def test_the_command_by_hand_names_each_kind_with_its_group():
    names = (Name("Deployment", "orders-s1", "writers", "apps"), Name("Service", "orders-s1", "writers", ""))
    assert delete_command(names) == "kubectl delete -n writers deployment.apps/orders-s1 service/orders-s1"


def surplus_of(cluster, fleet):
    api, rendered = Api(cluster.client()), manifests(fleet)
    return find(api, fleet, rendered, served(api, rendered))


@pytest.mark.slow
def test_a_removed_shard_leaves_nothing_behind():
    """The cluster's answer is the difference of what both files render."""
    settings = "autoscaling: keda\nnetwork_policy: {}\nleader: kubernetes\ntraffic: services\nsecrets: external-secrets"
    before, after = fleet_of(settings), fleet_of(settings, ONE)
    cluster = cluster_for(before)
    apply(cluster, before)
    assert tuple(item.id for item in surplus_of(cluster, after).surplus) == no_longer_rendered(before, after)
    apply(cluster, after, backlogs={"orders-s1-g1": 0})
    assert cluster.names() == sorted(str(manifest.id) for manifest in manifests(after))


def test_other_fleets_and_parts_of_other_objects_are_left_alone():
    fleet = fleet_of("provisioner: api")
    cluster = cluster_for(fleet)
    labels = {"app.kubernetes.io/part-of": "orders", "app.kubernetes.io/managed-by": "shardctl"}
    for name, more in {"keda-hpa-x": {"ownerReferences": [{"kind": "ScaledObject"}]}, "gone": {}}.items():
        metadata = {"name": name, "labels": labels, **more}
        cluster.put("autoscaling/v2", "horizontalpodautoscalers", "writers", {"metadata": metadata})
    other = {"name": "others", "labels": {**labels, "app.kubernetes.io/part-of": "others"}}
    cluster.put("autoscaling/v2", "horizontalpodautoscalers", "writers", {"metadata": other})
    assert [item.id.name for item in surplus_of(cluster, fleet).surplus] == ["gone"]


def test_kinds_that_may_not_be_listed_are_unknown():
    fleet = fleet_of("provisioner: api")
    cluster = cluster_for(fleet)
    cluster.denied.add(("list", "virtualservices"))
    assert surplus_of(cluster, fleet).unlisted == ("VirtualService",)


def test_namespaces_are_nobodys_surplus_and_cluster_scoped_kinds_are_known():
    fleet = fleet_of("create_namespace: true\nprovisioner: api")
    scoped = {manifest.id.kind for manifest in manifests(fleet) if not manifest.id.namespace}
    assert scoped <= CLUSTER_SCOPED
    cluster = cluster_for(fleet)
    cluster.find("Namespace", "writers")["metadata"]["labels"] = {
        "app.kubernetes.io/part-of": "orders",
        "app.kubernetes.io/managed-by": "shardctl",
    }
    assert surplus_of(cluster, fleet_of("provisioner: api")).surplus == ()
