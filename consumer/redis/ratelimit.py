"""A bound on a shard's writes a second, shared by its replicas.

The algorithm is GCRA (the generic cell rate algorithm, ITU-T I.371), which keeps one number: the moment at which everything taken
so far would have passed at the even rate. Redis keeps it for all replicas, by its own clock. With Redis gone each replica keeps
its own, at its share of the rate.

Batches pass in the order in which they ask, so none starves. A batch waits no longer than those before it need: at most a second
for each batch that all replicas have in flight, since no batch holds more than a second's writes (`consumer.replica.lifecycle`
sees to that).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from redis.asyncio import Redis

from consumer.redis.breaker import RedisBreaker
from consumer.redis.script import Script

# A negative number of writes gives back. Writes whose time is over can't be given back.
TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local paid = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now) + ARGV[1] * ARGV[2]
redis.call('SET', KEYS[1], string.format('%.6f', paid), 'PX', math.ceil(math.max(paid - now, 0) * 1000) + 1000)
return string.format('%.6f', paid - now - ARGV[3])
"""


class RateLimit:
    """`take` waits until so many writes may pass. More than the burst at once is allowed, and paid for by a longer wait."""

    def __init__(
        self,
        redis: Redis,
        gate: RedisBreaker,
        prefix: str,
        writes_per_second: float,
        replicas: int,
        clock: Callable[[], float],
        stop: asyncio.Event,
        burst_seconds: float = 1.0,
    ) -> None:
        self._gate, self._clock, self._stop, self._burst_seconds = gate, clock, stop, burst_seconds
        self._key = f"{{{prefix}}}:paid"
        self._seconds_a_write = 1 / writes_per_second
        self._replicas = replicas
        self._script = Script(redis, TAKE)
        self._paid = 0.0  # of this replica alone, while Redis is gone

    async def take(self, writes: int) -> bool:
        """Wait for the turn of so many writes. False if the process was asked to stop meanwhile: then they must not pass."""
        seconds = await self._pay(writes)
        if seconds <= 0:
            return True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
            await self._pay(-writes)
            return False
        return True

    async def give_back(self, writes: int) -> None:
        """Give back writes that were taken and not made."""
        await self._pay(-writes)

    async def _pay(self, writes: int) -> float:
        """Take; the seconds until they may pass."""
        wait = await self._gate.ask(
            lambda: self._script(keys=[self._key], args=[writes, self._seconds_a_write, self._burst_seconds])
        )
        return self._pay_alone(writes) if wait is None else float(wait)

    def _pay_alone(self, writes: int) -> float:
        now = self._clock()
        self._paid = max(self._paid, now) + writes * self._seconds_a_write * self._replicas
        return self._paid - now - self._burst_seconds
