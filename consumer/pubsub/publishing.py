"""What a consumer publishes itself: durable on return, in order within each ordering key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.api_core.exceptions import GoogleAPICallError

from consumer.delivery import Delivery
from consumer.errors import BlockedError
from consumer.pubsub.calls import Publisher
from consumer.pubsub.protos import PubsubMessage
from shardctl.fleet.keyspace import digits_of
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.wire import identity
from shardctl.wire.deadletters import RESERVED
from shardctl.wire.message import MAX_ATTRIBUTES
from shardctl.wire.requests import in_requests

PUBLISH_TIMEOUT_SECONDS = 10


async def publish(client: Publisher, project: str, topic: str, messages: Sequence[Any]) -> None:
    """Raises BlockedError; then some of the messages may have been published, and will be twice."""
    by_ordering_key: dict[str, list[Any]] = {}
    for message in messages:
        by_ordering_key.setdefault(message.ordering_key, []).append(message)
    path = f"projects/{project}/topics/{topic}"
    try:
        for listed in by_ordering_key.values():  # one request carries one ordering key
            for request in in_requests(listed, lambda message: message.ByteSize()):
                await client.publish(topic=path, messages=request, timeout_seconds=PUBLISH_TIMEOUT_SECONDS)
    except GoogleAPICallError as error:
        raise BlockedError(f"can't publish to the topic {topic}: {error}") from error


def publishable(attributes: Mapping[str, str]) -> dict[str, str]:
    """A received message's attributes without the service's own, as a topic's schema sets them: it refuses those."""
    return {name: value for name, value in attributes.items() if not name.startswith(RESERVED)}


class Again:
    """Publishes messages once more on their own topics, for the generation that owns their slots now.

    A copy has the identity of the message that was met, so that one that was applied after all is known there.
    """

    def __init__(self, client: Publisher, config: ShardConfig) -> None:
        self._client, self._config = client, config

    async def publish(self, deliveries: Sequence[Delivery]) -> None:
        """Raises BlockedError; then some may be published twice, which the inbox finds out."""
        by_topic: dict[str, list[Any]] = {}
        for delivery in deliveries:
            by_topic.setdefault(self._topic_of(delivery.slot), []).append(self._message(delivery))
        for topic, messages in by_topic.items():
            await publish(self._client, self._config.project, topic, messages)

    def _topic_of(self, slot: int) -> str:
        topics = self._config.topics
        return topics[slot * len(topics) >> self._config.slot_bits]

    def _message(self, delivery: Delivery) -> Any:
        own = {identity.COPY_OF: delivery.idempotency_key} if delivery.keyless else {}
        attributes = {**publishable(delivery.message.attributes), **own}
        if len(attributes) > MAX_ATTRIBUTES:
            # Refused for good, it would stop its slot: an attribute that routes nothing makes room.
            routing = set(self._config.attributes.model_dump().values())
            del attributes[max(attributes.keys() - routing - own.keys())]
        return PubsubMessage(
            data=delivery.message.data,
            attributes=attributes,
            ordering_key=digits_of(delivery.slot, self._config.slot_bits),
        )
