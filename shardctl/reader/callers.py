"""Who makes the calls of a read over all shards, a bounded number at once: threads, or tasks of asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from sqlalchemy.util import await_only, greenlet_spawn

from shardctl.errors import ShardctlError
from shardctl.reader.gathering import Gathering

Calls = Mapping[str, Callable[[], Any]]  # by shard
Running = dict[str, "Future[Any]"] | dict[str, "asyncio.Task[Any]"]


class Callers(Protocol):
    def run(self, gathering: Gathering, calls: Calls, until: float) -> None:
        """Make the calls and report each to the gathering, by the time `until` of the monotonic clock."""


class _Late:
    """By shard, the calls that had no answer in time. While one hasn't ended, its shard isn't asked again: a dead host would
    otherwise take thread after thread, and connection after connection.
    """

    def __init__(self) -> None:
        self._calls: dict[str, Future[Any] | asyncio.Task[Any]] = {}

    def without(self, gathering: Gathering, calls: Calls) -> Calls:
        late = {shard for shard in calls if (call := self._calls.get(shard)) and not call.done()}
        for shard in late:
            gathering.failed(shard, "an earlier read still has no answer")
        return {shard: call for shard, call in calls.items() if shard not in late}

    def report(self, gathering: Gathering, running: Running) -> None:
        for shard, call in running.items():
            if not call.done() or call.cancelled():
                gathering.failed(shard, "no answer in time")
                self._calls[shard] = call
                call.cancel()
                continue
            self._calls.pop(shard, None)
            try:
                gathering.done(shard, call.result())
            except ShardctlError as error:
                gathering.failed(shard, str(error))


class Threads:
    def __init__(self, concurrency: int) -> None:
        self._concurrency, self._late = concurrency, _Late()

    def run(self, gathering: Gathering, calls: Calls, until: float) -> None:
        calls = self._late.without(gathering, calls)
        pool = ThreadPoolExecutor(min(self._concurrency, max(1, len(calls))), "shardctl-reader")
        futures = {shard: pool.submit(call) for shard, call in calls.items()}
        wait(futures.values(), max(0.0, until - time.monotonic()))
        pool.shutdown(wait=False, cancel_futures=True)
        self._late.report(gathering, futures)


class Tasks:
    """Runs in a greenlet of SQLAlchemy's, as the calls do, each in a task of its own."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency, self._late = concurrency, _Late()

    def run(self, gathering: Gathering, calls: Calls, until: float) -> None:
        calls = self._late.without(gathering, calls)
        self._late.report(gathering, await_only(self._tasks(calls, until)))

    async def _tasks(self, calls: Calls, until: float) -> dict[str, asyncio.Task[Any]]:
        turns = asyncio.Semaphore(self._concurrency)

        async def run(call: Callable[[], Any]) -> Any:
            async with turns:
                return await greenlet_spawn(call)

        tasks = {shard: asyncio.create_task(run(call)) for shard, call in calls.items()}
        try:
            if tasks:
                await asyncio.wait(tasks.values(), timeout=max(0.0, until - time.monotonic()))
        except asyncio.CancelledError:
            for task in tasks.values():
                task.cancel()
            raise
        return tasks
