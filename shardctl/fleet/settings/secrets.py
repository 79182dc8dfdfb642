"""Where credentials come from. Neither `shards.yaml` nor anything rendered from it contains a secret value."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from shardctl.fleet.model import Model, OrJust
from shardctl.fleet.scalars import Between, ObjectName, SecretId, SecretKey


class SecretRef(Model):
    """A key of a Kubernetes Secret. Neither this file nor anything rendered from it contains the value."""

    name: ObjectName
    key: SecretKey = "url"
    remote: Annotated[
        SecretId | None,
        Field(description="Its id in Secret Manager, for `secrets: {kind: external-secrets}`; by default `name`."),
    ] = None


class SecretStore(Model):
    """The store that External Secrets reads, by name; it is yours, and never rendered."""

    name: ObjectName = "google-secret-manager"
    kind: Literal["SecretStore", "ClusterSecretStore"] = "ClusterSecretStore"


class Secrets(Model):
    kind: Annotated[
        Literal["kubernetes", "external-secrets"],
        Field(description="Secrets that you make, or that External Secrets fills from Secret Manager."),
    ] = "kubernetes"
    refresh: Annotated[
        timedelta, Between("1m", "30d"), Field(description="How soon a new version reaches the Secret.")
    ] = timedelta(hours=1)
    store: SecretStore = SecretStore()
    files: Annotated[
        bool,
        Field(
            description="Consumers read the URLs of their database and of Redis from files, and again for each new connection: "
            "a rotated password needs no restart."
        ),
    ] = False


SecretsSetting = Annotated[Secrets, OrJust("kind", ("kubernetes", "external-secrets"))]
