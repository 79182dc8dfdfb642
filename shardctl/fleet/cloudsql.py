"""A shard's instance of Cloud SQL: who its consumers are there, their URL, and what may go together. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from shardctl.fleet import serviceaccounts, topology
from shardctl.fleet.settings.cloudsql import CloudSql, Creation
from shardctl.fleet.settings.databases import DatabaseKind
from shardctl.fleet.spec import Fleet, Shard
from shardctl.fleet.spec_errors import Fault

INSTANCE_PORT = 3307  # where every instance listens for the Auth Proxy
LONGEST_POSTGRESQL_USER = 63
SHARDS_NAMED = 4


@dataclass(frozen=True, slots=True)
class Engine:
    """What differs between the databases. `login_flag` is the instance's flag that allows logins by IAM."""

    port: int
    login_flag: str
    kinds: frozenset[DatabaseKind]
    url_options: str = ""


ENGINES = {
    # The proxy encrypts, so that libpq need not ask for it first.
    "postgresql": Engine(5432, "cloudsql.iam_authentication", frozenset({"postgresql"}), "?sslmode=disable"),
    "mysql": Engine(3306, "cloudsql_iam_authentication", frozenset({"mysql", "mariadb"})),
}


def instance_of(shard: Shard) -> CloudSql | None:
    return shard.database.cloud_sql if shard.database else None


def engine_of(cloud_sql: CloudSql) -> Engine:
    return ENGINES[cloud_sql.engine]


def project_of(cloud_sql: CloudSql) -> str:
    """The instance's project, which need not be the fleet's."""
    return cloud_sql.instance.rsplit(":", 2)[0]


def region_of(cloud_sql: CloudSql) -> str:
    return cloud_sql.instance.rsplit(":", 2)[1]


def name_of(cloud_sql: CloudSql) -> str:
    """The instance's name in its project."""
    return cloud_sql.instance.rpartition(":")[2]


def only_instance(cloud_sql: CloudSql) -> str:
    """The condition, as IAM writes it, that keeps a grant on the project to this instance."""
    path = f"projects/{project_of(cloud_sql)}/instances/{name_of(cloud_sql)}"
    return f"resource.name == '{path}' && resource.service == 'sqladmin.googleapis.com'"


def login(fleet: Fleet, shard: Shard, cloud_sql: CloudSql) -> str:
    """The shard's service account as Cloud SQL makes a user of it."""
    return login_of(cloud_sql, serviceaccounts.email(fleet, topology.shard_id(fleet, shard)))


def login_of(cloud_sql: CloudSql, email: str) -> str:
    """A service account as Cloud SQL makes a user of it."""
    return email if cloud_sql.engine == "mysql" else email.removesuffix(serviceaccounts.DOMAIN)


def user(fleet: Fleet, shard: Shard, cloud_sql: CloudSql) -> str:
    """The shard's user as the database names it."""
    return user_of(cloud_sql, serviceaccounts.email(fleet, topology.shard_id(fleet, shard)))


def user_of(cloud_sql: CloudSql, email: str) -> str:
    """A service account's user as the database names it: MySQL has no room for the whole address."""
    name = login_of(cloud_sql, email)
    return name.partition("@")[0] if cloud_sql.engine == "mysql" else name


def longest_user(cloud_sql: CloudSql) -> int:
    return LONGEST_POSTGRESQL_USER if cloud_sql.engine == "postgresql" else serviceaccounts.LONGEST_ID


def flags(cloud_sql: CloudSql, creation: Creation) -> dict[str, str]:
    """The database flags of the instance and its replicas."""
    of_login = {engine_of(cloud_sql).login_flag: "on"} if cloud_sql.iam else {}
    return {**creation.flags, **of_login}


def url(fleet: Fleet, shard: Shard) -> str | None:
    """The database URL of the shard's consumers, which leads to the proxy beside them; None where a Secret holds it."""
    cloud_sql = instance_of(shard)
    if cloud_sql is None or not cloud_sql.iam:
        return None
    email = serviceaccounts.email(fleet, topology.shard_id(fleet, shard))
    return url_of(cloud_sql, email, engine_of(cloud_sql).port)


def url_of(cloud_sql: CloudSql, email: str, port: int) -> str:
    """The URL of a service account that logs in by IAM, through a proxy at this port of its pod."""
    engine, name = engine_of(cloud_sql), quote(user_of(cloud_sql, email), safe="")
    return f"{cloud_sql.engine}://{name}@127.0.0.1:{port}/{cloud_sql.database}{engine.url_options}"


def faults(fleet: Fleet) -> Iterator[Fault]:
    yield from _bad_creations(fleet)
    owners: dict[tuple[str, str], str] = {}
    for number, shard in enumerate(fleet.shards):
        cloud_sql = instance_of(shard)
        if cloud_sql is None:
            continue
        path = ("shards", number, "database", "cloud_sql")
        owner = owners.setdefault((cloud_sql.instance, cloud_sql.database), shard.name)
        if owner != shard.name:
            yield Fault(
                (*path, "database"),
                f"{cloud_sql.database!r} of {cloud_sql.instance} is also the database of shard {owner!r}: tables would mix.",
                "give each shard a database of its own; they may share an instance.",
            )
        if not engine_of(cloud_sql).kinds & set(fleet.databases):
            yield Fault(
                (*path, "engine"),
                f"{cloud_sql.engine} isn't among `databases`, so that bodies would not be checked for it.",
                f"add {cloud_sql.engine} to `databases`.",
            )
        name = user(fleet, shard, cloud_sql)
        if cloud_sql.iam and len(name) > longest_user(cloud_sql):
            yield Fault(
                path,
                f"the database user {name} has {len(name)} characters, and PostgreSQL allows {LONGEST_POSTGRESQL_USER}.",
                "shorten the name of the shard or of the fleet, or set iam: false.",
            )


def _bad_creations(fleet: Fleet) -> Iterator[Fault]:
    """Two objects of one name, or two descriptions of one instance."""
    first: dict[str, tuple[CloudSql, str]] = {}
    for number, shard in enumerate(fleet.shards):
        cloud_sql = instance_of(shard)
        if cloud_sql is None or cloud_sql.create is None:
            continue
        path = ("shards", number, "database", "cloud_sql", "create")
        if fleet.provisioner == "api":
            yield Fault(
                path,
                "`provisioner: api` makes topics and subscriptions alone.",
                "choose config-connector, terraform or gcloud, or make the instance yourself and leave `create` out.",
            )
        other, owner = first.setdefault(name_of(cloud_sql), (cloud_sql, shard.name))
        shared = other.instance == cloud_sql.instance
        if not shared:
            yield Fault(
                path,
                f"an instance of another project or region that shard {owner!r} makes has this name too.",
                "name one of them differently.",
            )
        elif (other.create, other.ip, other.iam) != (cloud_sql.create, cloud_sql.ip, cloud_sql.iam):
            yield Fault(
                path,
                f"shard {owner!r} describes instance {cloud_sql.instance} differently.",
                "give both the same `create`, `ip` and `iam`, best as the fleet's `cloud_sql`.",
            )
        for at, replica in enumerate(cloud_sql.create.replicas):
            source, _ = first.setdefault(replica.name, (cloud_sql, shard.name))
            if source.instance != cloud_sql.instance or replica.name == name_of(cloud_sql):
                yield Fault(
                    (*path, "replicas", at, "name"),
                    f"{replica.name!r} is the name of another instance too.",
                    "name each instance once.",
                )


def advice(fleet: Fleet) -> Iterator[str]:
    """What Cloud SQL wants before consumers can log in, and what a promoted replica would lack."""
    made = [(shard, cloud_sql) for shard in fleet.shards if (cloud_sql := instance_of(shard))]
    for kind, engine in ENGINES.items():
        own = [(shard, cloud_sql) for shard, cloud_sql in made if cloud_sql.iam and cloud_sql.engine == kind]
        there = [f"{login(fleet, *pair)} on {name_of(pair[1])}" for pair in own if not pair[1].create]
        if there:
            yield (
                f"cloud_sql.iam: consumers can log in once each instance has the flag {engine.login_flag}=on and, by type "
                f"CLOUD_IAM_SERVICE_ACCOUNT, the users {_names(there)}: docs/cloudsql.md has the commands."
            )
        if own:
            yield (
                "cloud_sql.iam: a new user has no privileges; after `shardctl provision`, the owner of the tables GRANTs them to "
                f"{_names([f'{user(fleet, *pair)} on {name_of(pair[1])}' for pair in own])}: docs/cloudsql.md has the statements."
            )
    if (
        any(cloud_sql.create and cloud_sql.create.replicas for _, cloud_sql in made)
        and not fleet.subscription.retain_acked
    ):
        yield (
            "cloud_sql.create.replicas are asynchronous: one that is promoted lacks the last writes. Pub/Sub can send them "
            "again where subscription.retain_acked is true."
        )


def warnings(fleet: Fleet) -> Iterator[str]:
    """A tag is whatever its owner makes of it, and the proxy sees every password and row that passes."""
    images = {cloud_sql.proxy.image for shard in fleet.shards if (cloud_sql := instance_of(shard))}
    for image in sorted(image for image in images if "@sha256:" not in image):
        yield (
            f"cloud_sql.proxy.image: {image} is a tag, which its owner can move. Pin what it is now, as {image}@sha256:…; "
            f"`gcloud artifacts docker images describe {image} --format='value(image_summary.digest)'` prints the digest."
        )


def _names(names: list[str]) -> str:
    more = f" and {len(names) - SHARDS_NAMED} more" if len(names) > SHARDS_NAMED else ""
    return ", ".join(names[:SHARDS_NAMED]) + more
