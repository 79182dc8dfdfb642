"""`leader` of `shards.yaml`: one replica of a shard writes at a time, and the others stand by."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shardctl.fleet.model import Model, OrJust
from shardctl.fleet.scalars import Between


class Leader(Model):
    """The times are those of client-go's leader election, and mean the same."""

    kind: Annotated[
        Literal["none", "kubernetes", "redis"],
        Field(description="By a Lease of Kubernetes, or by a key in Redis; `none` lets every replica write."),
    ] = "none"
    lease_duration: Annotated[
        timedelta, Between("2s", "10m"), Field(description="How long the others wait for a leader that doesn't renew.")
    ] = timedelta(seconds=15)
    renew_deadline: Annotated[
        timedelta,
        Between("1s", "10m"),
        Field(description="How long a leader that can't renew keeps leading before it stops."),
    ] = timedelta(seconds=10)
    retry_period: Annotated[timedelta, Between("1s", "5m"), Field(description="Between two tries.")] = timedelta(
        seconds=2
    )

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        if not self.retry_period < self.renew_deadline < self.lease_duration:
            raise ValueError("retry_period must be below renew_deadline, and that below lease_duration")
        return self


LeaderSetting = Annotated[Leader, OrJust("kind", ("none", "kubernetes", "redis"))]
