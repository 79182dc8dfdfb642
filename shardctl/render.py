"""A fleet as Kubernetes manifests. Pure but for reading templates once: no clock, no chance, no order but the file's.

Templates hold the shape and the reasons; everything they show is computed here. No value can break out of its place:
the environment itself encodes each `{{ … }}` as one YAML scalar, and a template whose expression isn't a whole key,
value or list item is refused when it is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, TemplateError, TemplateSyntaxError

from shardctl import topology
from shardctl.errors import UsageError
from shardctl.shardconfig import slice_of
from shardctl.spec import Fleet, SecretRef, Shard
from shardctl.templates import Lines, environment

GRACE_MARGIN_SECONDS = 10  # between the consumer's own drain and the kill
SHORTEST_ACCOUNT_ID, LONGEST_ACCOUNT_ID = 6, 30
SHARDS_NAMED = 5  # in one warning


@dataclass(frozen=True, slots=True)
class Document:
    """One object. `shard` is None for the fleet's own; `path` is its place under `-o DIR`; `text` is one document."""

    kind: str
    name: str
    shard: str | None
    path: str
    text: str


class BadTemplateError(UsageError):
    """A template can't be used; the message names the file."""


def documents(
    fleet: Fleet, *, shards: Collection[str] = (), kinds: Collection[str] = (), templates: Path | None = None
) -> Iterator[Document]:
    """Every object of the fleet, kind by kind in the order to apply them, shards in the file's order within a kind.

    `shards` and `kinds` (in any case) narrow that down; naming shards leaves out what belongs to the fleet as a whole.
    Templates in the folder `templates` take the place of the built-in ones of the same name. Raises UsageError at once,
    before the first document, for a shard, kind or folder that doesn't exist; BadTemplateError for a template at fault.
    """
    _refuse_shared_accounts(fleet)
    chosen_kinds = _chosen_kinds(kinds)
    chosen_shards = tuple(fleet.shard(name) for name in dict.fromkeys(shards)) or fleet.shards
    plan = _Plan(fleet, chosen_shards, whole=not shards)
    return _rendered(plan, chosen_kinds, environment(templates))


def warnings(fleet: Fleet) -> tuple[str, ...]:
    """What the manifests can't do as the file stands, each in one sentence."""
    found = []
    if fleet.project_number is None:
        found.append(
            "project_number isn't set, so Pub/Sub's service agent gets no grants and the platform won't dead-letter; "
            f"`gcloud projects describe {fleet.project} --format='value(projectNumber)'` tells the number"
        )
    capped = [s.name for s in fleet.shards if max_replicas(fleet, s) < fleet.autoscaling_of(s).max]
    if capped:
        more = f" and {len(capped) - SHARDS_NAMED} more" if len(capped) > SHARDS_NAMED else ""
        found.append(
            "autoscaling.max is over the number of slots, and more replicas would idle: "
            f"capped for {', '.join(capped[:SHARDS_NAMED])}{more}"
        )
    return tuple(found)


def max_replicas(fleet: Fleet, shard: Shard) -> int:
    """The most replicas that have work, one a slot; never under the minimum, whose extra replicas are hot standbys."""
    wanted = fleet.autoscaling_of(shard)
    slots = max(len(generation.slots) for generation in topology.generations(shard))
    return max(wanted.min, min(wanted.max, slots))


def account_id(shard_id: str) -> str:
    """The id of a shard's Google service account: the shard's own name wherever that has 6 to 30 characters."""
    if len(shard_id) < SHORTEST_ACCOUNT_ID:
        return f"{shard_id}-writer"
    if len(shard_id) > LONGEST_ACCOUNT_ID:
        return f"{shard_id[:21].rstrip('-')}-{_digest(shard_id)}"
    return shard_id


def _refuse_shared_accounts(fleet: Fleet) -> None:
    owners: dict[str, str] = {}
    for shard in fleet.shards:
        name = account_id(topology.shard_id(fleet, shard))
        if owners.setdefault(name, shard.name) != shard.name:
            raise UsageError(
                f"shards {owners[name]!r} and {shard.name!r} would share the Google service account {name}, "
                "and so could read each other's messages. Rename one of them."
            )


def object_name(pubsub_id: str) -> str:
    """The Kubernetes name for a Pub/Sub id: the id itself wherever Kubernetes allows it."""
    if len(pubsub_id) <= 253 and re.fullmatch(_OBJECT_NAME, pubsub_id):
        return pubsub_id
    plain = re.sub(r"[^a-z0-9]+", "-", pubsub_id.lower()).strip("-")
    return f"{plain[:200].rstrip('-')}-{_digest(pubsub_id)}"


_OBJECT_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]


# --- what each object shows -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Object:
    """One object to come: `fields` is all that its template may show."""

    kind: str
    name: str
    owner: _Writer | None
    fields: Mapping[str, object]


@dataclass(frozen=True)
class _Writer:
    """One shard with what several of its objects show."""

    shard: Shard
    id: str
    labels: tuple[tuple[str, str], ...]
    subscriptions: tuple[topology.Subscription, ...]


@dataclass(frozen=True)
class _Plan:
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
    def writers(self) -> tuple[_Writer, ...]:
        found = []
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
            found.append(_Writer(shard, name, labels, topology.every_subscription(self.fleet, shard)))
        return tuple(found)

    @cached_property
    def dead_letter_topic(self) -> str:
        return object_name(topology.dead_letter_topic(self.fleet))

    @cached_property
    def service_agent(self) -> str | None:
        """Pub/Sub's own identity in the project: it moves dead letters, and needs leave to."""
        number = self.fleet.project_number
        return f"serviceAccount:service-{number}@gcp-sa-pubsub.iam.gserviceaccount.com" if number else None

    @cached_property
    def _configs(self) -> dict[str, str]:
        return {}

    def config(self, writer: _Writer) -> str:
        """What the ConfigMap holds and the Deployment's checksum covers, made once for both."""
        if writer.id not in self._configs:
            self._configs[writer.id] = config_text(self.fleet, writer.shard)
        return self._configs[writer.id]

    def account_email(self, writer: _Writer) -> str:
        # A project of an organisation's domain, `example.com:shop`, is written the other way round in addresses.
        domain, _, project = self.fleet.project.rpartition(":")
        host = f"{project}.{domain}" if domain else project
        return f"{account_id(writer.id)}@{host}.iam.gserviceaccount.com"

    def object(self, kind: str, name: str, owner: _Writer | None, **fields: object) -> _Object:
        labels = owner.labels if owner else self.labels
        return _Object(kind, name, owner, {"name": name, "namespace": self.fleet.namespace, "labels": labels, **fields})

    def _labelled(self, own: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        shared = {"app.kubernetes.io/part-of": self.fleet.fleet, "app.kubernetes.io/managed-by": "shardctl"}
        # Ours come last: a label of the user's must never change a selector.
        return tuple(sorted({**self.fleet.labels, **shared, **own}.items()))


def _topics(plan: _Plan) -> Iterator[_Object]:
    if not plan.whole:
        return
    fleet = plan.fleet
    for topic_id in (*(topic.id for topic in topology.topics(fleet)), topology.dead_letter_topic(fleet)):
        yield plan.object("PubSubTopic", object_name(topic_id), None, project=fleet.project, topic_id=topic_id)


def _subscriptions(plan: _Plan) -> Iterator[_Object]:
    fleet, settings = plan.fleet, plan.fleet.subscription
    dead_letter = {
        "topic_name": plan.dead_letter_topic,
        "max_attempts": settings.max_delivery_attempts,
        "minimum_backoff": _seconds_text(settings.retry_minimum),
        "maximum_backoff": _seconds_text(settings.retry_maximum),
    }

    def subscription(owner: _Writer | None, name: str, topic: str, filter_text: str, **others: object) -> _Object:
        return plan.object(
            "PubSubSubscription",
            name,
            owner,
            subscription_id=name,
            project=fleet.project,
            topic_name=object_name(topic),
            filter=filter_text,
            ack_deadline_seconds=_seconds(settings.ack_deadline),
            **others,
        )

    for writer in plan.writers:
        for sub in writer.subscriptions:
            yield subscription(
                writer,
                sub.id,
                sub.topic.id,
                sub.filter,
                retention=_seconds_text(settings.retention),
                dead_letter=dead_letter,
            )
    if plan.whole:
        kept = {"retention": _seconds_text(topology.KEPT_FOR_PEOPLE), "dead_letter": None}
        for stray in topology.strays(fleet):
            yield subscription(None, stray.id, stray.topic.id, stray.filter, **kept)
        yield subscription(
            None, topology.dead_letter_subscription(fleet), topology.dead_letter_topic(fleet), "", **kept
        )


def _accounts(plan: _Plan) -> Iterator[_Object]:
    for writer in plan.writers:
        yield plan.object(
            "IAMServiceAccount",
            writer.id,
            writer,
            project=plan.fleet.project,
            account_id=account_id(writer.id),
            display_name=f"Consumer of shard {writer.id}",
        )


def _grants(plan: _Plan) -> Iterator[_Object]:
    fleet, agent = plan.fleet, plan.service_agent
    subscriber, publisher = "roles/pubsub.subscriber", "roles/pubsub.publisher"

    def grant(owner: _Writer | None, name: str, role: str, on: tuple[str, str], **member: str) -> _Object:
        who = {"member": None, "member_account": None, **member}
        return plan.object("IAMPolicyMember", name, owner, role=role, resource_kind=on[0], resource_name=on[1], **who)

    dead_letters = ("PubSubTopic", plan.dead_letter_topic)
    if plan.whole and agent:
        yield grant(None, f"{fleet.fleet}-dead-letter-agent", publisher, dead_letters, member=agent)
    for writer in plan.writers:
        yield grant(
            writer,
            f"{writer.id}-workload-identity",
            "roles/iam.workloadIdentityUser",
            ("IAMServiceAccount", writer.id),
            member=f"serviceAccount:{fleet.project}.svc.id.goog[{fleet.namespace}/{writer.id}]",
        )
        for sub in writer.subscriptions:
            own = ("PubSubSubscription", sub.id)
            yield grant(writer, f"{sub.id}-subscriber", subscriber, own, member_account=writer.id)
            if agent:
                yield grant(writer, f"{sub.id}-agent", subscriber, own, member=agent)
        yield grant(writer, f"{writer.id}-dead-letter-publisher", publisher, dead_letters, member_account=writer.id)
        if writer.shard.previous:  # what a slot's former owner finds unapplied, it publishes again
            for topic in topology.topics(fleet):
                on = ("PubSubTopic", object_name(topic.id))
                yield grant(writer, f"{writer.id}-{topic.id}-publisher", publisher, on, member_account=writer.id)


def _service_accounts(plan: _Plan) -> Iterator[_Object]:
    for writer in plan.writers:
        yield plan.object("ServiceAccount", writer.id, writer, account_email=plan.account_email(writer))


def _config_maps(plan: _Plan) -> Iterator[_Object]:
    for writer in plan.writers:
        yield plan.object("ConfigMap", writer.id, writer, config=Lines(plan.config(writer)))


def _deployments(plan: _Plan) -> Iterator[_Object]:
    fleet = plan.fleet
    redis = fleet.redis.secret or _secret(f"{fleet.fleet}-redis")
    for writer in plan.writers:
        shard = writer.shard
        yield plan.object(
            "Deployment",
            writer.id,
            writer,
            app=plan.app,
            shard=shard.name,
            image=fleet.image,
            config_checksum=sha256(plan.config(writer).encode()).hexdigest(),
            grace_seconds=_seconds(fleet.consumer_of(shard).drain_timeout) + GRACE_MARGIN_SECONDS,
            database=topology.database_secret(fleet, shard),
            redis=redis,
            probes=fleet.probes,
            resources=fleet.resources_of(shard),
        )


def _autoscalers(plan: _Plan) -> Iterator[_Object]:
    for writer in plan.writers:
        wanted = plan.fleet.autoscaling_of(writer.shard)
        yield plan.object(
            "HorizontalPodAutoscaler",
            writer.id,
            writer,
            min_replicas=wanted.min,
            max_replicas=max_replicas(plan.fleet, writer.shard),
            cpu_percent=wanted.cpu_percent,
            backlog_per_replica=str(wanted.backlog_per_replica),  # a quantity, which is text
            subscriptions=[sub.id for sub in writer.subscriptions],
        )


def _disruption_budgets(plan: _Plan) -> Iterator[_Object]:
    for writer in plan.writers:
        yield plan.object("PodDisruptionBudget", writer.id, writer, app=plan.app, shard=writer.shard.name)


# In the order to apply them: what others need comes first.
_BUILDERS: Mapping[str, Callable[[_Plan], Iterator[_Object]]] = {
    "PubSubTopic": _topics,
    "PubSubSubscription": _subscriptions,
    "IAMServiceAccount": _accounts,
    "IAMPolicyMember": _grants,
    "ServiceAccount": _service_accounts,
    "ConfigMap": _config_maps,
    "Deployment": _deployments,
    "HorizontalPodAutoscaler": _autoscalers,
    "PodDisruptionBudget": _disruption_budgets,
}
KINDS = tuple(_BUILDERS)


def config_text(fleet: Fleet, shard: Shard) -> str:
    """The shard's slice as its ConfigMap holds it: defaults left out, keys sorted, a setting a line for short diffs."""
    settings = slice_of(fleet, shard).model_dump(mode="json", exclude_defaults=True)
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def _secret(name: str) -> SecretRef:
    return SecretRef.model_construct(name=name)  # made of names that were checked; checking again costs time


def _seconds(duration: timedelta) -> int:
    return int(duration.total_seconds())


def _seconds_text(duration: timedelta) -> str:
    return f"{_seconds(duration)}s"


# --- from objects to text ---------------------------------------------------------------------------------------------


def _chosen_kinds(kinds: Iterable[str]) -> Collection[str]:
    by_lower = {kind.lower(): kind for kind in KINDS}
    chosen = set()
    for kind in kinds:
        if kind.lower() not in by_lower:
            raise UsageError(f"no kind {kind!r} is rendered; kinds: {', '.join(KINDS)}")
        chosen.add(by_lower[kind.lower()])
    return chosen or KINDS


def _rendered(plan: _Plan, kinds: Collection[str], templates: Environment) -> Iterator[Document]:
    for kind, build in _BUILDERS.items():
        if kind not in kinds:
            continue
        name = f"{kind.lower()}.yaml.j2"
        try:
            template = templates.get_template(name)
            for item in build(plan):
                shard = item.owner.shard.name if item.owner else None
                yield Document(kind, item.name, shard, _path(plan.fleet, item), template.render(item.fields))
        except TemplateSyntaxError as error:
            raise BadTemplateError(f"{error.filename or name}:{error.lineno}: {error.message}") from error
        except TemplateError as error:
            raise BadTemplateError(f"{name}: {error.message or type(error).__name__}") from error


def _path(fleet: Fleet, item: _Object) -> str:
    """`shards/s0/deployment.yaml`; the part of the name that the folder doesn't already tell follows the kind."""
    base, folder = (item.owner.id, f"shards/{item.owner.shard.name}") if item.owner else (fleet.fleet, "fleet")
    rest = "" if item.name == base else "-" + item.name.removeprefix(f"{base}-")
    return f"{folder}/{item.kind.lower()}{rest}.yaml"
