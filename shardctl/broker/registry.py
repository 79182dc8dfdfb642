"""Every topic, subscription and snapshot of the broker, and what clients may do to them. No I/O; `now` is passed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

from google.protobuf.timestamp_pb2 import Timestamp

from shardctl.broker import names
from shardctl.broker.config import (
    SNAPSHOT_MUTABLE,
    SUBSCRIPTION_MUTABLE,
    TOPIC_MUTABLE,
    apply_mask,
    check_labels,
    check_push,
    check_topic,
    complete_subscription,
)
from shardctl.broker.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from shardctl.broker.faults import Injector
from shardctl.broker.message import Message
from shardctl.broker.protos import Proto, of, to_seconds
from shardctl.broker.publishing import check_publish
from shardctl.broker.schemas import DELETED_REVISION, DELETED_SCHEMA, Schemas
from shardctl.broker.subscription import Subscription
from shardctl.broker.topic import Topic

SNAPSHOT_SECONDS = 7 * 86_400.0
_DEAD_LETTER = "CloudPubSubDeadLetterSource"

PubsubMessage = of("PubsubMessage")
PublishRequest = of("PublishRequest")

_Resource = TypeVar("_Resource")


@dataclass(slots=True)
class RegisteredSubscription:
    """A subscription with its configuration as clients see it, and the topic it is attached to."""

    config: Proto
    topic: Topic
    core: Subscription


@dataclass(slots=True)
class Snapshot:
    config: Proto
    topic: Topic
    after: int
    unacked: Sequence[Message] = field(default_factory=tuple)


class Registry:
    """Message ids are numbers, unique in the broker and growing; publish times never go back."""

    def __init__(self, injector: Injector | None = None) -> None:
        self.injector = injector or Injector()
        self.topics: dict[str, Topic] = {}
        self.subscriptions: dict[str, RegisteredSubscription] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.schemas = Schemas()
        self._orphans: list[Topic] = []
        self._message = 0
        self._subscription = 0
        self._published = Timestamp()

    # -- topics ----------------------------------------------------------------------------------------------------

    def create_topic(self, config: Proto) -> Proto:
        check_topic(config)
        if config.HasField("schema_settings"):
            self.schemas.check_settings(config.schema_settings)
        if config.name in self.topics:
            raise AlreadyExistsError(f"Resource already exists in the project (resource={config.name}).")
        self.topics[config.name] = Topic(config)
        return config

    def topic(self, name: str) -> Topic:
        return _named(name, "topics", self.topics)

    def update_topic(self, config: Proto, mask: Proto) -> Proto:
        topic = self.topic(config.name)
        updated = apply_mask(topic.config, config, mask, TOPIC_MUTABLE)
        check_topic(updated)
        if updated.HasField("schema_settings") and updated.schema_settings != topic.config.schema_settings:
            self.schemas.check_settings(updated.schema_settings)
        topic.config = updated
        for name in topic.subscriptions:
            _show_topic_retention(self.subscriptions[name])
        return updated

    def delete_topic(self, name: str) -> None:
        """Its subscriptions stay, with their backlog, as those of `_deleted-topic_`."""
        topic = self.topic(name)
        del self.topics[name]
        self._orphans.append(topic)
        for subscription in self.subscriptions.values():
            if subscription.topic is topic:
                subscription.config.topic = names.DELETED_TOPIC
        for snapshot in self.snapshots.values():
            if snapshot.topic is topic:
                snapshot.config.topic = names.DELETED_TOPIC
        topic.subscriptions.clear()

    def publish(self, request: Proto, now: float) -> list[str]:
        """All of the messages or, with InvalidArgumentError or NotFoundError, none."""
        topic = self.topic(request.topic)
        all_attributes = check_publish(request)
        if topic.config.HasField("schema_settings"):
            all_attributes = self._stamp(topic, request, all_attributes)
        return self._publish(topic, request, all_attributes, now)

    def _stamp(
        self, topic: Topic, request: Proto, all_attributes: Sequence[Mapping[str, str]]
    ) -> Sequence[Mapping[str, str]]:
        """Adds to each message, in place, the attributes that name its schema, and returns all of its attributes."""
        stamps = self.schemas.stamps(topic.config.schema_settings, request.messages)
        for message, stamp in zip(request.messages, stamps, strict=True):
            message.attributes.update(stamp)
        return [{**attributes, **stamp} for attributes, stamp in zip(all_attributes, stamps, strict=True)]

    def _publish(
        self, topic: Topic, request: Proto, all_attributes: Iterable[Mapping[str, str]], now: float
    ) -> list[str]:
        moment = self._advance(now)
        published = to_seconds(moment)
        number = self._message
        fresh: list[Message] = []
        for message in request.messages:
            number += 1
            message.message_id = str(number)
            message.publish_time.CopyFrom(moment)
            fresh.append(Message(number, published, message.ordering_key, message.SerializeToString()))
        self._message = number
        if topic.keeps_log:
            topic.log.extend(
                (message, dict(attributes)) for message, attributes in zip(fresh, all_attributes, strict=True)
            )
        for subscription in topic.subscriptions.values():
            matches = subscription.settings.matches
            if matches is None:
                for message in fresh:
                    subscription.add(message, now)
            else:
                for message, attributes in zip(fresh, all_attributes, strict=True):
                    if matches(attributes):
                        subscription.add(message, now)
        return [str(message.number) for message in fresh]

    def _advance(self, now: float) -> Proto:
        moment = Timestamp(seconds=int(now), nanos=int(now % 1 * 1e6) * 1000)
        if (moment.seconds, moment.nanos) > (self._published.seconds, self._published.nanos):
            self._published = moment
        return self._published

    # -- subscriptions ---------------------------------------------------------------------------------------------

    def create_subscription(self, config: Proto) -> Proto:
        settings = complete_subscription(config)
        if config.name in self.subscriptions:
            raise AlreadyExistsError(f"Resource already exists in the project (resource={config.name}).")
        topic = self.topic(config.topic)
        if settings.dead_letter_topic:
            self.topic(settings.dead_letter_topic)
        self._subscription += 1
        config.state = config.ACTIVE
        config.detached = False
        subscription = RegisteredSubscription(config, topic, Subscription(self._subscription, settings, self.injector))
        subscription.core.bury = lambda message, attempts, now: self._dead_letter(subscription, message, attempts, now)
        _show_topic_retention(subscription)
        _settle_push(subscription)
        self.subscriptions[config.name] = subscription
        topic.subscriptions[config.name] = subscription.core
        return config

    def subscription(self, name: str) -> RegisteredSubscription:
        return _named(name, "subscriptions", self.subscriptions)

    def pullable(self, name: str) -> RegisteredSubscription:
        """A subscription whose messages clients fetch; FailedPreconditionError for a detached or a push one."""
        subscription = self.subscription(name)
        if refusal := subscription.core.gone or subscription.core.pushes:
            raise refusal
        return subscription

    def update_subscription(self, config: Proto, mask: Proto) -> Proto:
        subscription = self.subscription(config.name)
        updated = apply_mask(subscription.config, config, mask, SUBSCRIPTION_MUTABLE)
        settings = complete_subscription(updated)
        if settings.dead_letter_topic and settings.dead_letter_topic != subscription.core.settings.dead_letter_topic:
            self.topic(settings.dead_letter_topic)
        subscription.config = updated
        subscription.core.settings = settings
        _settle_push(subscription)
        return updated

    def modify_push_config(self, name: str, push_config: Proto) -> None:
        subscription = self.subscription(name)
        check_push(push_config)
        if subscription.core.settings.exactly_once and push_config.push_endpoint:
            raise InvalidArgumentError("Exactly-once delivery works with pull subscriptions only.")
        subscription.config.push_config.CopyFrom(push_config)
        _settle_push(subscription)

    def delete_subscription(self, name: str) -> Subscription:
        subscription = self.subscription(name)
        del self.subscriptions[name]
        subscription.topic.subscriptions.pop(name, None)
        subscription.core.gone = NotFoundError(f"Resource not found (resource={name}).")
        return subscription.core

    def detach_subscription(self, name: str) -> Subscription:
        """Detach it from its topic permanently; its backlog is dropped."""
        subscription = self.subscription(name)
        subscription.config.detached = True
        subscription.topic.subscriptions.pop(name, None)
        subscription.core.reset((), 0.0)
        subscription.core.retained.clear()
        subscription.core.gone = FailedPreconditionError(f"Subscription is detached (resource={name}).")
        return subscription.core

    def _dead_letter(self, subscription: RegisteredSubscription, message: Message, attempts: int, now: float) -> bool:
        topic = self.topics.get(subscription.core.settings.dead_letter_topic)
        if topic is None:
            return False
        copy = PubsubMessage.FromString(message.body())
        published = datetime.fromtimestamp(message.published, UTC).isoformat(timespec="milliseconds")
        published = published.replace("+00:00", "Z")
        copy.attributes[f"{_DEAD_LETTER}Subscription"] = names.id_of(subscription.config.name)
        copy.attributes[f"{_DEAD_LETTER}SubscriptionProject"] = names.project_of(subscription.config.name)
        copy.attributes[f"{_DEAD_LETTER}DeliveryCount"] = str(attempts)
        copy.attributes[f"{_DEAD_LETTER}TopicPublishTime"] = published
        self._publish(topic, PublishRequest(messages=[copy]), [dict(copy.attributes)], now)
        return True

    # -- time travel -----------------------------------------------------------------------------------------------

    def seek_to_time(self, name: str, moment: float, now: float) -> None:
        """What was published before `moment` counts as acked, the rest as not, as far back as messages are kept."""
        subscription = self._seekable(name)
        subscription.core.tick(now)
        known = self._known(subscription, now)
        subscription.core.reset([message for message in known.values() if message.published >= moment], now)

    def seek_to_snapshot(self, name: str, snapshot_name: str, now: float) -> None:
        subscription, snapshot = self._seekable(name), self.snapshot(snapshot_name)
        if snapshot.topic is not subscription.topic:
            raise FailedPreconditionError("The snapshot was taken from a subscription of another topic.")
        known = {
            number: message for number, message in self._known(subscription, now).items() if number > snapshot.after
        }
        matches = subscription.core.settings.matches  # the snapshot may be another subscription's, with another filter
        known.update(
            (message.number, message)
            for message in snapshot.unacked
            if matches is None or matches(PubsubMessage.FromString(message.body()).attributes)
        )
        subscription.core.reset(known.values(), now)

    def _seekable(self, name: str) -> RegisteredSubscription:
        subscription = self.subscription(name)
        if subscription.config.detached:
            raise FailedPreconditionError(f"Subscription is detached (resource={name}).")
        return subscription

    def _known(self, subscription: RegisteredSubscription, now: float) -> dict[int, Message]:
        subscription.topic.trim(now)
        matches = subscription.core.settings.matches
        known = {m.number: m for m, attributes in subscription.topic.log if matches is None or matches(attributes)}
        known.update(subscription.core.retained)
        known.update((message.number, message) for message in subscription.core.unacked())
        return known

    def create_snapshot(self, config: Proto, subscription_name: str, now: float) -> Proto:
        """A snapshot without a name gets one."""
        subscription = self._seekable(subscription_name)
        config.name = config.name or f"projects/{names.project_of(subscription_name)}/snapshots/s-{uuid4().hex}"
        names.check("snapshots", config.name)
        check_labels(config)
        if config.name in self.snapshots:
            raise AlreadyExistsError(f"Resource already exists in the project (resource={config.name}).")
        unacked = tuple(subscription.core.unacked())
        oldest = subscription.core.oldest_unacked()
        config.topic = subscription.config.topic
        config.expire_time.FromSeconds(int((now if oldest is None else oldest) + SNAPSHOT_SECONDS))
        self.snapshots[config.name] = Snapshot(config, subscription.topic, self._message, unacked)
        subscription.topic.pins[config.name] = self._message
        return config

    def snapshot(self, name: str) -> Snapshot:
        return _named(name, "snapshots", self.snapshots)

    def update_snapshot(self, config: Proto, mask: Proto) -> Proto:
        snapshot = self.snapshot(config.name)
        updated = apply_mask(snapshot.config, config, mask, SNAPSHOT_MUTABLE)
        check_labels(updated)
        snapshot.config = updated
        return snapshot.config

    def delete_snapshot(self, name: str) -> None:
        snapshot = self.snapshot(name)
        del self.snapshots[name]
        snapshot.topic.pins.pop(name, None)

    # -- schemas ---------------------------------------------------------------------------------------------------

    def delete_schema(self, name: str) -> None:
        """Topics with it stay, and take no messages until their settings change."""
        self.schemas.delete(name)
        for settings in self._settings_with(name):
            settings.schema = DELETED_SCHEMA

    def delete_schema_revision(self, name: str) -> Proto:
        """Topics whose range it bounds take no messages until their settings change."""
        deleted = self.schemas.delete_revision(name)
        for settings in self._settings_with(deleted.name):
            for bound in ("first_revision_id", "last_revision_id"):
                if getattr(settings, bound) == deleted.revision_id:
                    setattr(settings, bound, DELETED_REVISION)
        return deleted

    def _settings_with(self, name: str) -> Sequence[Proto]:
        settings = (topic.config.schema_settings for topic in self.topics.values())
        return [some for some in settings if some.schema == name]

    # -- upkeep ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Ends what is due everywhere. Safe to call at any time."""
        for subscription in list(self.subscriptions.values()):
            subscription.core.tick(now)

    def trim(self, now: float) -> None:
        """Delete expired snapshots, and log entries that nothing retains."""
        for name, snapshot in list(self.snapshots.items()):
            if to_seconds(snapshot.config.expire_time) <= now:
                self.delete_snapshot(name)
        self._orphans = [topic for topic in self._orphans if topic.keeps_log]
        for topic in [*self.topics.values(), *self._orphans]:
            topic.trim(now)

    def stats(self, now: float) -> dict[str, Any]:
        """For each subscription by full name; ages in seconds. `undelivered` counts outstanding messages too, as the
        service's num_undelivered_messages does.
        """
        subscriptions: dict[str, Any] = {}
        for name, subscription in self.subscriptions.items():
            oldest = subscription.core.oldest_unacked()
            subscriptions[name] = {
                "topic": subscription.config.topic,
                "undelivered": len(subscription.core.entries),
                "outstanding": subscription.core.outstanding,
                "oldest_unacked_age_seconds": 0.0 if oldest is None else max(0.0, now - oldest),
                "streams": len(subscription.core.readers),
                "counts": dict(subscription.core.counts),
            }
        return {"subscriptions": subscriptions, "topics": sorted(self.topics), "messages_published": self._message}


def _settle_push(subscription: RegisteredSubscription) -> None:
    """What a subscription pushes nobody can pull; its open streams end, too."""
    name, push = subscription.config.name, subscription.config.push_config
    refusal = FailedPreconditionError(f"This method isn't supported for a push subscription (resource={name}).")
    subscription.core.pushes = refusal if push.push_endpoint else None


def _show_topic_retention(subscription: RegisteredSubscription) -> None:
    """A subscription shows its topic's retention, read-only."""
    subscription.config.ClearField("topic_message_retention_duration")
    if subscription.topic.config.HasField("message_retention_duration"):
        subscription.config.topic_message_retention_duration.CopyFrom(
            subscription.topic.config.message_retention_duration
        )


def _named(name: str, kind: str, resources: Mapping[str, _Resource]) -> _Resource:
    """Raises InvalidArgumentError for a name that is none of that kind, NotFoundError where none has it."""
    names.check(kind, name)
    resource = resources.get(name)
    if resource is None:
        raise NotFoundError(f"Resource not found (resource={name}).")
    return resource
