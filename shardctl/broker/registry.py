"""Every topic, subscription and snapshot of the broker, and what clients may do to them. No I/O; `now` is passed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from shardctl.broker import names
from shardctl.broker.config import (
    SNAPSHOT_MUTABLE,
    SUBSCRIPTION_MUTABLE,
    TOPIC_MUTABLE,
    apply_mask,
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
from shardctl.broker.subscription import Subscription
from shardctl.broker.topic import Topic

SNAPSHOT_SECONDS = 7 * 86_400.0
_DEAD_LETTER = "CloudPubSubDeadLetterSource"

PubsubMessage = of("PubsubMessage")
PublishRequest = of("PublishRequest")

_Resource = TypeVar("_Resource")


@dataclass(slots=True)
class Held:
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
        self.subscriptions: dict[str, Held] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self._orphans: list[Topic] = []
        self._message = 0
        self._subscription = 0
        self._published = Timestamp()

    # -- topics ----------------------------------------------------------------------------------------------------

    def create_topic(self, config: Proto) -> Proto:
        check_topic(config)
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
        topic.config = updated
        for name in topic.subscriptions:
            _show_topic_retention(self.subscriptions[name])
        return updated

    def delete_topic(self, name: str) -> None:
        """Its subscriptions stay, with their backlog, as those of `_deleted-topic_`."""
        topic = self.topic(name)
        del self.topics[name]
        self._orphans.append(topic)
        for held in self.subscriptions.values():
            if held.topic is topic:
                held.config.topic = names.DELETED_TOPIC
        for snapshot in self.snapshots.values():
            if snapshot.topic is topic:
                snapshot.config.topic = names.DELETED_TOPIC
        topic.subscriptions.clear()

    def publish(self, request: Proto, now: float) -> list[str]:
        """All of the messages or, with InvalidArgumentError or NotFoundError, none."""
        topic = self.topic(request.topic)
        return self._publish(topic, request, check_publish(request), now)

    def _publish(self, topic: Topic, request: Proto, found: Iterable[Mapping[str, str]], now: float) -> list[str]:
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
            topic.log.extend((message, dict(attributes)) for message, attributes in zip(fresh, found, strict=True))
        for subscription in topic.subscriptions.values():
            matches = subscription.settings.matches
            if matches is None:
                for message in fresh:
                    subscription.add(message, now)
            else:
                for message, attributes in zip(fresh, found, strict=True):
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
        held = Held(config, topic, Subscription(self._subscription, settings, self.injector))
        held.core.bury = lambda message, attempts, now: self._dead_letter(held, message, attempts, now)
        _show_topic_retention(held)
        self.subscriptions[config.name] = held
        topic.subscriptions[config.name] = held.core
        return config

    def subscription(self, name: str) -> Held:
        return _named(name, "subscriptions", self.subscriptions)

    def pullable(self, name: str) -> Held:
        """A subscription whose messages clients fetch; FailedPreconditionError for a detached or a push one."""
        held = self.subscription(name)
        if held.config.detached:
            raise FailedPreconditionError(f"Subscription is detached (resource={name}).")
        if held.config.push_config.push_endpoint:
            raise FailedPreconditionError(f"This method isn't supported for a push subscription (resource={name}).")
        return held

    def update_subscription(self, config: Proto, mask: Proto) -> Proto:
        held = self.subscription(config.name)
        updated = apply_mask(held.config, config, mask, SUBSCRIPTION_MUTABLE)
        settings = complete_subscription(updated)
        if settings.dead_letter_topic and settings.dead_letter_topic != held.core.settings.dead_letter_topic:
            self.topic(settings.dead_letter_topic)
        held.config = updated
        held.core.settings = settings
        return updated

    def modify_push_config(self, name: str, push_config: Proto) -> None:
        held = self.subscription(name)
        check_push(push_config)
        if held.core.settings.exactly_once and push_config.push_endpoint:
            raise InvalidArgumentError("Exactly-once delivery works with pull subscriptions only.")
        held.config.push_config.CopyFrom(push_config)

    def delete_subscription(self, name: str) -> Subscription:
        held = self.subscription(name)
        del self.subscriptions[name]
        held.topic.subscriptions.pop(name, None)
        held.core.gone = NotFoundError(f"Resource not found (resource={name}).")
        return held.core

    def detach_subscription(self, name: str) -> Subscription:
        """Takes it off its topic for good; its backlog is dropped."""
        held = self.subscription(name)
        held.config.detached = True
        held.topic.subscriptions.pop(name, None)
        held.core.reset((), 0.0)
        held.core.retained.clear()
        held.core.gone = FailedPreconditionError(f"Subscription is detached (resource={name}).")
        return held.core

    def _dead_letter(self, held: Held, message: Message, attempts: int, now: float) -> bool:
        topic = self.topics.get(held.core.settings.dead_letter_topic)
        if topic is None:
            return False
        copy = PubsubMessage.FromString(message.body())
        published = datetime.fromtimestamp(message.published, UTC).isoformat(timespec="milliseconds")
        published = published.replace("+00:00", "Z")
        copy.attributes[f"{_DEAD_LETTER}Subscription"] = names.id_of(held.config.name)
        copy.attributes[f"{_DEAD_LETTER}SubscriptionProject"] = names.project_of(held.config.name)
        copy.attributes[f"{_DEAD_LETTER}DeliveryCount"] = str(attempts)
        copy.attributes[f"{_DEAD_LETTER}TopicPublishTime"] = published
        self._publish(topic, PublishRequest(messages=[copy]), [dict(copy.attributes)], now)
        return True

    # -- time travel -----------------------------------------------------------------------------------------------

    def seek_to_time(self, name: str, moment: float, now: float) -> None:
        """What was published before `moment` counts as acked, the rest as not, as far back as messages are kept."""
        held = self._seekable(name)
        held.core.tick(now)
        known = self._known(held, now)
        held.core.reset([message for message in known.values() if message.published >= moment], now)

    def seek_to_snapshot(self, name: str, snapshot_name: str, now: float) -> None:
        held, snapshot = self._seekable(name), self.snapshot(snapshot_name)
        if snapshot.topic is not held.topic:
            raise FailedPreconditionError("The snapshot was taken from a subscription of another topic.")
        known = {number: message for number, message in self._known(held, now).items() if number > snapshot.after}
        known.update((message.number, message) for message in snapshot.unacked)
        held.core.reset(known.values(), now)

    def _seekable(self, name: str) -> Held:
        held = self.subscription(name)
        if held.config.detached:
            raise FailedPreconditionError(f"Subscription is detached (resource={name}).")
        return held

    def _known(self, held: Held, now: float) -> dict[int, Message]:
        held.topic.trim(now)
        matches = held.core.settings.matches
        known = {m.number: m for m, attributes in held.topic.log if matches is None or matches(attributes)}
        known.update(held.core.retained)
        known.update((message.number, message) for message in held.core.unacked())
        return known

    def create_snapshot(self, config: Proto, subscription_name: str, now: float) -> Proto:
        names.check("snapshots", config.name)
        if config.name in self.snapshots:
            raise AlreadyExistsError(f"Resource already exists in the project (resource={config.name}).")
        held = self._seekable(subscription_name)
        unacked = tuple(held.core.unacked())
        oldest = held.core.oldest_unacked()
        config.topic = held.config.topic
        config.expire_time.FromSeconds(int((now if oldest is None else oldest) + SNAPSHOT_SECONDS))
        self.snapshots[config.name] = Snapshot(config, held.topic, self._message, unacked)
        held.topic.pins[config.name] = self._message
        return config

    def snapshot(self, name: str) -> Snapshot:
        return _named(name, "snapshots", self.snapshots)

    def update_snapshot(self, config: Proto, mask: Proto) -> Proto:
        snapshot = self.snapshot(config.name)
        snapshot.config = apply_mask(snapshot.config, config, mask, SNAPSHOT_MUTABLE)
        return snapshot.config

    def delete_snapshot(self, name: str) -> None:
        snapshot = self.snapshot(name)
        del self.snapshots[name]
        snapshot.topic.pins.pop(name, None)

    # -- upkeep ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Ends what is due everywhere. Safe to call at any time."""
        for held in list(self.subscriptions.values()):
            held.core.tick(now)

    def trim(self, now: float) -> None:
        """Lets go of expired snapshots and of the logs nothing keeps."""
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
        found: dict[str, Any] = {}
        for name, held in self.subscriptions.items():
            oldest = held.core.oldest_unacked()
            found[name] = {
                "topic": held.config.topic,
                "undelivered": len(held.core.entries),
                "outstanding": held.core.outstanding,
                "oldest_unacked_age_seconds": 0.0 if oldest is None else max(0.0, now - oldest),
                "streams": len(held.core.readers),
                "counts": dict(held.core.counts),
            }
        return {"subscriptions": found, "topics": sorted(self.topics), "messages_published": self._message}


def _show_topic_retention(held: Held) -> None:
    """A subscription shows its topic's retention, read-only."""
    held.config.ClearField("topic_message_retention_duration")
    if held.topic.config.HasField("message_retention_duration"):
        held.config.topic_message_retention_duration.CopyFrom(held.topic.config.message_retention_duration)


def _named(name: str, kind: str, held: Mapping[str, _Resource]) -> _Resource:
    """Raises InvalidArgumentError for a name that is none of that kind, NotFoundError where none is held by it."""
    names.check(kind, name)
    resource = held.get(name)
    if resource is None:
        raise NotFoundError(f"Resource not found (resource={name}).")
    return resource
