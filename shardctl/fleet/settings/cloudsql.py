"""Where a shard's database is: behind a URL in a Secret, or an instance of Cloud SQL that consumers reach by the Auth Proxy."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from shardctl.fleet.model import Model
from shardctl.fleet.scalars import (
    Image,
    Network,
    ObjectName,
    ProjectId,
    Quantity,
    Region,
    SecretId,
    SecretKey,
    Text,
    as_tuple,
)
from shardctl.fleet.settings.cluster import Resources
from shardctl.fleet.settings.secrets import SecretRef

InstanceName = Annotated[
    str,
    Text(
        r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]:[a-z]+-[a-z]+[0-9]+:[a-z]([-a-z0-9]{0,96}[a-z0-9])?",
        "an instance's connection name, project:region:instance, which `gcloud sql instances describe` prints as connectionName",
        220,
    ),
]
DatabaseName = Annotated[
    str,
    Text(
        r"[A-Za-z_][-A-Za-z0-9_]*",
        "a database's name: letters, digits, '-' and '_', beginning with a letter or '_'",
        63,
    ),
]
Engine = Literal["postgresql", "mysql"]
Version = Annotated[
    str, Text(r"(POSTGRES|MYSQL)(_[0-9]+)+", "a version of Cloud SQL, such as POSTGRES_17 or MYSQL_8_4", 30)
]
Tier = Annotated[
    str,
    Text(
        r"db-[A-Za-z0-9]+(-[A-Za-z0-9]+)*",
        "a machine type of Cloud SQL, such as db-custom-2-8192 or db-perf-optimized-N-2",
        60,
    ),
]
FlagName = Annotated[str, Text(r"[a-z][a-z0-9_.]*", "a database flag of Cloud SQL, such as max_connections", 100)]
FlagValue = Annotated[str, Text(r"[!-~]([ -~]*[!-~])?", "a flag's value, as text", 500)]
_ENGINE_OF_VERSION: dict[str, Engine] = {"POSTGRES": "postgresql", "MYSQL": "mysql"}


class ProxyResources(Resources):
    """What the Auth Proxy of each pod may take, beside the consumer's own `resources`."""

    cpu: Quantity = "100m"
    cpu_limit: Quantity = "1"
    memory: Quantity = "64Mi"
    memory_limit: Quantity = "128Mi"
    ephemeral_storage: Quantity = "16Mi"
    ephemeral_storage_limit: Quantity = "32Mi"


class AuthProxy(Model):
    """The Cloud SQL Auth Proxy, a sidecar of each consumer."""

    image: Annotated[
        Image,
        Field(description="Version 2 of the proxy. A digest pins it, `IMAGE:TAG@sha256:…`; a tag may be moved."),
    ] = (
        "gcr.io/cloud-sql-connectors/cloud-sql-proxy:2.23.0"
        "@sha256:54e23cad9aeeedbf88ab75f993146631b878035f702b31c51885a932e0c7286c"
    )
    resources: ProxyResources = ProxyResources()


class Backups(Model):
    """An instance's daily backups, which are always on: a standby and replicas follow a mistaken DELETE too."""

    start_time: Annotated[str, Text(r"([01][0-9]|2[0-3]):[0-5][0-9]", "a time of day in UTC, such as 03:00", 5)] = (
        "03:00"
    )
    retained: Annotated[int, Field(ge=1, le=365, description="How many are kept.")] = 8
    point_in_time: Annotated[
        bool,
        Field(
            description="Keep the transaction log too, so that any moment can be restored; MySQL's replicas need it."
        ),
    ] = True


class Replica(Model):
    """A read replica, asynchronous: for reading, and to be promoted when the region of its primary is lost."""

    name: Annotated[str, Text(r"[a-z]([-a-z0-9]{0,96}[a-z0-9])?", "an instance's name", 98)]
    region: Annotated[Region | None, Field(description="By default the primary's.")] = None
    tier: Annotated[Tier | None, Field(description="By default the primary's.")] = None


class Creation(Model):
    """An instance that is made with its database, its user and its replicas. Nothing of it is ever deleted."""

    version: Version
    tier: Tier
    edition: Literal["enterprise", "enterprise-plus"] = "enterprise"
    availability: Annotated[
        Literal["regional", "zonal"],
        Field(description="`regional` has a standby in another zone that no commit is missing from."),
    ] = "regional"
    disk_gb: Annotated[
        Annotated[int, Field(ge=10, le=65_536)] | None, Field(description="To begin with; the disk grows by itself.")
    ] = None
    network: Annotated[Network | None, Field(description="For `ip: private`, which needs private services access.")] = (
        None
    )
    psc_projects: Annotated[
        tuple[ProjectId, ...],
        BeforeValidator(as_tuple),
        Field(description="For `ip: psc`: whose networks may have an endpoint; by default the fleet's project's."),
    ] = ()
    flags: Annotated[
        dict[FlagName, FlagValue], Field(description="Database flags. The one for logins by IAM is set with `iam`.")
    ] = {}
    backups: Backups = Backups()
    replicas: Annotated[tuple[Replica, ...], BeforeValidator(as_tuple)] = ()

    @model_validator(mode="after")
    def _replicas_can_follow(self) -> Self:
        names = [replica.name for replica in self.replicas]
        if len(set(names)) != len(names):
            raise ValueError("replicas: two have the same name")
        if names and not self.backups.point_in_time and self.version.startswith("MYSQL"):
            raise ValueError("replicas of MySQL follow its binary log: set backups.point_in_time: true")
        return self

    @property
    def engine(self) -> Engine:
        return _ENGINE_OF_VERSION[self.version.partition("_")[0]]


class CloudSqlDefaults(Model):
    """What the shards' instances of Cloud SQL have in common. A shard's own `database.cloud_sql` overrides any of it."""

    engine: Engine = "postgresql"
    iam: Annotated[
        bool,
        Field(
            description="Consumers log in as their Google service account, without a password. With `false` the URL with the "
            "password comes from the shard's Secret, and names 127.0.0.1."
        ),
    ] = True
    ip: Annotated[
        Literal["public", "private", "psc"],
        Field(
            description="Which address of the instance the proxy connects to; `psc` is its Private Service Connect endpoint."
        ),
    ] = "public"
    proxy: AuthProxy = AuthProxy()
    create: Annotated[
        Creation | None, Field(description="Makes the instance, by what `provisioner` names; without it, it is there.")
    ] = None


class CloudSql(CloudSqlDefaults):
    """A shard's instance of Cloud SQL."""

    instance: InstanceName
    database: DatabaseName

    @model_validator(mode="after")
    def _creation_fits(self) -> Self:
        if self.create is None:
            return self
        if self.create.engine != self.engine:
            raise ValueError(f"create.version: {self.create.version} needs engine: {self.create.engine}")
        if self.ip == "private" and self.create.network is None:
            raise ValueError("ip: private needs create.network, projects/PROJECT/global/networks/NAME")
        return self


class Database(Model):
    """Where a shard's database is: a key of a Kubernetes Secret that holds its URL, or an instance of Cloud SQL."""

    name: Annotated[ObjectName | None, Field(description="The Secret's.")] = None
    key: SecretKey = "url"
    remote: Annotated[
        SecretId | None,
        Field(description="Its id in Secret Manager, for `secrets: {kind: external-secrets}`; by default `name`."),
    ] = None
    cloud_sql: Annotated[
        CloudSql | None, Field(description="Reached through the Cloud SQL Auth Proxy, which each pod then has.")
    ] = None

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Self:
        of_secret = self.model_fields_set & {"name", "key", "remote"}
        if self.cloud_sql and self.cloud_sql.iam and of_secret:
            raise ValueError(
                f"{', '.join(sorted(of_secret))} name a Secret with a URL, and cloud_sql logs in by IAM, without one. Leave one "
                "of the two out, or set cloud_sql.iam: false to log in with the Secret's user and password"
            )
        if self.name is None and (of_secret or not self.cloud_sql):
            raise ValueError("give the name of the Secret that holds the URL, or an instance as cloud_sql")
        return self

    @property
    def secret(self) -> SecretRef | None:
        """The Secret, where the file names one."""
        if self.name is None:
            return None
        return SecretRef.model_construct(name=self.name, key=self.key, remote=self.remote)
