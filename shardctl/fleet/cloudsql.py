"""A shard's instance of Cloud SQL: who its consumers are there, their URL, and what may go together. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from shardctl.fleet import serviceaccounts, topology
from shardctl.fleet.settings.cloudsql import CloudSql
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


def name_of(cloud_sql: CloudSql) -> str:
    """The instance's name in its project."""
    return cloud_sql.instance.rpartition(":")[2]


def only_instance(cloud_sql: CloudSql) -> str:
    """The condition, as IAM writes it, that keeps a grant on the project to this instance."""
    path = f"projects/{project_of(cloud_sql)}/instances/{name_of(cloud_sql)}"
    return f"resource.name == '{path}' && resource.service == 'sqladmin.googleapis.com'"


def user(fleet: Fleet, shard: Shard, cloud_sql: CloudSql) -> str:
    """The database user that the shard's service account is, as the engine writes it."""
    email = serviceaccounts.email(fleet, topology.shard_id(fleet, shard))
    return email.partition("@")[0] if cloud_sql.engine == "mysql" else email.removesuffix(serviceaccounts.DOMAIN)


def url(fleet: Fleet, shard: Shard) -> str | None:
    """The database URL of the shard's consumers, which leads to the proxy beside them; None where a Secret holds it."""
    cloud_sql = instance_of(shard)
    if cloud_sql is None or not cloud_sql.iam:
        return None
    engine, name = engine_of(cloud_sql), quote(user(fleet, shard, cloud_sql), safe="")
    return f"{cloud_sql.engine}://{name}@127.0.0.1:{engine.port}/{cloud_sql.database}{engine.url_options}"


def faults(fleet: Fleet) -> Iterator[Fault]:
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
        if cloud_sql.iam and cloud_sql.engine == "postgresql" and len(name) > LONGEST_POSTGRESQL_USER:
            yield Fault(
                path,
                f"the database user {name} has {len(name)} characters, and PostgreSQL allows {LONGEST_POSTGRESQL_USER}.",
                "shorten the name of the shard or of the fleet, or set iam: false.",
            )


def advice(fleet: Fleet) -> Iterator[str]:
    """What Cloud SQL wants before consumers can log in: nothing of it can be seen from here."""
    for kind, engine in ENGINES.items():
        users = {
            f"{user(fleet, shard, cloud_sql)} on {name_of(cloud_sql)}": None
            for shard in fleet.shards
            if (cloud_sql := instance_of(shard)) and cloud_sql.iam and cloud_sql.engine == kind
        }
        if users:
            named = list(users)[:SHARDS_NAMED]
            more = f" and {len(users) - len(named)} more" if len(users) > len(named) else ""
            yield (
                f"cloud_sql.iam: consumers can log in once each instance has the flag {engine.login_flag}=on and, by type "
                f"CLOUD_IAM_SERVICE_ACCOUNT, the users {', '.join(named)}{more}, with privileges that the owner of the tables "
                "GRANTs after `shardctl provision`: docs/cloudsql.md has the commands."
            )
