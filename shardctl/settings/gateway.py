"""`gateway` of `shards.yaml`: the HTTP API that takes writes in."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shardctl.model import Model
from shardctl.settings.cluster import Autoscaling, AutoscalingSetting, Resources


class Gateway(Model):
    autoscaling: AutoscalingSetting = Autoscaling()
    resources: Resources = Resources()
    max_body_bytes: Annotated[int, Field(ge=1_024, le=9 * 1024**2, description="Of one write.")] = 1024**2
