"""The consumers' workloads, accounts and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from shardctl.fleet import cloudsql, memorystore, topology
from shardctl.fleet.backends import SECRETS_DIRECTORY, secrets
from shardctl.fleet.credentials import redis_secret
from shardctl.fleet.settings.secrets import SecretRef
from shardctl.fleet.spec import Fleet, Shard
from shardctl.render.cloudsql import proxy
from shardctl.render.objects import Object, Plan, Writer, seconds
from shardctl.render.rbac import asks_kubernetes
from shardctl.render.templates import Lines

GRACE_MARGIN_SECONDS = 10  # between the consumer's own drain and the kill


def service_accounts(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        yield plan.object("ServiceAccount", writer.id, writer, account_email=plan.account_email(writer))


def config_maps(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        yield plan.object("ConfigMap", writer.id, writer, config=Lines(plan.config(writer)))


def deployments(plan: Plan) -> Iterator[Object]:
    redis = redis_secret(plan.fleet)
    for writer in plan.writers:
        workload = writer.shard.workload
        if workload.kind == "deployment":
            pods = _pods(plan, writer)
            yield plan.object("Deployment", writer.id, writer, **pods, redis=redis, max_surge=workload.max_surge)


def stateful_sets(plan: Plan) -> Iterator[Object]:
    redis = redis_secret(plan.fleet)
    for writer in plan.writers:
        if writer.shard.workload.kind == "statefulset":
            pods = _pods(plan, writer)
            yield plan.object("StatefulSet", writer.id, writer, **pods, redis=redis, service=_pod_names(writer))


def headless_services(plan: Plan) -> Iterator[Object]:
    """The Service that gives a StatefulSet's pods their names; a Deployment's pods need none."""
    for writer in plan.writers:
        if writer.shard.workload.kind == "statefulset":
            yield plan.object(
                "Service", _pod_names(writer), writer, template="headlessservice", app=plan.app, shard=writer.shard.name
            )


def push_services(plan: Plan) -> Iterator[Object]:
    """Where a load balancer finds the shard's consumers, if Pub/Sub pushes to them."""
    if plan.fleet.delivery.kind != "push":
        return
    for writer in plan.writers:
        name = f"{writer.id}-push"
        yield plan.object("Service", name, writer, template="service-push", app=plan.app, shard=writer.shard.name)


def disruption_budgets(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        yield plan.object("PodDisruptionBudget", writer.id, writer, app=plan.app, shard=writer.shard.name)


def _pods(plan: Plan, writer: Writer) -> dict[str, Any]:
    """The values of the templates of both kinds of workload."""
    fleet, shard = plan.fleet, writer.shard
    workload, scaling = shard.workload, shard.autoscaling
    database = topology.database_secret(fleet, shard)
    drain = seconds(shard.consumer.drain_timeout)
    return {
        "app": plan.app,
        "shard": shard.name,
        "replicas": scaling.min if scaling.kind == "none" else None,
        "image": fleet.image,
        "config_checksum": sha256(plan.config(writer).encode()).hexdigest(),
        "grace_seconds": drain + GRACE_MARGIN_SECONDS + seconds(workload.pre_stop),
        "pre_stop_seconds": seconds(workload.pre_stop),
        "database": database,
        "database_url": cloudsql.url(fleet, shard),
        "database_file": _file(database) if fleet.secrets.files and database else None,
        "redis_file": _file(redis_secret(fleet)) if fleet.secrets.files else None,
        "proxy": proxy(fleet, shard),
        "probes": fleet.probes,
        "resources": shard.resources,
        "placement": fleet.placement,
        "storage": workload.storage,
        "mounted": _mounted(fleet, shard),
        "takes_pushes": fleet.delivery.kind == "push",
        "asks_kubernetes": asks_kubernetes(writer),
    }


def _mounted(fleet: Fleet, shard: Shard) -> list[Mapping[str, Any]]:
    """The Secrets that the pods read as files, where the consumer and its URLs look for them."""
    files = {secret: set(keys) for secret, keys in fleet.certificates.items()}
    read = [memorystore.authority(fleet)]
    if fleet.secrets.files:
        read += [topology.database_secret(fleet, shard), redis_secret(fleet)]
    for ref in filter(None, read):
        files.setdefault(ref.name, set()).add(ref.key)
    for secret, keys in secrets(fleet, shard).items():
        files.setdefault(secret, set()).update(keys)
    return [
        {"volume": f"secret-{number}", "secret": secret, "files": sorted(keys), "path": f"{SECRETS_DIRECTORY}/{secret}"}
        for number, (secret, keys) in enumerate(sorted(files.items()))
    ]


def _file(secret: SecretRef) -> str:
    """Where the pods find a key of a Secret that they mount."""
    return f"{SECRETS_DIRECTORY}/{secret.name}/{secret.key}"


def _pod_names(writer: Writer) -> str:
    return f"{writer.id}-pods"
