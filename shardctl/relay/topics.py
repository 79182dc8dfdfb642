"""The fleet's topics as a relay publishes into them: the gateway's way, by which a message costs a few microseconds."""

from __future__ import annotations

from collections.abc import Sequence

from shardctl.fleet.keyspace import digits_of
from shardctl.fleet.spec import Fleet
from shardctl.gateway import pubsub, wire
from shardctl.outbox.row import Row
from shardctl.outbox.sending import NotTakenError, RefusedError


class FleetTopics:
    """Raises UsageError where there are no credentials. To be made in the event loop."""

    def __init__(self, fleet: Fleet, endpoint: str | None) -> None:
        self._slot_bits = fleet.routing.slot_bits
        self._topics = pubsub.connect(fleet, endpoint)

    async def publish(self, slot: int, rows: Sequence[Row], timeout_seconds: float) -> None:
        if slot not in range(1 << self._slot_bits):  # nor is it a number, where SQLite has kept something else
            raise RefusedError(
                f"the fleet has no slot {slot!r}: the write was stored with another `routing.slot_bits` than shards.yaml has"
            )
        key = wire.ordering_key(digits_of(slot, self._slot_bits))
        messages = b"".join([wire.message(key + wire.attributes(row.attributes), row.body) for row in rows])
        try:
            await self._topics.publish(slot, messages, timeout_seconds)
        except pubsub.PublishRefusedError as error:
            raise RefusedError(str(error)) from None
        except pubsub.NotTakenError as error:
            raise NotTakenError(str(error)) from None

    async def close(self) -> None:
        await self._topics.close()
