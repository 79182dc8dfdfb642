"""The gateway's objects on the cluster and in Google Cloud. None, unless the file asks for a gateway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from shardctl.fleet import gateways, sqlproxies, topology
from shardctl.fleet.settings.cluster import Reach
from shardctl.fleet.settings.gateway import OPEN, Gateway
from shardctl.fleet.spec import Fleet
from shardctl.fleet.topology import database_url_variable
from shardctl.render import apps, cloudsql
from shardctl.render.apps import App
from shardctl.render.limits import METADATA_SERVER, certificates, database_reach, rule_of
from shardctl.render.objects import Object, Plan, seconds

GRACE_MARGIN_SECONDS = 10  # between the gateway's own drain and the kill
COMPONENT, SERVICE_PORT = "gateway", 80

_OF_THE_CLUSTER = {"autoscaling", "resources", "pre_stop", "from_namespaces"}


def config_text(fleet: Fleet) -> str:
    """What the gateway's ConfigMap holds."""
    gateway = fleet.gateway or OPEN
    return apps.slice_text(
        fleet, gateway=gateway.model_dump(mode="json", exclude=_OF_THE_CLUSTER, exclude_defaults=True)
    )


def _gateways(plan: Plan) -> Iterator[tuple[App, Gateway]]:
    settings = plan.fleet.gateway
    if plan.whole and settings is not None:
        yield apps.app_of(plan, COMPONENT), settings


# --- in Google Cloud --------------------------------------------------------------------------------------------------


def accounts(plan: Plan) -> Iterator[Object]:
    for app, _ in _gateways(plan):
        yield apps.account(plan, app, f"HTTP gateway of fleet {plan.fleet.fleet}")


def grants(plan: Plan) -> Iterator[Object]:
    for app, _ in _gateways(plan):
        yield from apps.grants(plan, app)
        for name, fields in cloudsql.shared_grants(gateways.instances(plan.fleet), app.name):
            yield plan.object("IAMPolicyMember", name, None, labels=app.labels, **fields)


def users(plan: Plan) -> Iterator[Object]:
    """Its user on each instance of Cloud SQL that the file makes."""
    for app, _ in _gateways(plan):
        for user in cloudsql.shared_users(gateways.instances(plan.fleet), app.name, gateways.email(plan.fleet)):
            yield plan.object("SQLUser", user.name, None, labels=app.labels, user=user)


# --- on the cluster ---------------------------------------------------------------------------------------------------


def service_accounts(plan: Plan) -> Iterator[Object]:
    for app, _ in _gateways(plan):
        yield apps.service_account(plan, app)


def config_maps(plan: Plan) -> Iterator[Object]:
    for app, _ in _gateways(plan):
        yield apps.config_map(plan, app, config_text(plan.fleet))


def deployments(plan: Plan) -> Iterator[Object]:
    fleet = plan.fleet
    for app, settings in _gateways(plan):
        pre_stop = seconds(settings.pre_stop)
        yield apps.deployment(
            plan,
            app,
            config_text(fleet),
            replicas=settings.autoscaling.min if settings.autoscaling.kind == "none" else None,
            grace_seconds=seconds(settings.drain_timeout) + GRACE_MARGIN_SECONDS + pre_stop,
            pre_stop_seconds=pre_stop,
            resources=settings.resources,
            keys=settings.auth.secret if settings.auth.kind == "keys" else None,
            urls=tuple(_urls(fleet, settings)),
            proxy=cloudsql.shared_proxy(fleet, gateways.instances(fleet), seconds(settings.drain_timeout)),
            mounted=tuple(certificates(fleet)) if settings.outcomes else (),
        )


def services(plan: Plan) -> Iterator[Object]:
    for app, _ in _gateways(plan):
        yield apps.make(
            plan,
            app,
            "Service",
            template="service-http",
            app=app.name,
            shard=None,
            upstream_policy=None,
            affinity_seconds=None,
            port=SERVICE_PORT,
            target_port=apps.POD_PORT,
        )


def autoscalers(plan: Plan) -> Iterator[Object]:
    for app, settings in _gateways(plan):
        scaling = settings.autoscaling
        if scaling.kind == "hpa":
            yield apps.make(
                plan,
                app,
                "HorizontalPodAutoscaler",
                target_kind="Deployment",
                min_replicas=scaling.min,
                max_replicas=scaling.max,
                cpu_percent=scaling.cpu_percent,
                subscriptions=[],
            )


def disruption_budgets(plan: Plan) -> Iterator[Object]:
    for app, _ in _gateways(plan):
        yield apps.disruption_budget(plan, app)


def network_policies(plan: Plan) -> Iterator[Object]:
    policy = plan.fleet.network_policy
    for app, settings in _gateways(plan):
        if policy is None:
            continue
        reached = [*METADATA_SERVER, policy.google_apis]
        if settings.auth.kind == "oidc":
            reached.append(Reach(ports=(urlsplit(settings.auth.jwks_url).port or 443,)))
        if settings.outcomes:
            reached += [database_reach(shard.network_policy or policy, shard) for shard in plan.fleet.shards]
        egress = [rule_of(policy.dns, "UDP", "TCP"), *(rule_of(reach, "TCP") for reach in reached)]
        chosen = settings.from_namespaces
        yield apps.make(
            plan,
            app,
            "NetworkPolicy",
            template="gatewaynetworkpolicy",
            app=app.name,
            from_namespaces=tuple(dict.fromkeys([*chosen, *policy.from_namespaces])) if chosen else (),
            egress=tuple(dict.fromkeys(egress)),
        )


def _urls(fleet: Fleet, settings: Gateway) -> Iterator[Mapping[str, Any]]:
    """Each shard's variable, with its URL or the Secret that holds it, where clients may ask what became of their writes."""
    by_iam = sqlproxies.urls(fleet, gateways.email(fleet))
    for shard in fleet.shards if settings.outcomes else ():
        secret = topology.database_secret(fleet, shard)
        yield {"variable": database_url_variable(shard), "url": by_iam.get(shard.name), "secret": secret}


def pod_monitorings(plan: Plan) -> Iterator[Object]:
    for app, _ in _gateways(plan):
        yield from apps.scraping(plan, app, "managed-prometheus", "PodMonitoring")


def pod_monitors(plan: Plan) -> Iterator[Object]:
    for app, _ in _gateways(plan):
        yield from apps.scraping(plan, app, "prometheus-operator", "PodMonitor")
