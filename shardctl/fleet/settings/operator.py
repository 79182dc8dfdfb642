"""`operator` of `shards.yaml`: the identity of commands that run as Jobs in the cluster, and which commands it may run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from shardctl.fleet.model import Model
from shardctl.fleet.scalars import as_tuple
from shardctl.fleet.settings.cluster import Resources

OperatorCommand = Literal["status", "verify", "provision", "adopt", "rebalance", "migrate", "deadletter", "parked"]
EVERY_COMMAND: tuple[OperatorCommand, ...] = (
    "status",
    "verify",
    "provision",
    "adopt",
    "rebalance",
    "migrate",
    "deadletter",
    "parked",
)


class Operator(Model):
    commands: Annotated[
        tuple[OperatorCommand, ...],
        BeforeValidator(as_tuple),
        Field(min_length=1, description="What `shardctl job` may run. Each command brings the rights that it needs."),
    ] = EVERY_COMMAND
    resources: Annotated[Resources, Field(description="Of a Job's pod, besides the Cloud SQL Auth Proxy's.")] = (
        Resources()
    )
