"""`relay` of `shards.yaml`: what publishes an application's outbox from the cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shardctl.fleet.model import Model
from shardctl.fleet.settings.cluster import Reach, Resources
from shardctl.fleet.settings.secrets import SecretRef


class Relay(Model):
    database: Annotated[
        SecretRef, Field(description="The Secret with the URL of the application's database, which holds the outbox.")
    ]
    replicas: Annotated[int, Field(ge=1, le=20, description="One works, and the others take over when it ends.")] = 2
    resources: Resources = Resources()
    reach: Annotated[
        Reach | None,
        Field(description="With a network_policy: where that database is; by default ports 5432 and 3306, anywhere."),
    ] = None
