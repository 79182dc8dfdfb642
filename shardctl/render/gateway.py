"""The gateway's objects on the cluster and in Google Cloud. None, unless the file asks for a gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from shardctl.errors import UsageError
from shardctl.fleet import serviceaccounts, topology
from shardctl.fleet.serviceaccounts import account_id
from shardctl.fleet.settings.cluster import Reach
from shardctl.fleet.settings.gateway import OPEN, Gateway
from shardctl.fleet.spec import Fleet
from shardctl.render.limits import METADATA_SERVER, rule_of
from shardctl.render.objects import Object, Plan, object_name, seconds, seconds_text
from shardctl.render.templates import Lines

GRACE_MARGIN_SECONDS = 10  # between the gateway's own drain and the kill
SERVICE_PORT, POD_PORT = 80, 8080
CONFIG_FILE = "gateway.json"

# The settings of the fleet that the gateway uses: a change of any other doesn't roll its pods.
_SLICE: Any = {
    **dict.fromkeys(("fleet", "project", "image", "topic", "routing", "message_types", "databases"), True),
    "shards": {"__all__": {"name", "slots", "types", "except_types", "generation", "previous"}},
}
_OF_THE_CLUSTER = {"autoscaling", "resources", "pre_stop", "from_namespaces"}


@dataclass(frozen=True, slots=True)
class _Gateway:
    """The gateway, with the values that several of its objects share."""

    name: str
    settings: Gateway
    labels: tuple[tuple[str, str], ...]

    @property
    def app(self) -> str:
        return self.name


def name_of(fleet: Fleet) -> str:
    return f"{fleet.fleet}-gateway"


def refuse_shared_name(fleet: Fleet) -> None:
    """Raise UsageError where a shard's objects would have the gateway's names."""
    if fleet.gateway is None:
        return
    for shard in fleet.shards:
        if account_id(topology.shard_id(fleet, shard)) == account_id(name_of(fleet)):
            raise UsageError(
                f"shard {shard.name!r} and the gateway would share the name {name_of(fleet)}. Rename the shard."
            )


def config_text(fleet: Fleet) -> str:
    """The fleet's slice as the gateway's ConfigMap holds it: a `shards.yaml` in JSON, defaults left out, keys sorted."""
    settings = fleet.model_dump(mode="json", include=_SLICE, exclude_defaults=True)
    gateway = fleet.gateway or OPEN
    settings["gateway"] = gateway.model_dump(mode="json", exclude=_OF_THE_CLUSTER, exclude_defaults=True)
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def _gateways(plan: Plan) -> Iterator[_Gateway]:
    settings = plan.fleet.gateway
    if not plan.whole or settings is None:
        return
    name = name_of(plan.fleet)
    own = {
        "app": name,
        "app.kubernetes.io/name": "shardctl-gateway",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": "gateway",
    }
    yield _Gateway(name, settings, tuple(sorted({**dict(plan.labels), **own}.items())))


# --- in Google Cloud --------------------------------------------------------------------------------------------------


def accounts(plan: Plan) -> Iterator[Object]:
    for gateway in _gateways(plan):
        yield _object(
            plan,
            gateway,
            "IAMServiceAccount",
            project=plan.fleet.project,
            account_id=account_id(gateway.name),
            display_name=f"HTTP gateway of fleet {plan.fleet.fleet}",
        )


def grants(plan: Plan) -> Iterator[Object]:
    """It may publish into the fleet's own topics, and nothing else."""
    fleet = plan.fleet
    for gateway in _gateways(plan):
        yield _grant(
            plan,
            gateway,
            f"{gateway.name}-workload-identity",
            role="roles/iam.workloadIdentityUser",
            resource_kind="IAMServiceAccount",
            resource_name=gateway.name,
            member=f"serviceAccount:{fleet.project}.svc.id.goog[{fleet.namespace}/{gateway.name}]",
            member_account=None,
        )
        for topic in topology.topics(fleet):
            yield _grant(
                plan,
                gateway,
                f"{gateway.name}-{object_name(topic.id)}-publisher",
                role="roles/pubsub.publisher",
                resource_kind="PubSubTopic",
                resource_name=object_name(topic.id),
                member=None,
                member_account=gateway.name,
            )


def email(plan: Plan) -> str:
    return serviceaccounts.email(plan.fleet, name_of(plan.fleet))


# --- on the cluster ---------------------------------------------------------------------------------------------------


def service_accounts(plan: Plan) -> Iterator[Object]:
    for gateway in _gateways(plan):
        yield _object(plan, gateway, "ServiceAccount", account_email=email(plan))


def config_maps(plan: Plan) -> Iterator[Object]:
    for gateway in _gateways(plan):
        config = Lines(config_text(plan.fleet))
        yield _object(plan, gateway, "ConfigMap", template="gatewayconfigmap", file=CONFIG_FILE, config=config)


def deployments(plan: Plan) -> Iterator[Object]:
    fleet = plan.fleet
    for gateway in _gateways(plan):
        settings = gateway.settings
        pre_stop = seconds(settings.pre_stop)
        yield _object(
            plan,
            gateway,
            "Deployment",
            template="gatewaydeployment",
            app=gateway.app,
            replicas=settings.autoscaling.min if settings.autoscaling.kind == "none" else None,
            image=fleet.image,
            config_checksum=sha256(config_text(fleet).encode()).hexdigest(),
            config_file=CONFIG_FILE,
            grace_seconds=seconds(settings.drain_timeout) + GRACE_MARGIN_SECONDS + pre_stop,
            pre_stop_seconds=pre_stop,
            probes=fleet.probes,
            resources=settings.resources,
            placement=fleet.placement,
            keys=settings.auth.secret if settings.auth.kind == "keys" else None,
            port=POD_PORT,
        )


def services(plan: Plan) -> Iterator[Object]:
    for gateway in _gateways(plan):
        yield _object(
            plan,
            gateway,
            "Service",
            template="service-http",
            app=gateway.app,
            shard=None,
            upstream_policy=None,
            affinity_seconds=None,
            port=SERVICE_PORT,
            target_port=POD_PORT,
        )


def autoscalers(plan: Plan) -> Iterator[Object]:
    for gateway in _gateways(plan):
        scaling = gateway.settings.autoscaling
        if scaling.kind == "hpa":
            yield _object(
                plan,
                gateway,
                "HorizontalPodAutoscaler",
                target_kind="Deployment",
                min_replicas=scaling.min,
                max_replicas=scaling.max,
                cpu_percent=scaling.cpu_percent,
                subscriptions=[],
            )


def disruption_budgets(plan: Plan) -> Iterator[Object]:
    for gateway in _gateways(plan):
        yield _object(plan, gateway, "PodDisruptionBudget", template="gatewaypoddisruptionbudget", app=gateway.app)


def network_policies(plan: Plan) -> Iterator[Object]:
    policy = plan.fleet.network_policy
    for gateway in _gateways(plan):
        if policy is None:
            continue
        reached = [*METADATA_SERVER, policy.google_apis]
        auth = gateway.settings.auth
        if auth.kind == "oidc":
            reached.append(Reach(ports=(urlsplit(auth.jwks_url).port or 443,)))
        egress = [rule_of(policy.dns, "UDP", "TCP"), *(rule_of(reach, "TCP") for reach in reached)]
        chosen = gateway.settings.from_namespaces
        yield _object(
            plan,
            gateway,
            "NetworkPolicy",
            template="gatewaynetworkpolicy",
            app=gateway.app,
            from_namespaces=tuple(dict.fromkeys([*chosen, *policy.from_namespaces])) if chosen else (),
            egress=tuple(dict.fromkeys(egress)),
        )


def pod_monitorings(plan: Plan) -> Iterator[Object]:
    yield from _scraping(plan, "managed-prometheus", "PodMonitoring")


def pod_monitors(plan: Plan) -> Iterator[Object]:
    yield from _scraping(plan, "prometheus-operator", "PodMonitor")


def _scraping(plan: Plan, stack: str, kind: str) -> Iterator[Object]:
    watching = plan.fleet.monitoring
    for gateway in _gateways(plan):
        if watching.collector == stack:
            labels = tuple(sorted({**watching.labels, **dict(gateway.labels)}.items()))
            interval = seconds_text(watching.scrape_interval)
            yield plan.object(kind, gateway.name, None, labels=labels, app=gateway.app, interval=interval)


def _object(plan: Plan, gateway: _Gateway, kind: str, *, template: str | None = None, **fields: object) -> Object:
    return plan.object(kind, gateway.name, None, template=template, labels=gateway.labels, **fields)


def _grant(plan: Plan, gateway: _Gateway, name: str, **fields: object) -> Object:
    return plan.object("IAMPolicyMember", name, None, template=None, labels=gateway.labels, **fields)
