"""Writes that can't succeed, published with their reason. The subscription's own dead-letter policy is only the backstop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.pubsub_v1 import PublisherAsyncClient, PubsubMessage

from consumer import outbox
from consumer.delivery import Delivery
from shardctl.shardconfig import ShardConfig

MAX_ATTRIBUTES = 100
MAX_VALUE_BYTES = 1024
MAX_MESSAGE_BYTES = 9_999_000  # one message alone: what the topic's name leaves of the 10 MB
SHORTENED = "shardctl-shortened"  # "9,998,112 of 9,999,304 bytes": this letter can be read, but not be replayed
SHORTENED_BYTES = 100  # what that attribute takes at most


class DeadLetterTopic:
    def __init__(self, client: PublisherAsyncClient, config: ShardConfig) -> None:
        self._client, self._config = client, config

    async def publish(self, deliveries: Sequence[Delivery]) -> None:
        """Publish in order within each slot; durable on return. Raises AgainError; then some may have been published twice."""
        messages = [self._message(delivery) for delivery in deliveries]
        await outbox.publish(self._client, self._config.project, self._config.dead_letter_topic, messages)

    def _message(self, delivery: Delivery) -> PubsubMessage:
        """The letter. The largest messages lose the end of their data: with the reason they'd be more than the service takes."""
        data = delivery.message.data
        message = self._letter(delivery, data, {})
        excess = PubsubMessage.pb(message).ByteSize() - MAX_MESSAGE_BYTES
        if excess <= 0:
            return message
        kept = data[: -(excess + SHORTENED_BYTES)]
        return self._letter(delivery, kept, {SHORTENED: f"{len(kept):,} of {len(data):,} bytes"})

    def _letter(self, delivery: Delivery, data: bytes, more: Mapping[str, str]) -> PubsubMessage:
        fault = delivery.fault
        own = {
            "shardctl-reason": fault.reason if fault else "",
            "shardctl-error": fault.detail if fault else "",
            "shardctl-shard": self._config.shard,
            "shardctl-slot": str(delivery.slot),
            "shardctl-message-id": delivery.message_id,
            "shardctl-publish-time-us": str(delivery.publish_time_us),
            "shardctl-subscription": delivery.subscription.rpartition("/")[2],
            **more,
        }
        # A replay must meet the same inbox row, so the key goes along even where it was the message id.
        own[self._config.attributes.idempotency_key] = delivery.idempotency_key
        original = {
            name: value for name, value in outbox.publishable(delivery.message.attributes).items() if name not in own
        }
        while len(original) + len(own) > MAX_ATTRIBUTES:
            original.pop(max(original))
        return PubsubMessage(
            data=data,
            attributes={name: _shortened(value) for name, value in {**original, **own}.items()},
            ordering_key=delivery.message.ordering_key,
        )


def _shortened(value: str) -> str:
    return value.encode()[:MAX_VALUE_BYTES].decode(errors="ignore")
