"""Which messages a process was handling alone when it died: a note in Redis, made before and deleted after.

Only an abrupt end leaves the note: a kill, a crash of a native library, the kernel's OOM killer. Without Redis there are
no notes, and the subscription's own dead-letter policy is what ends a crash loop.
"""

from __future__ import annotations

from redis.asyncio import Redis

from consumer.redis.breaker import RedisBreaker

NOTE_SECONDS = 24 * 3600  # far longer than any back-off between two deliveries


class Suspects:
    """Shared by a shard's replicas. Never raises."""

    def __init__(self, redis: Redis, gate: RedisBreaker, prefix: str) -> None:
        self._redis, self._gate, self._prefix = redis, gate, f"{{{prefix}}}:suspect:"

    async def deaths(self, message_id: str) -> int:
        """How often a process died while it had this message alone; 0 if Redis doesn't answer, too."""
        deaths = await self._gate.ask(lambda: self._redis.get(self._prefix + message_id))
        return int(deaths or 0)

    async def begin(self, message_id: str) -> None:
        key = self._prefix + message_id
        await self._gate.ask(lambda: self._begin(key))

    async def survived(self, message_id: str) -> None:
        """The message is settled, with any result, and the process lives."""
        await self._gate.ask(lambda: self._redis.delete(self._prefix + message_id))

    async def _begin(self, key: str) -> None:
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.incr(key)
        pipeline.expire(key, NOTE_SECONDS)
        await pipeline.execute()
