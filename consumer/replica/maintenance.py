"""What a shard's replicas do beside writing: report their presence, apply released keys, delete what no replay can reach, and
measure the inbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from redis.asyncio import Redis

from consumer.delivery import Delivery
from consumer.errors import TransientError
from consumer.observability.metrics import Metrics
from consumer.redis.breaker import RedisBreaker
from consumer.redis.script import Script
from consumer.replica.pace import Pace
from consumer.store.inboxsize import UNKNOWN, InboxSize
from consumer.store.parked import Key
from consumer.store.sweep import At, Retention, Swept
from consumer.store.term import NotLeaderError
from consumer.store.transaction import Released
from shardctl.shard.schema import TABLE_NOT_READY
from shardctl.supervision.trouble import Trouble

log = logging.getLogger(__name__)

Result = TypeVar("Result")

RELEASE_SECONDS = 1.0  # between two looks for a released key
RETRY_SECONDS = 2.0  # between two tries of the writes that wait for their type's table
PRESENCE_SECONDS = 3.0  # between two reports of this replica's presence
PURGE_SECONDS = (
    60.0  # between two looks whether it is time for the next walk through the inbox; the shortest time of one
)
MEASURE_SECONDS = 300.0  # between two looks at the inbox's size
WALKS_A_RETENTION = 20  # so a row stays 5 % longer than it must, or a little more
TURN_SECONDS = (
    300.0  # longer than a chunk and the rest after it; a replica that is killed stops the others' purges so long
)
LOG_REST_SECONDS = 0.1  # between two deletions from logs
# A replica that hasn't reported for so long is dead. What waits for readers counts only those of the last minute.
REPLICA_SECONDS = 86_400

# Take the turn to purge, or keep it; returns whether it is ours.
TURN = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


class NotEndedError(Exception):
    """A transaction of the maintenance was still under way when the process had to end. It commits or not: both are fine."""

    def __init__(self) -> None:
        super().__init__("maintenance was still waiting for the database: the database ends its transaction")


class ShardStore(Protocol):
    def released_keys(self) -> list[Key]: ...
    def not_ready_types(self) -> list[str]: ...
    def not_ready_keys(self, message_type: str) -> list[Key]: ...
    def release(self, key: Key, read: Callable[[Delivery], None]) -> Released | None: ...
    def purge(self, retention: Retention, at: At, pages: int) -> Swept: ...
    def measure(self, retention: Retention) -> InboxSize: ...
    def forget_replicas(self, silent_seconds: int) -> int: ...
    def end_outgrown_logs(self) -> int: ...
    def delete_ended_logs(self) -> bool: ...


class Maintenance:
    """One task at a time, in one thread and on one connection. A failure is reported and retried: it never stops the writing."""

    def __init__(
        self,
        shard: ShardStore,
        read: Callable[[Delivery], None],
        redis: Redis,
        gate: RedisBreaker,
        prefix: str,
        retention: Retention,
        threads: Executor,
        metrics: Metrics,
        report_presence: Callable[[], None] = lambda: None,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        self._shard, self._read, self._gate = shard, read, gate
        self._report_presence, self._may_write = report_presence, may_write
        self._threads, self._metrics = threads, metrics
        self._retention = retention
        self._turn, self._token = f"{{{prefix}}}:purge", secrets.token_hex(16)
        self._take_turn = Script(redis, TURN)
        self._walk_seconds = max(PURGE_SECONDS, retention.applied / WALKS_A_RETENTION)
        self._pace = Pace(self._walk_seconds)
        self._not_ready: dict[str, Trouble] = {}  # by message type, while writes wait for its table
        self._at: At = None  # where the walk through the inbox goes on
        self._next_walk = 0.0  # not before that time, on the monotonic clock
        self._stop = asyncio.Event()
        self._free = asyncio.Lock()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then it ends with the transaction under way."""
        self._stop = stop
        await asyncio.gather(
            self._repeat("presence", lambda: self._in_thread(self._report_presence), PRESENCE_SECONDS),
            self._repeat("release", self._if_it_may(self.release), RELEASE_SECONDS),
            self._repeat("retry", self._if_it_may(self.retry), RETRY_SECONDS),
            self._repeat("purge", self._if_it_may(self.purge), PURGE_SECONDS),
            self._repeat("measure", self.measure, MEASURE_SECONDS),
        )

    def _if_it_may(self, work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Where one replica leads, it alone writes."""

        async def maybe() -> None:
            if self._may_write():
                with contextlib.suppress(NotLeaderError):  # it stood down in this moment
                    await work()

        return maybe

    async def release(self) -> None:
        """Apply every released key, each in transactions of its own. A key that fails doesn't hold up the others."""
        keys = await self._in_thread(self._shard.released_keys)
        random.shuffle(keys)  # so that replicas don't wait for each other at the same ones
        trouble: TransientError | None = None
        for key in keys:
            try:
                await self._release_whole(key)
            except TransientError as error:
                if trouble:
                    raise  # so it isn't the key
                trouble = error
        if trouble:
            raise trouble

    async def retry(self) -> None:
        """Apply the writes that wait for their type's table: of each type up to the first key for which it still isn't ready.

        A key that fails otherwise holds up no others.
        """
        types = await self._in_thread(self._shard.not_ready_types)
        for message_type in self._not_ready.keys() - types:
            self._metrics.table_not_ready.labels(message_type).set(0)
            self._not_ready.pop(message_type).over("is ready", "released")
        blocked: TransientError | None = None
        for message_type in types:
            self._metrics.table_not_ready.labels(message_type).set(1)
            trouble = Trouble(f"the table of type {message_type!r}", log, "parked")
            try:
                await self._retry(message_type, self._not_ready.setdefault(message_type, trouble))
            except TransientError as error:
                blocked = error
        if blocked:
            raise blocked

    async def _retry(self, message_type: str, trouble: Trouble) -> None:
        while keys := await self._in_thread(lambda: self._shard.not_ready_keys(message_type)):
            blocked: TransientError | None = None
            for key in keys:
                try:
                    released = await self._release_whole(key)
                except TransientError as error:
                    if blocked:
                        raise  # so it isn't the key
                    blocked = error
                    continue
                if self._stop.is_set():
                    return
                if released and released.fault and released.fault.reason == TABLE_NOT_READY:
                    trouble.met(released.fault, "its writes are parked, in order, and tried again; other types go on")
                    return
            if blocked:
                raise blocked

    async def _release_whole(self, key: Key) -> Released | None:
        """Apply all messages of a key, up to one that fails again; None if there are no more."""
        while not self._stop.is_set():
            released = await self._release(key)
            if released is None or not released.more:
                return released
        return None

    async def _release(self, key: Key) -> Released | None:
        released = await self._in_thread(lambda: self._shard.release(key, self._read))
        if released is None:
            return None
        self._metrics.released.inc(released.applied)
        about = {"slot": key[0], "message_type": key[1], "partition_key": key[2]}
        if released.fault and released.fault.reason != TABLE_NOT_READY:
            log.warning(
                "released a parked key: %s writes applied, then one failed again and the key is parked: %s",
                released.applied,
                released.fault,
                extra={"action": "parked", **about},
            )
        elif released.applied:
            log.info(
                "released a parked key: %s writes applied", released.applied, extra={"action": "released", **about}
            )
        return released

    async def purge(self) -> None:
        """Delete dead replicas, ended logs and old inbox rows, if it is this replica's turn. Without Redis it is no replica's: a
        purge can wait.

        The turn only saves work: two replicas that purge at once skip each other's rows.
        """
        if not await self._have_turn(TURN_SECONDS):
            return
        await self._in_thread(lambda: self._shard.forget_replicas(REPLICA_SECONDS))
        await self._shorten_logs()
        began = time.monotonic()
        if began < self._next_walk:
            return
        self._pace.begin(began)
        while not self._stop.is_set():
            try:
                swept, seconds = await self._in_thread(self._purge_chunk)
            except TransientError:
                self._pace.failed(time.monotonic())
                raise
            self._at = swept.at
            self._metrics.purged.inc(swept.gone)
            if swept.over:
                self._pace.finished(seconds)
                self._next_walk = began + self._walk_seconds
                return
            await self._pause(self._pace.purged(seconds, time.monotonic()))
            if await self._have_turn(TURN_SECONDS) is False:
                return

    async def _shorten_logs(self) -> None:
        """Of changes since slots came here, for the way back of a rebalance that nobody has finished."""
        if ended := await self._in_thread(self._shard.end_outgrown_logs):
            text = "the logs of %s slots have outgrown their room and ended: going back to where they came from takes a copy"
            log.warning(text, ended, extra={"action": "logs_ended"})
        while not self._stop.is_set() and await self._in_thread(self._shard.delete_ended_logs):
            await self._pause(LOG_REST_SECONDS)

    def _purge_chunk(self) -> tuple[Swept, float]:
        """What a chunk did, and in how many seconds, without the wait for a thread."""
        began = time.monotonic()
        return self._shard.purge(self._retention, self._at, self._pace.pages), time.monotonic() - began

    async def measure(self) -> None:
        """Export the inbox's size while the turn to purge is this replica's: all replicas would find the same."""
        size = UNKNOWN
        try:
            if self._may_write() and await self._have_turn(TURN_SECONDS):
                size = await self._in_thread(lambda: self._shard.measure(self._retention))
        finally:
            self._metrics.inbox_rows.show(size.rows)
            self._metrics.inbox_bytes.show(size.bytes)
            self._metrics.inbox_overdue_seconds.show(size.overdue_seconds)

    async def _have_turn(self, seconds: float) -> bool | None:
        """Take the turn for so long, unless another has it; None where Redis doesn't answer."""
        mine = await self._gate.ask(
            lambda: self._take_turn(keys=[self._turn], args=[self._token, int(seconds * 1_000)])
        )
        return None if mine is None else bool(mine)

    async def _repeat(self, task: str, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        trouble = Trouble(task, log, "maintenance_failed")
        while not self._stop.is_set():
            await self._pause(random.uniform(0.5, 1.5) * seconds)
            try:
                if not self._stop.is_set():
                    await work()
            except Exception as error:  # noqa: BLE001 - reported, with its traceback where it is a bug
                self._metrics.maintenance_failures.labels(task).inc()
                trouble.met(error, "it is tried again", bug=not isinstance(error, TransientError))
            else:
                trouble.over()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        async with self._free:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
