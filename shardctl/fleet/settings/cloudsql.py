"""Where a shard's database is: behind a URL in a Secret, or an instance of Cloud SQL that consumers reach by the Auth Proxy."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shardctl.fleet.model import Model
from shardctl.fleet.scalars import Image, ObjectName, Quantity, SecretId, SecretKey, Text
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
        Image, Field(description="Version 2 of the proxy. A digest pins it, as does a tag that never moves.")
    ] = "gcr.io/cloud-sql-connectors/cloud-sql-proxy:2.26.0"
    resources: ProxyResources = ProxyResources()


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


class CloudSql(CloudSqlDefaults):
    """A shard's instance of Cloud SQL."""

    instance: InstanceName
    database: DatabaseName


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
