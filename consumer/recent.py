"""Which redelivered messages are probably done: markers in Redis, set after the commit.

A cheap filter in front of the database, never the safety: a message that the markers know is confirmed by a read of the inbox
before it is acked. What is gained is that a redelivery takes no lock and no write transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from redis.asyncio import Redis

from consumer.delivery import Delivery
from consumer.redisgate import RedisGate

BUCKET_SECONDS = 300  # a marker lives for one to two buckets: as long as most redeliveries take


class RecentlyDone:
    def __init__(self, redis: Redis, gate: RedisGate, prefix: str, clock: Callable[[], float]) -> None:
        self._redis, self._gate, self._clock = redis, gate, clock
        self._prefix = f"{{{prefix}}}:done:"

    async def mark(self, deliveries: Sequence[Delivery]) -> None:
        """Remember messages whose effect is committed. Nothing is lost when that fails."""
        if not deliveries:
            return
        bucket = self._bucket(0)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.sadd(bucket, *(_marker(delivery) for delivery in deliveries))
        pipeline.expire(bucket, 2 * BUCKET_SECONDS)
        await self._gate.ask(pipeline.execute)

    async def probably_done(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Of redelivered messages, those that were marked."""
        again = [delivery for delivery in deliveries if delivery.attempt > 1 and delivery.fault is None]
        if not again:
            return []
        markers = [_marker(delivery) for delivery in again]
        pipeline = self._redis.pipeline(transaction=False)
        for age in (0, 1):
            pipeline.smismember(self._bucket(age), markers)
        answers = await self._gate.ask(pipeline.execute)
        if answers is None:
            return []
        return [delivery for delivery, *found in zip(again, *answers, strict=True) if any(found)]

    def _bucket(self, age: int) -> str:
        return f"{self._prefix}{int(self._clock() // BUCKET_SECONDS) - age}"


def _marker(delivery: Delivery) -> str:
    return f"{delivery.slot}:{delivery.idempotency_key}"
