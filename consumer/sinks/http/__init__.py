"""Writes as calls of an HTTP backend: at least one call for each, and one effect where the backend honours Idempotency-Key."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from consumer.observability.metrics import Metrics
from shardctl.fleet import backends
from shardctl.fleet.shardconfig import ShardConfig

if TYPE_CHECKING:
    from consumer.sinks.http.sink import HttpSink


def sink_for(
    config: ShardConfig, metrics: Metrics, stopping: Callable[[], bool], environment: Mapping[str, str] = os.environ
) -> HttpSink | None:
    """The sink of the shard's types with a backend, if it has any. Raises CredentialsError where a Secret can't be used."""
    if not backends.called(config.message_types):
        return None
    from consumer.sinks.http.sink import HttpSink  # the HTTP client takes a while to import

    secrets = Path(environment.get(backends.SECRETS_VARIABLE) or backends.SECRETS_DIRECTORY)
    return HttpSink(config.message_types, config.consumer, secrets, metrics, stopping)
