"""The objects of what runs for the whole fleet and publishes: the gateway and the relay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from shardctl.errors import UsageError
from shardctl.fleet import serviceaccounts, topology
from shardctl.fleet.serviceaccounts import account_id
from shardctl.fleet.spec import Fleet
from shardctl.render.objects import Object, Plan, object_name, seconds_text
from shardctl.render.templates import Lines

POD_PORT = 8080
# The settings of the fleet that writes are published by: a change of any other doesn't roll the pods.
_SLICE: Any = {
    **dict.fromkeys(("fleet", "project", "image", "topic", "routing", "message_types", "databases"), True),
    "shards": {"__all__": {"name", "slots", "types", "except_types", "generation", "previous"}},
}


@dataclass(frozen=True, slots=True)
class App:
    """Pods that are all alike; `labels` are those of each of its objects."""

    name: str
    component: str
    labels: tuple[tuple[str, str], ...]


def name_of(fleet: Fleet, component: str) -> str:
    return f"{fleet.fleet}-{component}"


def app_of(plan: Plan, component: str) -> App:
    name = name_of(plan.fleet, component)
    own = {
        "app": name,
        "app.kubernetes.io/name": f"shardctl-{component}",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": component,
    }
    return App(name, component, tuple(sorted({**dict(plan.labels), **own}.items())))


def refuse_shared_names(fleet: Fleet) -> None:
    """Raise UsageError where a shard's objects would have the names of the gateway or the relay."""
    for component, setting in (("gateway", fleet.gateway), ("relay", fleet.relay)):
        name = name_of(fleet, component)
        for shard in fleet.shards if setting is not None else ():
            if account_id(topology.shard_id(fleet, shard)) == account_id(name):
                raise UsageError(
                    f"shard {shard.name!r} and the {component} would share the name {name}. Rename the shard."
                )


def account(plan: Plan, app: App, display_name: str) -> Object:
    return make(
        plan,
        app,
        "IAMServiceAccount",
        project=plan.fleet.project,
        account_id=account_id(app.name),
        display_name=display_name,
    )


def grants(plan: Plan, app: App) -> Iterator[Object]:
    """It may publish into the fleet's own topics, and nothing else."""
    fleet = plan.fleet
    yield _grant(
        plan,
        app,
        f"{app.name}-workload-identity",
        role="roles/iam.workloadIdentityUser",
        resource_kind="IAMServiceAccount",
        resource_name=app.name,
        member=f"serviceAccount:{fleet.project}.svc.id.goog[{fleet.namespace}/{app.name}]",
        member_account=None,
    )
    for topic in topology.topics(fleet):
        yield _grant(
            plan,
            app,
            f"{app.name}-{object_name(topic.id)}-publisher",
            role="roles/pubsub.publisher",
            resource_kind="PubSubTopic",
            resource_name=object_name(topic.id),
            member=None,
            member_account=app.name,
        )


def email(fleet: Fleet, component: str) -> str:
    return serviceaccounts.email(fleet, name_of(fleet, component))


def service_account(plan: Plan, app: App) -> Object:
    return make(plan, app, "ServiceAccount", account_email=email(plan.fleet, app.component))


def slice_text(fleet: Fleet, **settings: object) -> str:
    """A ConfigMap's `shards.yaml` in JSON: the fleet's routing and the app's own `settings`, defaults left out, keys sorted."""
    routing = fleet.model_dump(mode="json", include=_SLICE, exclude_defaults=True)
    return json.dumps({**routing, **settings}, indent=2, sort_keys=True) + "\n"


def config_map(plan: Plan, app: App, text: str) -> Object:
    return make(plan, app, "ConfigMap", template="appconfigmap", file=file_of(app), config=Lines(text))


def deployment(plan: Plan, app: App, text: str, **fields: object) -> Object:
    """`text` is what its ConfigMap holds: a change of it rolls the pods."""
    return make(
        plan,
        app,
        "Deployment",
        template=f"{app.component}deployment",
        app=app.name,
        image=plan.fleet.image,
        config_checksum=sha256(text.encode()).hexdigest(),
        config_file=file_of(app),
        probes=plan.fleet.probes,
        placement=plan.fleet.placement,
        port=POD_PORT,
        **fields,
    )


def file_of(app: App) -> str:
    return f"{app.component}.json"


def disruption_budget(plan: Plan, app: App) -> Object:
    return make(plan, app, "PodDisruptionBudget", template="apppoddisruptionbudget", app=app.name)


def scraping(plan: Plan, app: App, stack: str, kind: str) -> Iterator[Object]:
    watching = plan.fleet.monitoring
    if watching.collector == stack:
        labels = tuple(sorted({**watching.labels, **dict(app.labels)}.items()))
        interval = seconds_text(watching.scrape_interval)
        yield plan.object(kind, app.name, None, labels=labels, app=app.name, interval=interval)


def make(plan: Plan, app: App, kind: str, /, *, template: str | None = None, **fields: object) -> Object:
    return plan.object(kind, app.name, None, template=template, labels=app.labels, **fields)


def _grant(plan: Plan, app: App, name: str, **fields: object) -> Object:
    return plan.object("IAMPolicyMember", name, None, template=None, labels=app.labels, **fields)
