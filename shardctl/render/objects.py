"""What the builders of objects share: the plan of what to render, the shards' consumers, and names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from hashlib import sha256

from shardctl.fleet import serviceaccounts, topology
from shardctl.fleet.spec import Fleet, Shard
from shardctl.render.config import config_text


@dataclass(frozen=True, slots=True)
class Object:
    """One object to come: `fields` is all that its template may show. The template is the kind's, unless one is named."""

    kind: str
    name: str
    owner: Writer | None
    fields: Mapping[str, object]
    template: str | None = None

    @property
    def template_name(self) -> str:
        return f"{self.template or self.kind.lower()}.yaml.j2"


@dataclass(frozen=True)
class Writer:
    """One shard, with the values that several of its objects share."""

    shard: Shard
    id: str
    labels: tuple[tuple[str, str], ...]
    subscriptions: tuple[topology.Subscription, ...]


@dataclass(frozen=True)
class Plan:
    """A fleet, the shards to render, and whether to render the fleet's own objects too."""

    fleet: Fleet
    shards: tuple[Shard, ...]
    whole: bool

    @cached_property
    def app(self) -> str:
        return f"{self.fleet.fleet}-consumer"

    @cached_property
    def labels(self) -> tuple[tuple[str, str], ...]:
        """The labels of what belongs to the whole fleet."""
        return self._labelled({})

    @cached_property
    def writers(self) -> tuple[Writer, ...]:
        writers = []
        for shard in self.shards:
            name = topology.shard_id(self.fleet, shard)
            labels = self._labelled(
                {
                    "app": self.app,
                    "shard": shard.name,
                    "app.kubernetes.io/name": "shardctl-consumer",
                    "app.kubernetes.io/instance": name,
                    "app.kubernetes.io/component": "consumer",
                }
            )
            writers.append(Writer(shard, name, labels, topology.every_subscription(self.fleet, shard)))
        return tuple(writers)

    @cached_property
    def dead_letter_topic(self) -> str:
        return object_name(topology.dead_letter_topic(self.fleet))

    @cached_property
    def service_agent(self) -> str | None:
        """Pub/Sub's own identity in the project: it moves dead letters, and needs permission to."""
        number = self.fleet.project_number
        return f"serviceAccount:service-{number}@gcp-sa-pubsub.iam.gserviceaccount.com" if number else None

    @cached_property
    def _configs(self) -> dict[str, str]:
        return {}

    def config(self, writer: Writer) -> str:
        """What the ConfigMap holds and the Deployment's checksum covers, made once for both."""
        if writer.id not in self._configs:
            self._configs[writer.id] = config_text(self.fleet, writer.shard)
        return self._configs[writer.id]

    def account_email(self, writer: Writer) -> str:
        return serviceaccounts.email(self.fleet, writer.id)

    def object(
        self, kind: str, name: str, owner: Writer | None, *, template: str | None = None, **fields: object
    ) -> Object:
        labels = owner.labels if owner else self.labels
        shown = {"name": name, "namespace": self.fleet.namespace, "labels": labels, **fields}
        return Object(kind, name, owner, shown, template)

    def _labelled(self, own: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        shared = {"app.kubernetes.io/part-of": self.fleet.fleet, "app.kubernetes.io/managed-by": "shardctl"}
        # Ours come last, so that a user's label never changes a selector.
        return tuple(sorted({**self.fleet.labels, **shared, **own}.items()))


# --- names and units -------------------------------------------------------------------------------------------------


def object_name(pubsub_id: str) -> str:
    """The Kubernetes name for a Pub/Sub id: the id itself wherever Kubernetes allows it."""
    if len(pubsub_id) <= 253 and re.fullmatch(_OBJECT_NAME, pubsub_id):
        return pubsub_id
    plain = re.sub(r"[^a-z0-9]+", "-", pubsub_id.lower()).strip("-")
    return f"{plain[:200].rstrip('-')}-{digest(pubsub_id)}"


_OBJECT_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]


def seconds(duration: timedelta) -> int:
    return int(duration.total_seconds())


def seconds_text(duration: timedelta) -> str:
    return f"{seconds(duration)}s"
