"""One Auth Proxy that leads to every instance of Cloud SQL that a fleet has, for a pod that reaches all shards. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shardctl.fleet import cloudsql
from shardctl.fleet.settings.cloudsql import CloudSql
from shardctl.fleet.spec import Fleet
from shardctl.fleet.spec_errors import Fault

FIRST_PORT = 6432  # on the pod's loopback, of the instances that are logged in to by IAM


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance that is reached at `port` of the pod's loopback."""

    cloud_sql: CloudSql
    port: int


def instances(fleet: Fleet) -> tuple[Instance, ...]:
    """Each instance once, for each of the two ways to log in. A URL with a password names the engine's own port."""
    ports: dict[tuple[str, bool], Instance] = {}
    for shard in fleet.shards:
        cloud_sql = cloudsql.instance_of(shard)
        if cloud_sql and (cloud_sql.instance, cloud_sql.iam) not in ports:
            port = FIRST_PORT + len(ports) if cloud_sql.iam else cloudsql.engine_of(cloud_sql).port
            ports[cloud_sql.instance, cloud_sql.iam] = Instance(cloud_sql, port)
    return tuple(ports.values())


def urls(fleet: Fleet, email: str) -> dict[str, str]:
    """The database URLs, by shard, of the shards that this service account logs in to by IAM. They hold no secret."""
    ports = {(made.cloud_sql.instance, made.cloud_sql.iam): made.port for made in instances(fleet)}
    return {
        shard.name: cloudsql.url_of(cloud_sql, email, ports[cloud_sql.instance, True])
        for shard in fleet.shards
        if (cloud_sql := cloudsql.instance_of(shard)) and cloud_sql.iam
    }


def faults(fleet: Fleet, path: tuple[str, ...], pod: str, email: str) -> Iterator[Fault]:
    """Instances that `pod` can't tell apart, or can't log in to."""
    taken: dict[int, str] = {}
    for made in instances(fleet):
        if taken.setdefault(made.port, made.cloud_sql.instance) != made.cloud_sql.instance:
            yield Fault(
                path,
                f"{pod} would reach {taken[made.port]} and {made.cloud_sql.instance} at the same port {made.port}, which "
                "their URLs name.",
                "let their consumers log in by IAM (`iam: true`), so that each instance gets a port of its own.",
            )
        user = cloudsql.user_of(made.cloud_sql, email)
        if made.cloud_sql.iam and len(user) > cloudsql.longest_user(made.cloud_sql):
            yield Fault(
                path,
                f"the database user {user} has {len(user)} characters, and PostgreSQL allows "
                f"{cloudsql.LONGEST_POSTGRESQL_USER}.",
                "shorten the name of the fleet.",
            )
