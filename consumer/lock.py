"""Slot locks in Redis. They keep two replicas from doing the same work; losing one costs time, never data.

Safety is the database transaction's (see `consumer.inbox`). So with Redis gone the consumer goes on without locks at once, and
takes them again when Redis answers.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from consumer.metrics import Metrics

log = logging.getLogger(__name__)

# Delete a lock only while it is still ours: it may have expired and be another's by now.
RELEASE = """
for index, key in ipairs(KEYS) do
  if redis.call('get', key) == ARGV[1] then redis.call('del', key) end
end
"""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 10.0


class SlotLocks:
    """Locks on slots for one replica. `take` and `release` never raise: without Redis every slot counts as locked."""

    def __init__(self, redis: Redis, prefix: str, ttl_ms: int, clock: Callable[[], float], metrics: Metrics) -> None:
        self._redis, self._ttl_ms, self._clock, self._metrics = redis, ttl_ms, clock, metrics
        self._prefix = (
            f"{{{prefix}}}:lock:"  # braces: one hash slot of a Redis Cluster, so that one script sees all keys
        )
        self._token = secrets.token_hex(16)
        self._release = redis.register_script(RELEASE)
        self._unreleased: set[int] = set()  # ours still, as far as we know, because Redis didn't answer the release
        self._degraded_until: float | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS

    @property
    def degraded(self) -> bool:
        """True while the consumer works without locks."""
        return self._degraded_until is not None

    async def take(self, slots: Sequence[int]) -> frozenset[int]:
        """Lock `slots` in one round trip; the slots that this replica may work on now."""
        if not slots:
            return frozenset()
        if self._degraded_until is not None and self._clock() < self._degraded_until:
            return frozenset(slots)
        try:
            await self._give_up_unreleased()
            pipeline = self._redis.pipeline(transaction=False)
            for slot in slots:
                pipeline.execute_command("SET", f"{self._prefix}{slot}", self._token, "NX", "PX", self._ttl_ms)
            answers: list[Any] = await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._degrade(error)
            return frozenset(slots)
        self._recover()
        held = frozenset(slot for slot, answer in zip(slots, answers, strict=True) if answer)
        if len(held) < len(slots):
            self._metrics.lock_contended.inc(len(slots) - len(held))
        return held

    async def release(self, slots: Sequence[int]) -> None:
        """Give up `slots`. A lock that can't be given up expires by itself."""
        if not slots:
            return
        if self.degraded:
            self._unreleased.update(slots)
            return
        try:
            await self._give_up(slots)
        except (RedisError, OSError, TimeoutError) as error:
            self._unreleased.update(slots)
            self._degrade(error)

    async def _give_up_unreleased(self) -> None:
        # Taken out first: another batch that did the same a moment later could delete a lock that was taken in between.
        slots, self._unreleased = self._unreleased, set()
        try:
            if slots:
                await self._give_up(tuple(slots))
        except BaseException:
            self._unreleased |= slots
            raise

    async def _give_up(self, slots: Sequence[int]) -> None:
        await self._release(keys=[f"{self._prefix}{slot}" for slot in slots], args=[self._token])

    def _degrade(self, error: Exception) -> None:
        if not self.degraded:
            log.warning(
                "Redis is out of reach (%s): going on without slot locks, safe by the inbox; "
                "replicas may repeat each other's work",
                error,
                extra={"action": "locks_degraded"},
            )
            self._metrics.redis_degraded.set(1)
        self._degraded_until = self._clock() + self._retry_seconds * random.uniform(0.5, 1.0)
        self._retry_seconds = min(self._retry_seconds * 2, LAST_RETRY_SECONDS)

    def _recover(self) -> None:
        if self.degraded:
            log.info("Redis answers again: taking slot locks", extra={"action": "locks_recovered"})
            self._metrics.redis_degraded.set(0)
        self._degraded_until = None
        self._retry_seconds = FIRST_RETRY_SECONDS
