"""The fleet's topics as a consumer's relay publishes into them, what its shard's sinks have emitted."""

from __future__ import annotations

from collections.abc import Sequence

from google.api_core.exceptions import GoogleAPICallError, InvalidArgument, OutOfRange

from consumer.pubsub.calls import Publisher
from consumer.pubsub.protos import PubsubMessage
from shardctl.fleet.keyspace import digits_of
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.outbox.row import Row
from shardctl.outbox.sending import NotTakenError, RefusedError


class EventTopics:
    def __init__(self, client: Publisher, config: ShardConfig) -> None:
        self._client, self._config = client, config

    async def publish(self, slot: int, rows: Sequence[Row], timeout_seconds: float) -> None:
        bits, topics = self._config.slot_bits, self._config.topics
        if slot not in range(1 << bits):  # nor is it a number, where SQLite has kept something else
            raise RefusedError(f"the fleet has no slot {slot!r}")
        topic = f"projects/{self._config.project}/topics/{topics[slot * len(topics) >> bits]}"
        key = digits_of(slot, bits)
        messages = [PubsubMessage(data=row.body, attributes=row.attributes, ordering_key=key) for row in rows]
        try:
            await self._client.publish(topic, messages, timeout_seconds)
        except (InvalidArgument, OutOfRange) as error:
            raise RefusedError(f"Pub/Sub refuses it: {error.message}") from error
        except GoogleAPICallError as error:
            raise NotTakenError(f"can't publish to the topic {topic}: {error}") from error
