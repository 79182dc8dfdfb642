"""Who the commands are that run in the cluster, and what each of them needs in Google Cloud. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from shardctl.fleet import cloudsql, serviceaccounts, topology
from shardctl.fleet.settings.cloudsql import CloudSql
from shardctl.fleet.settings.operator import EVERY_COMMAND, OperatorCommand
from shardctl.fleet.spec import Fleet
from shardctl.fleet.spec_errors import Fault

FIRST_PORT = 6432  # on the pod's loopback, of the instances that a Job's proxy leads to

_VIEWER, _EDITOR = "roles/pubsub.viewer", "roles/pubsub.editor"
_SUBSCRIBER, _PUBLISHER = "roles/pubsub.subscriber", "roles/pubsub.publisher"
_BACKLOGS = "roles/monitoring.viewer"

On = Literal["project", "topics", "letters"]


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """`role` on the whole project, on each topic for writes, or on each subscription for dead letters and strays."""

    on: On
    role: str


# The least of Google's own roles. Only the project can be named where something is made, since it isn't there yet.
RIGHTS: Mapping[OperatorCommand, tuple[Right, ...]] = {
    "status": (Right("project", _BACKLOGS),),
    "verify": (),
    "provision": (Right("project", _EDITOR),),
    "adopt": (),
    "rebalance": (Right("project", _EDITOR), Right("project", _BACKLOGS)),
    "deadletter": (
        Right("letters", _SUBSCRIBER),
        Right("letters", _VIEWER),
        Right("topics", _PUBLISHER),
        Right("project", _BACKLOGS),
    ),
    "parked": (),
}


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance of Cloud SQL that a Job reaches at `port` of its loopback."""

    cloud_sql: CloudSql
    port: int


def name_of(fleet: Fleet) -> str:
    return f"{fleet.fleet}-operator"


def email(fleet: Fleet) -> str:
    return serviceaccounts.email(fleet, name_of(fleet))


def rights(fleet: Fleet) -> tuple[Right, ...]:
    """Each once: what the operator's commands need together. An editor of the project has the narrower roles of Pub/Sub too."""
    commands = fleet.operator.commands if fleet.operator else ()
    needed = dict.fromkeys(right for command in EVERY_COMMAND if command in commands for right in RIGHTS[command])
    if Right("project", _EDITOR) in needed:
        return tuple(right for right in needed if right.on == "project")
    return tuple(needed)


def instances(fleet: Fleet) -> tuple[Instance, ...]:
    """Each instance once, for each of the two ways to log in. A URL with a password names the engine's own port."""
    ports: dict[tuple[str, bool], Instance] = {}
    for shard in fleet.shards:
        cloud_sql = cloudsql.instance_of(shard)
        if cloud_sql and (cloud_sql.instance, cloud_sql.iam) not in ports:
            port = FIRST_PORT + len(ports) if cloud_sql.iam else cloudsql.engine_of(cloud_sql).port
            ports[cloud_sql.instance, cloud_sql.iam] = Instance(cloud_sql, port)
    return tuple(ports.values())


def urls(fleet: Fleet) -> dict[str, str]:
    """The database URLs, by shard, of the shards that the operator logs in to by IAM. They hold no secret."""
    ports = {(made.cloud_sql.instance, made.cloud_sql.iam): made.port for made in instances(fleet)}
    return {
        shard.name: cloudsql.url_of(cloud_sql, email(fleet), ports[cloud_sql.instance, True])
        for shard in fleet.shards
        if (cloud_sql := cloudsql.instance_of(shard)) and cloud_sql.iam
    }


def faults(fleet: Fleet) -> Iterator[Fault]:
    """What an operator can't have the name of, or can't reach."""
    if fleet.operator is None:
        return
    own = serviceaccounts.account_id(name_of(fleet))
    for number, shard in enumerate(fleet.shards):
        if serviceaccounts.account_id(topology.shard_id(fleet, shard)) == own:
            yield Fault(
                ("shards", number, "name"),
                f"the shard and the operator would share the service account {own}.",
                "name the shard differently.",
            )
    if fleet.gateway and serviceaccounts.account_id(f"{fleet.fleet}-gateway") == own:
        yield Fault(("operator",), f"the gateway would share the service account {own}.", "shorten the fleet's name.")
    taken: dict[int, str] = {}
    for made in instances(fleet):
        if taken.setdefault(made.port, made.cloud_sql.instance) != made.cloud_sql.instance:
            yield Fault(
                ("operator",),
                f"a Job would reach {taken[made.port]} and {made.cloud_sql.instance} at the same port {made.port}, which "
                "their URLs name.",
                "let their consumers log in by IAM (`iam: true`), so that each instance gets a port of its own.",
            )
        user = cloudsql.user_of(made.cloud_sql, email(fleet))
        if made.cloud_sql.iam and len(user) > cloudsql.longest_user(made.cloud_sql):
            yield Fault(
                ("operator",),
                f"the database user {user} has {len(user)} characters, and PostgreSQL allows "
                f"{cloudsql.LONGEST_POSTGRESQL_USER}.",
                "shorten the name of the fleet.",
            )
