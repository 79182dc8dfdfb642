"""Compares Pub/Sub with shards.yaml, through its API. Only reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.protobuf.duration_pb2 import Duration

from shardctl.errors import ShardctlError
from shardctl.fleet.spec import Fleet
from shardctl.provision import Step, survey_pubsub


class DriftError(ShardctlError):
    """What is live couldn't be read, so whether it has drifted is unknown."""


@dataclass(frozen=True, slots=True)
class PubSubDrift:
    """`steps` are what `shardctl provision` would do; `unchangeable` is what it can't, each with the safe way."""

    steps: tuple[Step, ...]
    unchangeable: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.steps or self.unchangeable)


def pubsub_drift(fleet: Fleet, publisher: Any, subscriber: Any) -> PubSubDrift:
    """The clients are `google.cloud.pubsub_v1`'s. Raises DriftError."""
    try:
        steps, unchangeable = survey_pubsub(fleet, publisher, subscriber)
    except (GoogleAPICallError, RetryError) as error:
        raise DriftError(f"Pub/Sub, project {fleet.project}: {type(error).__name__}: {error}.") from error
    return PubSubDrift(tuple(step for step in steps if step.action != "identical"), unchangeable)


def step_text(step: Step) -> str:
    """A step in one line; an update with the present and the new value of each field."""
    if step.action != "update":
        return str(step)
    live, wanted = type(step.live).pb(step.live), type(step.wanted).pb(step.wanted)
    changes = (f"{field}: {_shown(live, field)} → {_shown(wanted, field)}" for field in step.fields)
    return f"{step.action} {step.kind} {step.name}\n  " + "\n  ".join(changes)


def _shown(message: Any, field: str) -> str:
    value = getattr(message, field)
    if not hasattr(value, "ListFields"):
        return str(value) or "unset"
    if not message.HasField(field):
        return "unset"
    if isinstance(value, Duration):
        return f"{value.seconds}s"
    parts = ", ".join(f"{part.name} {_shown(value, part.name)}" for part, _ in value.ListFields())
    return parts or ("never" if field == "expiration_policy" else "empty")
