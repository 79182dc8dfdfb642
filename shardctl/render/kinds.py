"""Every kind that is rendered, as the API server knows it: under which version, and when it is applied. Pure.

What the file doesn't render any more is looked for too, so the table holds kinds that this file may not use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Stage(IntEnum):
    """What is applied together. The next stage begins when what it needs is ready."""

    NAMESPACE = 0
    CLOUD = 1  # until these are ready, a pod would find no subscription, or have no right to read it
    CONFIGURATION = 2
    WORKLOADS = 3
    AROUND = 4  # autoscalers, traffic, monitoring; and schedules, whose messages need their subscriptions


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    api_version: str
    stage: Stage

    @property
    def group(self) -> str:
        return group_of(self.api_version)


def group_of(api_version: str) -> str:
    """`apps` of `apps/v1`; empty for the core's `v1`."""
    return api_version.rpartition("/")[0]


_BY_STAGE: Mapping[Stage, tuple[tuple[str, str], ...]] = {
    Stage.NAMESPACE: (("Namespace", "v1"),),
    Stage.CLOUD: (
        ("PubSubTopic", "pubsub.cnrm.cloud.google.com/v1beta1"),
        ("PubSubSubscription", "pubsub.cnrm.cloud.google.com/v1beta1"),
        ("IAMServiceAccount", "iam.cnrm.cloud.google.com/v1beta1"),
        ("RedisInstance", "redis.cnrm.cloud.google.com/v1beta1"),
        ("MemorystoreInstance", "memorystore.cnrm.cloud.google.com/v1beta1"),
        ("SQLInstance", "sql.cnrm.cloud.google.com/v1beta1"),
        ("SQLDatabase", "sql.cnrm.cloud.google.com/v1beta1"),
        ("SQLUser", "sql.cnrm.cloud.google.com/v1beta1"),
        ("IAMPolicyMember", "iam.cnrm.cloud.google.com/v1beta1"),
    ),
    Stage.CONFIGURATION: (
        ("ServiceAccount", "v1"),
        ("Role", "rbac.authorization.k8s.io/v1"),
        ("RoleBinding", "rbac.authorization.k8s.io/v1"),
        ("ConfigMap", "v1"),
        ("ExternalSecret", "external-secrets.io/v1"),
        ("ResourceQuota", "v1"),
        ("NetworkPolicy", "networking.k8s.io/v1"),
        ("Service", "v1"),
    ),
    Stage.WORKLOADS: (("Deployment", "apps/v1"), ("StatefulSet", "apps/v1")),
    Stage.AROUND: (
        ("HorizontalPodAutoscaler", "autoscaling/v2"),
        ("TriggerAuthentication", "keda.sh/v1alpha1"),
        ("ScaledObject", "keda.sh/v1alpha1"),
        ("PodDisruptionBudget", "policy/v1"),
        ("DestinationRule", "networking.istio.io/v1"),
        ("VirtualService", "networking.istio.io/v1"),
        ("KongUpstreamPolicy", "configuration.konghq.com/v1beta1"),
        ("Ingress", "networking.k8s.io/v1"),
        ("HTTPRoute", "gateway.networking.k8s.io/v1"),
        ("PodMonitoring", "monitoring.googleapis.com/v1"),
        ("PodMonitor", "monitoring.coreos.com/v1"),
        ("Rules", "monitoring.googleapis.com/v1"),
        ("GlobalRules", "monitoring.googleapis.com/v1"),
        ("PrometheusRule", "monitoring.coreos.com/v1"),
        ("LoggingLogMetric", "logging.cnrm.cloud.google.com/v1beta1"),
        ("MonitoringAlertPolicy", "monitoring.cnrm.cloud.google.com/v1beta1"),
        ("MonitoringDashboard", "monitoring.cnrm.cloud.google.com/v1beta1"),
        ("CloudSchedulerJob", "cloudscheduler.cnrm.cloud.google.com/v1beta1"),
    ),
}
KINDS: Mapping[str, Kind] = {
    name: Kind(name, api_version, stage) for stage, rows in _BY_STAGE.items() for name, api_version in rows
}
# What is left when the file no longer names it, and why.
KEPT: Mapping[str, str] = {
    "Namespace": "a namespace takes all that is in it along",
    "PubSubTopic": "a topic is never deleted: its subscriptions' messages would be lost with it",
    "RedisInstance": "an instance is never deleted: others may use it",
    "MemorystoreInstance": "an instance is never deleted: others may use it",
    "SQLInstance": "an instance is never deleted: it holds rows",
    "SQLDatabase": "a database is never deleted: it holds rows",
    "SQLUser": "it may own what the database holds",
    "GlobalRules": "it is cluster-scoped, and a fleet of the same name in another namespace may use it",
}
CLUSTER_SCOPED = frozenset({"Namespace", "GlobalRules"})
AUTOSCALERS = frozenset({"HorizontalPodAutoscaler", "ScaledObject"})
WORKLOADS = frozenset({"Deployment", "StatefulSet"})
_ORDER = {name: number for number, name in enumerate(KINDS)}


def stage_of(kind: str) -> Stage:
    """A kind that only a user's template renders is applied with the configuration."""
    return KINDS[kind].stage if kind in KINDS else Stage.CONFIGURATION


def place_of(kind: str) -> tuple[Stage, int]:
    """The order to apply in; deletions go the other way round."""
    return stage_of(kind), _ORDER.get(kind, len(_ORDER))
