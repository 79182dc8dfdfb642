"""`tracing` of `shards.yaml`: where consumers send their spans."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shardctl.fleet.model import Model
from shardctl.fleet.settings.httpauth import Url


class Tracing(Model):
    endpoint: Annotated[
        Url,
        Field(description="An OpenTelemetry collector's URL for traces over HTTP, such as http://otel:4318/v1/traces."),
    ]
