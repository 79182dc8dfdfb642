"""Instances of Cloud SQL with their databases, users and replicas, where the file asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shardctl.fleet import cloudsql
from shardctl.fleet.settings.cloudsql import CloudSql, Creation
from shardctl.fleet.spec import Fleet
from shardctl.render.objects import Object, Plan, Writer


@dataclass(frozen=True, slots=True)
class Backups:
    """One of the two ways to keep every transaction is None: the engine's own is the other."""

    start_time: str
    retained: int
    binary_log: bool | None
    point_in_time: bool | None


@dataclass(frozen=True, slots=True)
class Instance:
    """As Cloud SQL's API names things. `primary` is the name of the instance that this one is a read replica of."""

    name: str
    project: str
    region: str
    version: str
    tier: str
    edition: str
    availability: str
    disk_gb: int | None
    public: bool
    network: str | None
    psc_projects: tuple[str, ...]
    flags: tuple[tuple[str, str], ...]
    backups: Backups | None
    primary: str | None = None


@dataclass(frozen=True, slots=True)
class Database:
    """`name`, here and below, is the object's in Kubernetes."""

    name: str
    project: str
    instance: str
    database: str


@dataclass(frozen=True, slots=True)
class User:
    """`login` is the name to make it by, and `user` what the database calls it. `account` is the object's name."""

    name: str
    project: str
    instance: str
    login: str
    user: str
    account: str


def instances(plan: Plan) -> Iterator[Object]:
    """Primaries before their replicas. One that several shards share is the fleet's."""
    for instance, owners in _created(plan.fleet):
        owner = next((writer for writer in plan.writers if (writer.shard.name,) == owners), None)
        if owner or (len(owners) > 1 and plan.whole):
            yield plan.object("SQLInstance", instance.name, owner, instance=instance)


def databases(plan: Plan) -> Iterator[Object]:
    for writer, cloud_sql in _creating(plan):
        database = Database(writer.id, cloudsql.project_of(cloud_sql), cloudsql.name_of(cloud_sql), cloud_sql.database)
        yield plan.object("SQLDatabase", writer.id, writer, database=database)


def users(plan: Plan) -> Iterator[Object]:
    """Of the shards that log in by IAM: others have passwords, which are never in the file."""
    for writer, cloud_sql in _creating(plan):
        if cloud_sql.iam:
            user = User(
                writer.id,
                cloudsql.project_of(cloud_sql),
                cloudsql.name_of(cloud_sql),
                cloudsql.login(plan.fleet, writer.shard, cloud_sql),
                cloudsql.user(plan.fleet, writer.shard, cloud_sql),
                writer.id,
            )
            yield plan.object("SQLUser", writer.id, writer, user=user)


def _creating(plan: Plan) -> Iterator[tuple[Writer, CloudSql]]:
    for writer in plan.writers:
        cloud_sql = cloudsql.instance_of(writer.shard)
        if cloud_sql and cloud_sql.create:
            yield writer, cloud_sql


def _created(fleet: Fleet) -> Iterator[tuple[Instance, tuple[str, ...]]]:
    """Each instance once, with the names of the shards that have databases on it."""
    owners: dict[str, list[str]] = {}
    made: dict[str, tuple[CloudSql, Creation]] = {}
    for shard in fleet.shards:
        cloud_sql = cloudsql.instance_of(shard)
        if cloud_sql and cloud_sql.create:
            made[cloud_sql.instance] = cloud_sql, cloud_sql.create
            owners.setdefault(cloud_sql.instance, []).append(shard.name)
    for name, (cloud_sql, creation) in made.items():
        primary = _primary(fleet, cloud_sql, creation)
        yield primary, tuple(owners[name])
        for replica in creation.replicas:
            follower = replace(
                primary,
                name=replica.name,
                region=replica.region or primary.region,
                tier=replica.tier or primary.tier,
                availability="ZONAL",
                backups=None,
                primary=primary.name,
            )
            yield follower, tuple(owners[name])


def _primary(fleet: Fleet, cloud_sql: CloudSql, creation: Creation) -> Instance:
    log = creation.backups.point_in_time
    by_binary_log = cloud_sql.engine == "mysql"
    return Instance(
        name=cloudsql.name_of(cloud_sql),
        project=cloudsql.project_of(cloud_sql),
        region=cloudsql.region_of(cloud_sql),
        version=creation.version,
        tier=creation.tier,
        edition=creation.edition.upper().replace("-", "_"),
        availability=creation.availability.upper(),
        disk_gb=creation.disk_gb,
        public=cloud_sql.ip == "public",
        network=creation.network if cloud_sql.ip == "private" else None,
        psc_projects=(creation.psc_projects or (fleet.project,)) if cloud_sql.ip == "psc" else (),
        flags=tuple(sorted(cloudsql.flags(cloud_sql, creation).items())),
        backups=Backups(
            creation.backups.start_time,
            creation.backups.retained,
            log if by_binary_log else None,
            None if by_binary_log else log,
        ),
    )
