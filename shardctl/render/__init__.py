"""A fleet as Kubernetes manifests. Pure but for reading templates once: no clock, no randomness, the file's order.

Templates hold the shape and the reasons; everything they show is computed here. No value can break out of its place:
the environment itself encodes each `{{ … }}` as one YAML scalar, and a template whose expression isn't a whole key,
value or list item is refused when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from jinja2 import Environment, TemplateError

from shardctl.errors import UsageError
from shardctl.fleet import topology
from shardctl.fleet.serviceaccounts import account_id
from shardctl.fleet.spec import Fleet
from shardctl.fleet.suggestion import suggestion
from shardctl.render import (
    apps,
    cloudmonitoring,
    cloudsql,
    gateway,
    limits,
    messaging,
    monitoring,
    operator,
    rbac,
    redisinstances,
    relay,
    scaling,
    sqlinstances,
    traffic,
    waves,
    workload,
)
from shardctl.render.config import config_text
from shardctl.render.objects import Object, Plan, object_name
from shardctl.render.scaling import max_replicas
from shardctl.render.templates import environment, place_of

__all__ = [
    "KINDS",
    "BadTemplateError",
    "Document",
    "account_id",
    "config_text",
    "document_of",
    "documents",
    "max_replicas",
    "object_name",
    "warnings",
]

SHARDS_NAMED = 5  # in one warning


@dataclass(frozen=True, slots=True)
class Document:
    """One object. `shard` is None for the fleet's own; `path` is its place under `-o DIR`; `text` is one document."""

    kind: str
    name: str
    shard: str | None
    path: str
    text: str


class BadTemplateError(UsageError):
    """A template can't be used; the message names the file."""


def documents(
    fleet: Fleet, *, shards: Collection[str] = (), kinds: Collection[str] = (), templates: Path | None = None
) -> Iterator[Document]:
    """Every object of the fleet, kind by kind in the order to apply them, shards in the file's order within a kind.

    `shards` and `kinds` (in any case) narrow that down; naming shards leaves out what belongs to the fleet as a whole.
    Templates in the folder `templates` take the place of the built-in ones of the same name. Raises UsageError at once,
    before the first document, for a shard, kind or folder that doesn't exist; BadTemplateError for a template at fault.
    """
    _refuse_shared_accounts(fleet)
    apps.refuse_shared_names(fleet)
    chosen_kinds = _chosen_kinds(fleet, kinds)
    chosen_shards = tuple(fleet.shard(name) for name in dict.fromkeys(shards)) or fleet.shards
    plan = Plan(fleet, chosen_shards, whole=not shards)
    return _rendered(plan, chosen_kinds, environment(templates))


def warnings(fleet: Fleet) -> tuple[str, ...]:
    """What the manifests can't do with the file as it is, each in one sentence."""
    sentences = []
    if fleet.project_number is None:
        sentences.append(
            "project_number isn't set, so Pub/Sub's service agent gets no grants and the platform won't dead-letter; "
            f"`gcloud projects describe {fleet.project} --format='value(projectNumber)'` prints the number"
        )
    capped = [s.name for s in fleet.shards if max_replicas(s) < s.autoscaling.most]
    if capped:
        more = f" and {len(capped) - SHARDS_NAMED} more" if len(capped) > SHARDS_NAMED else ""
        sentences.append(
            "autoscaling.max is over the number of slots, and more replicas would idle: "
            f"capped for {', '.join(capped[:SHARDS_NAMED])}{more}"
        )
    sentences.extend(traffic.warnings(fleet))
    sentences.extend(cloudmonitoring.warnings(fleet))
    return tuple(sentences)


def _refuse_shared_accounts(fleet: Fleet) -> None:
    owners: dict[str, str] = {}
    for shard in fleet.shards:
        name = account_id(topology.shard_id(fleet, shard))
        if owners.setdefault(name, shard.name) != shard.name:
            raise UsageError(
                f"shards {owners[name]!r} and {shard.name!r} would share the Google service account {name}, "
                "and so could read each other's messages. Rename one of them."
            )


# In the order to apply them: dependencies come first.
_BUILDERS: Mapping[str, Callable[[Plan], Iterator[Object]]] = {
    "Namespace": limits.namespaces,
    "PubSubTopic": messaging.topics,
    "PubSubSubscription": messaging.subscriptions,
    "IAMServiceAccount": lambda plan: chain(
        messaging.accounts(plan), gateway.accounts(plan), relay.accounts(plan), operator.accounts(plan)
    ),
    "RedisInstance": redisinstances.redis_instances,
    "MemorystoreInstance": redisinstances.valkey_instances,
    "SQLInstance": sqlinstances.instances,
    "SQLDatabase": sqlinstances.databases,
    "SQLUser": lambda plan: chain(sqlinstances.users(plan), gateway.users(plan), operator.users(plan)),
    "IAMPolicyMember": lambda plan: chain(
        messaging.grants(plan),
        cloudsql.grants(plan),
        redisinstances.grants(plan),
        gateway.grants(plan),
        relay.grants(plan),
        operator.grants(plan),
    ),
    "CloudSchedulerJob": messaging.scheduler_jobs,
    "ServiceAccount": lambda plan: chain(
        workload.service_accounts(plan),
        gateway.service_accounts(plan),
        relay.service_accounts(plan),
        operator.service_accounts(plan),
    ),
    "Role": lambda plan: chain(rbac.roles(plan), operator.roles(plan)),
    "RoleBinding": lambda plan: chain(rbac.role_bindings(plan), operator.role_bindings(plan)),
    "ConfigMap": lambda plan: chain(
        workload.config_maps(plan),
        gateway.config_maps(plan),
        relay.config_maps(plan),
        monitoring.dashboards(plan),
        operator.config_maps(plan),
    ),
    "ExternalSecret": limits.external_secrets,
    "ResourceQuota": limits.resource_quotas,
    "NetworkPolicy": lambda plan: chain(
        limits.network_policies(plan),
        gateway.network_policies(plan),
        relay.network_policies(plan),
        operator.network_policies(plan),
    ),
    "Service": lambda plan: chain(
        workload.headless_services(plan),
        workload.push_services(plan),
        traffic.services(plan),
        gateway.services(plan),
    ),
    "Deployment": lambda plan: chain(workload.deployments(plan), gateway.deployments(plan), relay.deployments(plan)),
    "StatefulSet": workload.stateful_sets,
    "HorizontalPodAutoscaler": lambda plan: chain(scaling.autoscalers(plan), gateway.autoscalers(plan)),
    "TriggerAuthentication": scaling.trigger_authentications,
    "ScaledObject": scaling.scaled_objects,
    "PodDisruptionBudget": lambda plan: chain(
        workload.disruption_budgets(plan), gateway.disruption_budgets(plan), relay.disruption_budgets(plan)
    ),
    "DestinationRule": traffic.destination_rules,
    "VirtualService": traffic.virtual_services,
    "KongUpstreamPolicy": traffic.upstream_policies,
    "Ingress": traffic.ingresses,
    "HTTPRoute": traffic.http_routes,
    "PodMonitoring": lambda plan: chain(
        monitoring.pod_monitorings(plan), gateway.pod_monitorings(plan), relay.pod_monitorings(plan)
    ),
    "PodMonitor": lambda plan: chain(
        monitoring.pod_monitors(plan), gateway.pod_monitors(plan), relay.pod_monitors(plan)
    ),
    "Rules": monitoring.namespace_rules,
    "GlobalRules": monitoring.global_rules,
    "PrometheusRule": monitoring.prometheus_rules,
    "LoggingLogMetric": cloudmonitoring.log_metrics,
    "MonitoringAlertPolicy": cloudmonitoring.alert_policies,
    "MonitoringDashboard": cloudmonitoring.dashboards,
}
KINDS = tuple(_BUILDERS)
# Objects in Google Cloud: left out of the manifests unless Config Connector makes them.
CLOUD_KINDS = (
    "PubSubTopic",
    "PubSubSubscription",
    "IAMServiceAccount",
    "RedisInstance",
    "MemorystoreInstance",
    "SQLInstance",
    "SQLDatabase",
    "SQLUser",
    "IAMPolicyMember",
    "CloudSchedulerJob",
    "LoggingLogMetric",
    "MonitoringAlertPolicy",
    "MonitoringDashboard",
)


def _chosen_kinds(fleet: Fleet, kinds: Iterable[str]) -> Collection[str]:
    elsewhere = () if fleet.provisioner == "config-connector" else CLOUD_KINDS
    by_lower = {kind.lower(): kind for kind in KINDS}
    chosen = set()
    for kind in kinds:
        if kind.lower() not in by_lower:
            raise UsageError(f"no kind {kind!r} is rendered.{suggestion(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
        if by_lower[kind.lower()] in elsewhere:
            raise UsageError(f"{by_lower[kind.lower()]} isn't among the manifests: provisioner is {fleet.provisioner}")
        chosen.add(by_lower[kind.lower()])
    return chosen or [kind for kind in KINDS if kind not in elsewhere]


def _rendered(plan: Plan, kinds: Collection[str], templates: Environment) -> Iterator[Document]:
    for kind, build in _BUILDERS.items():
        if kind not in kinds:
            continue
        for item in build(plan):
            yield document_of(plan.fleet, item, templates)


def document_of(fleet: Fleet, item: Object, templates: Environment) -> Document:
    shard = item.owner.shard.name if item.owner else None
    return Document(
        item.kind, item.name, shard, _path(fleet, item), _text(item, templates, sync_waves=fleet.sync_waves)
    )


def _text(item: Object, templates: Environment, *, sync_waves: bool) -> str:
    name = item.template_name
    try:
        text = templates.get_template(name).render(item.fields)
    except TemplateError as error:
        raise BadTemplateError(f"{place_of(error) or name}: {error.message or type(error).__name__}") from error
    try:
        return waves.annotated(text, waves.of_kind(item.kind)) if sync_waves else text
    except ValueError as error:
        raise BadTemplateError(f"{name}: {error}, so it can't be given a sync wave") from error


def _path(fleet: Fleet, item: Object) -> str:
    """`shards/s0/deployment.yaml`; the part of the name that the folder doesn't already say follows the kind."""
    base, folder = (item.owner.id, f"shards/{item.owner.shard.name}") if item.owner else (fleet.fleet, "fleet")
    rest = "" if item.name == base else "-" + item.name.removeprefix(f"{base}-")
    return f"{folder}/{item.kind.lower()}{rest}.yaml"
