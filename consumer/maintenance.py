"""What a shard's replicas do beside writing: say that they are there, apply released keys, forget what no replay can reach."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from datetime import timedelta
from typing import Protocol, TypeVar

from redis.asyncio import Redis

from consumer.delivery import Delivery
from consumer.errors import AgainError
from consumer.leader.term import NotLeaderError
from consumer.metrics import Metrics
from consumer.parked import Key
from consumer.redisgate import RedisGate
from consumer.store import Released
from shardctl.trouble import Trouble

log = logging.getLogger(__name__)

Result = TypeVar("Result")

RELEASE_SECONDS = 1.0  # between two looks for a released key
PRESENCE_SECONDS = 3.0  # between two words that this replica is here
PURGE_SECONDS = 60.0  # between two purges of the whole shard
PURGE_ROWS = 1_000  # a transaction
# A purge rests so many times as long as its last transaction took: it takes a fortieth of a connection's time. Where that isn't
# enough to end within PURGE_SECONDS it rests half as long, and so on: in the end as much must go as comes.
LONGEST_REST, SHORTEST_REST = 39.0, 1.0

# Stay the one replica that purges.
RENEW_TURN = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"


class NotEndedError(Exception):
    """A transaction of the maintenance was still under way when the process had to end. It commits or not: both are fine."""

    def __init__(self) -> None:
        super().__init__("maintenance was still waiting for the database: the database ends its transaction")


class Shard(Protocol):
    def released_keys(self) -> list[Key]: ...
    def release(self, key: Key, read: Callable[[Delivery], None]) -> Released | None: ...
    def purge(self, older_than_seconds: int, rows: int) -> int: ...


class Maintenance:
    """One thing at a time, in one thread and on one connection. Trouble is told and outlasted: it never stops the writing."""

    def __init__(
        self,
        shard: Shard,
        read: Callable[[Delivery], None],
        redis: Redis,
        gate: RedisGate,
        prefix: str,
        retention: timedelta,
        threads: Executor,
        metrics: Metrics,
        tell_presence: Callable[[], None] = lambda: None,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        self._shard, self._read, self._redis, self._gate = shard, read, redis, gate
        self._tell_presence, self._may_write = tell_presence, may_write
        self._threads, self._metrics = threads, metrics
        self._retention_seconds = int(retention.total_seconds())
        self._turn, self._token = f"{{{prefix}}}:purge", secrets.token_hex(16)
        self._turn_ms = int(PURGE_SECONDS * 1000)
        self._renew = redis.register_script(RENEW_TURN)
        self._stop = asyncio.Event()
        self._free = asyncio.Lock()
        self._rest = LONGEST_REST

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then it ends with the transaction under way."""
        self._stop = stop
        await asyncio.gather(
            self._repeat("presence", lambda: self._in_thread(self._tell_presence), PRESENCE_SECONDS),
            self._repeat("release", self._if_it_may(self.release), RELEASE_SECONDS),
            self._repeat("purge", self._if_it_may(self.purge), PURGE_SECONDS),
        )

    def _if_it_may(self, work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Where one replica leads, it alone writes."""

        async def maybe() -> None:
            if self._may_write():
                with contextlib.suppress(NotLeaderError):  # it stood down in this moment
                    await work()

        return maybe

    async def release(self) -> None:
        """Apply every released key, each in transactions of its own. A key in trouble doesn't hold the others up."""
        keys = await self._in_thread(self._shard.released_keys)
        random.shuffle(keys)  # so that replicas don't wait for each other at the same ones
        trouble: AgainError | None = None
        for key in keys:
            try:
                while not self._stop.is_set() and await self._release(key):
                    pass
            except AgainError as error:
                if trouble:
                    raise  # it isn't the key, then
                trouble = error
        if trouble:
            raise trouble

    async def _release(self, key: Key) -> bool:
        """True when there is more of it to apply."""
        released = await self._in_thread(lambda: self._shard.release(key, self._read))
        if released is None:
            return False
        self._metrics.released.inc(released.applied)
        about = {"slot": key[0], "partition_key": key[1]}
        if released.fault:
            log.warning(
                "released a parked key: %s writes applied, then one failed again and the key is parked: %s",
                released.applied,
                released.fault,
                extra={"action": "parked", **about},
            )
        else:
            log.info(
                "released a parked key: %s writes applied", released.applied, extra={"action": "released", **about}
            )
        return released.more

    async def purge(self) -> None:
        """Forget old inbox rows in chunks, if it is this replica's turn. Without Redis nobody's turn comes: it can wait."""
        if not await self._gate.ask(lambda: self._redis.set(self._turn, self._token, nx=True, px=self._turn_ms)):
            return
        began = time.monotonic()
        while not self._stop.is_set():
            started = time.perf_counter()
            gone = await self._in_thread(lambda: self._shard.purge(self._retention_seconds, PURGE_ROWS))
            took = time.perf_counter() - started
            self._metrics.purged.inc(gone)
            if gone < PURGE_ROWS:
                self._rest = LONGEST_REST
                return
            if time.monotonic() - began > PURGE_SECONDS:
                began, self._rest = time.monotonic(), max(SHORTEST_REST, self._rest / 2)
            await self._pause(self._rest * took)
            if not await self._gate.ask(lambda: self._renew(keys=[self._turn], args=[self._token, self._turn_ms])):
                return

    async def _repeat(self, task: str, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        trouble = Trouble(task, log, "maintenance_failed")
        while not self._stop.is_set():
            await self._pause(random.uniform(0.5, 1.5) * seconds)
            try:
                if not self._stop.is_set():
                    await work()
            except Exception as error:  # noqa: BLE001 - reported, with its traceback where it is a bug
                self._metrics.maintenance_failures.labels(task).inc()
                trouble.met(error, "it is tried again", bug=not isinstance(error, AgainError))
            else:
                trouble.over()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        async with self._free:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
