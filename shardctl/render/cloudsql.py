"""What a shard's pods need for their instance of Cloud SQL: the Auth Proxy beside the consumer, and leave to connect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shardctl.fleet import cloudsql
from shardctl.fleet.settings.cloudsql import CloudSql
from shardctl.fleet.settings.cluster import Resources
from shardctl.fleet.spec import Fleet, Shard
from shardctl.fleet.sqlproxies import Instance
from shardctl.render.objects import Object, Plan, seconds
from shardctl.render.sqlinstances import User

HEALTH_PORT = 9090
STARTUP_PERIOD_SECONDS = 1  # the consumer waits for the proxy, which is up within a second or two
_IP_FLAGS = {"public": (), "private": ("--private-ip",), "psc": ("--psc",)}


def proxy(fleet: Fleet, shard: Shard) -> Mapping[str, Any] | None:
    """The values of the sidecar in the pods' template; None for a shard without an instance."""
    cloud_sql = cloudsql.instance_of(shard)
    if cloud_sql is None:
        return None
    return sidecar(fleet, cloud_sql, tuple(_arguments(cloud_sql, seconds(shard.consumer.drain_timeout))))


def sidecar(fleet: Fleet, cloud_sql: CloudSql, arguments: tuple[str, ...]) -> Mapping[str, Any]:
    """The values of the proxy in the template of a pod."""
    return {
        "image": cloud_sql.proxy.image,
        "arguments": arguments,
        "health_port": HEALTH_PORT,
        "startup_period_seconds": STARTUP_PERIOD_SECONDS,
        "startup_failures": fleet.probes.startup_failures * fleet.probes.period_seconds // STARTUP_PERIOD_SECONDS,
        "resources": cloud_sql.proxy.resources,
    }


def _arguments(cloud_sql: CloudSql, drain_seconds: int) -> Iterator[str]:
    yield "--structured-logs"
    yield f"--port={cloudsql.engine_of(cloud_sql).port}"
    yield from flags(drain_seconds)[1:]
    if cloud_sql.iam:
        yield "--auto-iam-authn"
    yield from _IP_FLAGS[cloud_sql.ip]
    yield cloud_sql.instance


def shared_proxy(fleet: Fleet, instances: Sequence[Instance], drain_seconds: int) -> Mapping[str, Any] | None:
    """One proxy that leads to each of these instances; None where there are none."""
    if not instances:
        return None
    arguments = tuple(instance_argument(made.cloud_sql, made.port) for made in instances)
    return sidecar(fleet, instances[0].cloud_sql, (*flags(drain_seconds), *arguments))


def flags(drain_seconds: int) -> tuple[str, ...]:
    """Those of any proxy beside a container that may drain for so long."""
    return (
        "--structured-logs",
        "--health-check",
        "--http-address=0.0.0.0",
        f"--http-port={HEALTH_PORT}",
        "--exit-zero-on-sigterm",
        f"--max-sigterm-delay={drain_seconds}s",
    )


def instance_argument(cloud_sql: CloudSql, port: int) -> str:
    """An instance among several of one proxy, with what would otherwise be flags of the proxy."""
    settings = [f"port={port}", *(["auto-iam-authn=true"] if cloud_sql.iam else [])]
    settings += [f"{flag.removeprefix('--')}=true" for flag in _IP_FLAGS[cloud_sql.ip]]
    return f"{cloud_sql.instance}?{'&'.join(settings)}"


def resources(shard: Shard) -> tuple[Resources, ...]:
    """What the proxy of each pod may take."""
    cloud_sql = cloudsql.instance_of(shard)
    return (cloud_sql.proxy.resources,) if cloud_sql else ()


def grants(plan: Plan) -> Iterator[Object]:
    """A shard's account may connect to its own instance, and log in where it logs in by IAM; to no other of the project."""
    for writer in plan.writers:
        cloud_sql = cloudsql.instance_of(writer.shard)
        if cloud_sql is not None:
            for name, fields in _grants_on(cloud_sql, writer.id, logs_in=cloud_sql.iam):
                yield plan.object("IAMPolicyMember", f"{writer.id}-{name}", writer, **fields)


def shared_grants(instances: Sequence[Instance], account: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names and fields of the grants that an account needs for these instances."""
    logins = {made.cloud_sql.instance for made in instances if made.cloud_sql.iam}
    for cloud_sql in {made.cloud_sql.instance: made.cloud_sql for made in instances}.values():
        for name, fields in _grants_on(cloud_sql, account, logs_in=cloud_sql.instance in logins):
            yield f"{account}-{cloudsql.name_of(cloud_sql)}-{name}", fields


def shared_users(instances: Sequence[Instance], account: str, email: str) -> Iterator[User]:
    """The account's user on each instance that the file makes, where it logs in by IAM."""
    for made in instances:
        cloud_sql = made.cloud_sql
        if cloud_sql.create and cloud_sql.iam:
            instance = cloudsql.name_of(cloud_sql)
            login, user = cloudsql.login_of(cloud_sql, email), cloudsql.user_of(cloud_sql, email)
            yield User(f"{account}-{instance}", cloudsql.project_of(cloud_sql), instance, login, user, account)


def _grants_on(cloud_sql: CloudSql, account: str, *, logs_in: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    project, instance = cloudsql.project_of(cloud_sql), cloudsql.name_of(cloud_sql)
    roles = {"client": "roles/cloudsql.client"} | ({"user": "roles/cloudsql.instanceUser"} if logs_in else {})
    for name, role in roles.items():
        yield (
            f"cloud-sql-{name}",
            {
                "role": role,
                "resource_kind": "Project",
                "resource_name": project,
                "resource_external": f"projects/{project}",
                "member": None,
                "member_account": account,
                "condition": {"title": instance, "expression": cloudsql.only_instance(cloud_sql)},
            },
        )
