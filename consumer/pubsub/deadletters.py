"""Writes that can't succeed, published with their reason. The subscription's own dead-letter policy is only the backstop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consumer.delivery import Delivery
from consumer.pubsub import publishing
from consumer.pubsub.calls import Publisher
from consumer.pubsub.protos import PubsubMessage
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.wire import deadletters, identity
from shardctl.wire.deadletters import SHORTENED
from shardctl.wire.message import MAX_ATTRIBUTES, MAX_MESSAGE_BYTES, MAX_VALUE_BYTES

SHORTENED_BYTES = 100  # what that attribute takes at most


class DeadLetterTopic:
    def __init__(self, client: Publisher, config: ShardConfig) -> None:
        self._client, self._config = client, config

    async def publish(self, deliveries: Sequence[Delivery]) -> None:
        """Publish in order within each slot; durable on return. Raises BlockedError; then some may have been published twice."""
        messages = [self._message(delivery) for delivery in deliveries]
        await publishing.publish(self._client, self._config.project, self._config.dead_letter_topic, messages)

    def _message(self, delivery: Delivery) -> Any:
        """The dead letter. The largest messages lose the end of their data: with the reason they would exceed the service's
        limit.
        """
        data = delivery.message.data
        message = self._letter(delivery, data, {})
        excess = message.ByteSize() - MAX_MESSAGE_BYTES
        if excess <= 0:
            return message
        kept = data[: -(excess + SHORTENED_BYTES)]
        return self._letter(delivery, kept, {SHORTENED: f"{len(kept):,} of {len(data):,} bytes"})

    def _letter(self, delivery: Delivery, data: bytes, more: Mapping[str, str]) -> Any:
        fault = delivery.fault
        own = {
            deadletters.REASON: fault.reason if fault else "",
            deadletters.ERROR: fault.detail if fault else "",
            deadletters.SHARD: self._config.shard,
            deadletters.SLOT: str(delivery.slot),
            deadletters.MESSAGE_ID: delivery.message_id,
            deadletters.PUBLISH_TIME_US: str(delivery.publish_time_us),
            deadletters.SUBSCRIPTION: delivery.subscription.rpartition("/")[2],
            **more,
        }
        if delivery.keyless:  # so that a replay finds the same inbox row
            own[identity.COPY_OF] = delivery.idempotency_key
        # Without the attributes that only Pub/Sub and consumers may set on a letter: the producer may have set them.
        original = {
            name: value for name, value in deadletters.original(delivery.message.attributes).items() if name not in own
        }
        if len(original) + len(own) > MAX_ATTRIBUTES:
            original, own = self._fewer(original, own)
        return PubsubMessage(
            data=data,
            attributes={name: _shortened(value) for name, value in {**original, **own}.items()},
            ordering_key=delivery.message.ordering_key,
        )

    def _fewer(self, original: dict[str, str], own: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Make room for the reason among so many attributes: those that route the write stay, some others go, and the letter says
        so.
        """
        own = own if SHORTENED in own else own | {SHORTENED: ""}
        routing = set(self._config.attributes.model_dump().values())
        order = sorted(original, key=lambda name: (name not in routing, name))
        kept = {name: original[name] for name in order[: MAX_ATTRIBUTES - len(own)]}
        note = f"{len(original) - len(kept):,} attributes left out"
        own[SHORTENED] = f"{own[SHORTENED]}, {note}" if own[SHORTENED] else note
        return kept, own


def _shortened(value: str) -> str:
    return value.encode()[:MAX_VALUE_BYTES].decode(errors="ignore")
