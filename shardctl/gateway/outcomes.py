"""Requests that wait for a write: how many, for how long, and by which sessions of the shards' databases."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from shardctl.errors import UsageError
from shardctl.fleet.settings.gateway import Outcomes as Settings
from shardctl.fleet.spec import Fleet
from shardctl.gateway.metrics import Metrics
from shardctl.outcomes.effect import TOO_MANY_WAIT, Effect, Sought
from shardctl.outcomes.watch import LOOK_SECONDS, Watch
from shardctl.shard import database
from shardctl.shard.engine import Limits
from shardctl.shard.membership import Membership

# A look is two small statements by primary keys.
LIMITS = Limits(
    "shardctl-gateway",
    statement=timedelta(seconds=5),
    lock=timedelta(seconds=5),
    idle=timedelta(seconds=30),
    answer=timedelta(seconds=10),
)


class Outcomes:
    def __init__(
        self, fleet: Fleet, settings: Settings, urls: Mapping[str, str], metrics: Metrics, stopping: asyncio.Event
    ) -> None:
        """`urls`: of each shard's database. Raises UsageError where one can't be used; connects when first asked."""
        self._engines = {shard: _engine(Membership(fleet.fleet, shard), url) for shard, url in urls.items()}
        self._watch = Watch(fleet, self._engines)
        self._settings, self._metrics, self._stopping = settings, metrics, stopping
        self._waiting = 0
        self._stop: asyncio.Task[Any] | None = None

    def bounded(self, seconds: int) -> int:
        """How long a client that would wait for so long may wait."""
        return min(seconds, int(self._settings.max_wait.total_seconds()))

    async def effect(self, write: Sought, seconds: int) -> Effect:
        """Wait for so long until the write is settled; for 0, look once. When the gateway stops, what is known by then."""
        if self._waiting >= self._settings.max_waiting:
            return TOO_MANY_WAIT
        if self._stop is None:
            self._stop = asyncio.create_task(self._stopping.wait())
        self._waiting += 1
        waiter = self._watch.begin(write, patient=seconds > 0)
        future = asyncio.wrap_future(waiter.future)
        try:
            await asyncio.wait(
                (future, self._stop), timeout=seconds or LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            effect = future.result() if future.done() else waiter.leave()
        finally:
            self._waiting -= 1
            future.cancel()
        self._metrics.outcome(effect.state)
        return effect

    def close(self) -> None:
        for engine in self._engines.values():
            engine.dispose()


def _engine(whose: Membership, url: str) -> Engine:
    try:
        return database.connect(url, LIMITS, connections=1, whose=whose)
    except database.DatabaseError as error:
        raise UsageError(f"shard {whose.shard}: {error}") from error
