"""A bound on a shard's writes a second, shared by its replicas.

The algorithm is GCRA (the generic cell rate algorithm, ITU-T I.371), which keeps one number: the moment at which everything taken
so far would have passed at the even rate. Redis keeps it for all replicas, by its own clock. With Redis gone each replica keeps
its own, at its share of the rate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from redis.asyncio import Redis

from consumer.redisgate import RedisGate

TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local paid = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now) + ARGV[1] * ARGV[2]
redis.call('SET', KEYS[1], string.format('%.6f', paid), 'PX', math.ceil((paid - now + 1) * 1000))
return tostring(paid - now - ARGV[3])
"""


class RateLimit:
    """`take` waits until so many writes may pass. More than the burst at once is allowed, and paid for by a longer wait."""

    def __init__(
        self,
        redis: Redis,
        gate: RedisGate,
        prefix: str,
        writes_per_second: float,
        replicas: int,
        clock: Callable[[], float],
        burst_seconds: float = 1.0,
    ) -> None:
        self._gate, self._clock, self._burst_seconds = gate, clock, burst_seconds
        self._key = f"{{{prefix}}}:paid"
        self._seconds_a_write = 1 / writes_per_second
        self._replicas = replicas
        self._script = redis.register_script(TAKE)
        self._paid = 0.0  # of this replica alone, while Redis is gone

    async def take(self, writes: int) -> None:
        wait = await self._gate.ask(
            lambda: self._script(keys=[self._key], args=[writes, self._seconds_a_write, self._burst_seconds])
        )
        seconds = self._take_alone(writes) if wait is None else float(wait)
        if seconds > 0:
            await asyncio.sleep(seconds)

    def _take_alone(self, writes: int) -> float:
        now = self._clock()
        self._paid = max(self._paid, now) + writes * self._seconds_a_write * self._replicas
        return self._paid - now - self._burst_seconds
