"""The objects of the relay of an application's outbox. None, unless the file asks for a relay."""

from __future__ import annotations

from collections.abc import Iterator

from shardctl.fleet.settings.relay import Relay
from shardctl.render import apps
from shardctl.render.apps import App
from shardctl.render.limits import METADATA_SERVER, SQL_PORTS, certificates, rule_of
from shardctl.render.objects import Object, Plan

COMPONENT = "relay"
GRACE_SECONDS = 60  # a turn under way ends first: some seconds for Pub/Sub, and the database's slowest statement


def _relays(plan: Plan) -> Iterator[tuple[App, Relay]]:
    settings = plan.fleet.relay
    if plan.whole and settings is not None:
        yield apps.app_of(plan, COMPONENT), settings


def accounts(plan: Plan) -> Iterator[Object]:
    for app, _ in _relays(plan):
        yield apps.account(plan, app, f"Relay of the outbox of fleet {plan.fleet.fleet}")


def grants(plan: Plan) -> Iterator[Object]:
    for app, _ in _relays(plan):
        yield from apps.grants(plan, app)


def service_accounts(plan: Plan) -> Iterator[Object]:
    for app, _ in _relays(plan):
        yield apps.service_account(plan, app)


def config_maps(plan: Plan) -> Iterator[Object]:
    for app, _ in _relays(plan):
        yield apps.config_map(plan, app, apps.slice_text(plan.fleet))


def deployments(plan: Plan) -> Iterator[Object]:
    for app, settings in _relays(plan):
        yield apps.deployment(
            plan,
            app,
            apps.slice_text(plan.fleet),
            replicas=settings.replicas,
            grace_seconds=GRACE_SECONDS,
            resources=settings.resources,
            database=settings.database,
            mounted=tuple(certificates(plan.fleet)),
        )


def disruption_budgets(plan: Plan) -> Iterator[Object]:
    for app, _ in _relays(plan):
        yield apps.disruption_budget(plan, app)


def network_policies(plan: Plan) -> Iterator[Object]:
    policy = plan.fleet.network_policy
    for app, settings in _relays(plan):
        if policy is None:
            continue
        database = settings.reach or SQL_PORTS
        reached = (*METADATA_SERVER, policy.google_apis, database)
        egress = [rule_of(policy.dns, "UDP", "TCP"), *(rule_of(reach, "TCP") for reach in reached)]
        yield apps.make(
            plan,
            app,
            "NetworkPolicy",
            template="relaynetworkpolicy",
            app=app.name,
            from_namespaces=policy.from_namespaces,
            egress=tuple(dict.fromkeys(egress)),
        )


def pod_monitorings(plan: Plan) -> Iterator[Object]:
    for app, _ in _relays(plan):
        yield from apps.scraping(plan, app, "managed-prometheus", "PodMonitoring")


def pod_monitors(plan: Plan) -> Iterator[Object]:
    for app, _ in _relays(plan):
        yield from apps.scraping(plan, app, "prometheus-operator", "PodMonitor")
