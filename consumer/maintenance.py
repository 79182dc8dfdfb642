"""What a shard's replicas do beside writing: apply parked keys that were released, forget what no replay can reach."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from redis.asyncio import Redis

from consumer.errors import AgainError
from consumer.metrics import Metrics
from consumer.redisgate import RedisGate

log = logging.getLogger(__name__)

Result = TypeVar("Result")

RELEASE_SECONDS = 1.0  # between two looks for a released key
PURGE_SECONDS = 60.0  # between two purges of the whole shard
PURGE_ROWS = 1_000  # a transaction
REST = 19  # times as long as a purge's transaction took: it takes a twentieth of the database's time


class Shard(Protocol):
    def release_parked(self) -> int | None: ...
    def purge(self, older_than_seconds: int, rows: int) -> int: ...


class Maintenance:
    def __init__(
        self,
        shard: Shard,
        redis: Redis,
        gate: RedisGate,
        prefix: str,
        retention_seconds: int,
        threads: Executor,
        metrics: Metrics,
    ) -> None:
        self._shard, self._redis, self._gate, self._threads, self._metrics = shard, redis, gate, threads, metrics
        self._purge_turn = f"{{{prefix}}}:purge"
        self._retention_seconds = retention_seconds

    async def run(self) -> None:
        """Until cancelled. Trouble with the database is the batches' to tell; here it only means: later."""
        await asyncio.gather(
            self._repeat(self.release, RELEASE_SECONDS),
            self._repeat(self.purge, PURGE_SECONDS),
        )

    async def release(self) -> None:
        """Apply every released key, one a transaction."""
        while (done := await self._in_thread(self._shard.release_parked)) is not None:
            self._metrics.released.inc(done)
            log.info("released a parked key: %s writes applied", done, extra={"action": "released"})

    async def purge(self) -> None:
        """Forget old inbox rows in chunks, if it is this replica's turn. Without Redis nobody's turn comes: it can wait."""
        turn_ms = int(PURGE_SECONDS * 1000)
        if not await self._gate.ask(lambda: self._redis.set(self._purge_turn, "1", nx=True, px=turn_ms)):
            return
        while True:
            started = time.perf_counter()
            gone = await self._in_thread(lambda: self._shard.purge(self._retention_seconds, PURGE_ROWS))
            self._metrics.purged.inc(gone)
            if gone < PURGE_ROWS:
                return
            await asyncio.sleep(REST * (time.perf_counter() - started))

    async def _repeat(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.5) * seconds)
            try:
                await work()
            except AgainError as error:
                log.debug("%s: tried again later", error)

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
