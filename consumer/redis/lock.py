"""Slot locks in Redis, one a lane. They keep two replicas from doing the same work; losing one costs time, never data.

Safety is the database transaction's (see `consumer.store.inbox`). So with Redis gone the consumer goes on without locks at once,
and takes them again when Redis answers.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from redis.asyncio import Redis

from consumer.observability.metrics import Metrics
from consumer.redis.breaker import RedisBreaker, calls_of
from consumer.redis.script import Script
from shardctl.fleet.keyspace import generation_of_lane, slot_of_lane

# SET NX for each key; returns the numbers, from 1, of those that another holds. One script instead of a command for each key.
TAKE = """
local refused = {}
for index, key in ipairs(KEYS) do
  if not redis.call('set', key, ARGV[1], 'nx', 'px', ARGV[2]) then refused[#refused + 1] = index end
end
return refused
"""

# Delete a lock only while it is ours: it may have expired, and another may hold it now.
RELEASE = """
for index, key in ipairs(KEYS) do
  if redis.call('get', key) == ARGV[1] then redis.call('del', key) end
end
"""


class SlotLocks:
    """Locks on lanes for one replica. `take` and `release` never raise: without Redis every lane counts as locked."""

    def __init__(self, redis: Redis, gate: RedisBreaker, prefix: str, ttl_ms: int, metrics: Metrics) -> None:
        self._gate, self._ttl_ms, self._metrics = gate, ttl_ms, metrics
        self._prefix = f"{{{prefix}}}:lock:"  # braces: one hash slot of a Redis Cluster, so one script sees all keys
        self._token = secrets.token_hex(16)
        self._take, self._release = Script(redis, TAKE), Script(redis, RELEASE)
        self._unreleased: set[int] = set()  # ours still, as far as we know, because Redis didn't answer the release

    async def take(self, lanes: Sequence[int]) -> frozenset[int]:
        """Lock `lanes`, a thousand in each round trip; returns the lanes that this replica may work on now."""
        if not lanes:
            return frozenset()
        refused = await self._gate.ask(lambda: self._set(lanes))
        if not refused:
            return frozenset(lanes)
        self._metrics.lock_contended.inc(len(refused))
        return frozenset(lanes).difference(refused)

    async def release(self, lanes: Sequence[int]) -> None:
        """Release `lanes`. A lock that can't be released now is released later, or expires by itself."""
        if lanes and await self._gate.ask(lambda: self._delete(lanes)) is None:
            self._unreleased.update(lanes)

    async def _set(self, lanes: Sequence[int]) -> list[int]:
        """The lanes that are locked already."""
        if self._unreleased:
            await self._delete_unreleased()
        refused: list[int] = []
        for part in calls_of(lanes):
            numbers = await self._take(keys=[self._key(lane) for lane in part], args=[self._token, self._ttl_ms])
            refused += (part[number - 1] for number in numbers)
        return refused

    async def _delete_unreleased(self) -> None:
        # Removed from the set first: another batch that did the same a moment later could delete a lock that was taken in
        # between.
        lanes, self._unreleased = self._unreleased, set()
        try:
            for part in calls_of(tuple(lanes)):
                await self._delete_at_once(part)
                lanes.difference_update(part)
        except BaseException:
            self._unreleased |= lanes
            raise

    def _key(self, lane: int) -> str:
        return f"{self._prefix}g{generation_of_lane(lane)}:{slot_of_lane(lane)}"

    async def _delete(self, lanes: Sequence[int]) -> bool:
        for part in calls_of(lanes):
            await self._delete_at_once(part)
        return True

    async def _delete_at_once(self, lanes: Sequence[int]) -> None:
        await self._release(keys=[self._key(lane) for lane in lanes], args=[self._token])
