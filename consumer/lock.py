"""Slot locks in Redis. They keep two replicas from doing the same work; losing one costs time, never data.

Safety is the database transaction's (see `consumer.inbox`). So with Redis gone the consumer goes on without locks at once, and
takes them again when Redis answers.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from consumer.metrics import Metrics
from consumer.redisgate import RedisGate

# Delete a lock only while it is still ours: it may have expired and be another's by now.
RELEASE = """
for index, key in ipairs(KEYS) do
  if redis.call('get', key) == ARGV[1] then redis.call('del', key) end
end
"""


class SlotLocks:
    """Locks on slots for one replica. `take` and `release` never raise: without Redis every slot counts as locked."""

    def __init__(self, redis: Redis, gate: RedisGate, prefix: str, ttl_ms: int, metrics: Metrics) -> None:
        self._redis, self._gate, self._ttl_ms, self._metrics = redis, gate, ttl_ms, metrics
        self._prefix = f"{{{prefix}}}:lock:"  # braces: one hash slot of a Redis Cluster, so one script sees all keys
        self._token = secrets.token_hex(16)
        self._release = redis.register_script(RELEASE)
        self._unreleased: set[int] = set()  # ours still, as far as we know, because Redis didn't answer the release

    async def take(self, slots: Sequence[int]) -> frozenset[int]:
        """Lock `slots` in one round trip; the slots that this replica may work on now."""
        if not slots:
            return frozenset()
        answers = await self._gate.ask(lambda: self._set(slots))
        if answers is None:
            return frozenset(slots)
        held = frozenset(slot for slot, answer in zip(slots, answers, strict=True) if answer)
        if len(held) < len(slots):
            self._metrics.lock_contended.inc(len(slots) - len(held))
        return held

    async def release(self, slots: Sequence[int]) -> None:
        """Give up `slots`. A lock that can't be given up now is given up later, or expires by itself."""
        if slots and await self._gate.ask(lambda: self._delete(slots)) is None:
            self._unreleased.update(slots)

    async def _set(self, slots: Sequence[int]) -> list[Any]:
        await self._delete_unreleased()
        pipeline = self._redis.pipeline(transaction=False)
        for slot in slots:
            pipeline.execute_command("SET", f"{self._prefix}{slot}", self._token, "NX", "PX", self._ttl_ms)
        answers: list[Any] = await pipeline.execute()
        return answers

    async def _delete_unreleased(self) -> None:
        # Taken out first: another batch that did the same a moment later could delete a lock that was taken in between.
        slots, self._unreleased = self._unreleased, set()
        try:
            if slots:
                await self._delete(tuple(slots))
        except BaseException:
            self._unreleased |= slots
            raise

    async def _delete(self, slots: Sequence[int]) -> bool:
        await self._release(keys=[f"{self._prefix}{slot}" for slot in slots], args=[self._token])
        return True
