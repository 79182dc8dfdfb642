"""The reader for asyncio, over SQLAlchemy's async engines.

orders = AsyncReader(load_fleet(Path("shards.yaml")), {"s0": create_async_engine(...), "s1": create_async_engine(...)})
order = await orders.get(Order, "o-1001")
async with orders.session("o-1001") as session:
lines = (await session.scalars(select(Line).where(Line.order_id == "o-1001"))).all()
newest = (await orders.scatter(select(Order), order_by=[Order.placed.desc()], limit=20)).scalars()

It is `Reader` itself, run as SQLAlchemy runs its own code under asyncio: in a greenlet, where a call of the driver gives way to
the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn

from shardctl.fleet.spec import Fleet
from shardctl.reader.answer import Rows
from shardctl.reader.callers import Tasks
from shardctl.reader.places import PATIENCE
from shardctl.reader.reader import CONCURRENCY, TIMEOUT, Reader
from shardctl.reader.routes import Key
from shardctl.reader.view import ReadSession, View


class AsyncReader:
    """Reads from the tasks of one event loop. All that `Reader` promises holds here, for the same arguments."""

    def __init__(
        self,
        fleet: Fleet,
        databases: Mapping[str, AsyncEngine],
        *,
        replicas: Mapping[str, Sequence[AsyncEngine]] | None = None,
        patience: timedelta = PATIENCE,
        concurrency: int = CONCURRENCY,
    ) -> None:
        self._engines = {engine.sync_engine: engine for engine in databases.values()}
        self._engines |= {engine.sync_engine: engine for engines in (replicas or {}).values() for engine in engines}
        self._reader = Reader(
            fleet,
            {shard: engine.sync_engine for shard, engine in databases.items()},
            replicas={shard: [engine.sync_engine for engine in engines] for shard, engines in (replicas or {}).items()},
            patience=patience,
            sleep=lambda seconds: await_only(asyncio.sleep(seconds)),
            callers=Tasks(concurrency),
        )

    @asynccontextmanager
    async def session(
        self,
        key: Key,
        *,
        type: str | None = None,  # noqa: A002 - as the file calls it
        at: datetime | None = None,
        max_staleness: timedelta | None = None,
    ) -> AsyncIterator[AsyncSession]:
        """As `Reader.session`."""
        view: View = await greenlet_spawn(self._reader.places.open, key, type, at, max_staleness)
        connection = AsyncConnection(self._engines[view.engine], view.connection)
        session = AsyncSession(connection, sync_session_class=ReadSession, autoflush=False)
        try:
            yield session
        finally:
            # A caller that is cancelled meanwhile must not leave a connection that is neither closed nor in its pool.
            await asyncio.shield(asyncio.create_task(greenlet_spawn(_close, session.sync_session, view)))

    async def get(
        self,
        entity: Any,
        identity: Any,
        *,
        key: Key | None = None,
        type: str | None = None,  # noqa: A002 - as the file calls it
        at: datetime | None = None,
        max_staleness: timedelta | None = None,
    ) -> Any:
        """As `Reader.get`."""
        return await greenlet_spawn(
            self._reader.get, entity, identity, key=key, type=type, at=at, max_staleness=max_staleness
        )

    async def scatter(
        self,
        statement: Select[Any],
        *,
        order_by: Sequence[Any] = (),
        limit: int | None = None,
        type: str | None = None,  # noqa: A002 - as the file calls it
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109 - a slot that isn't read by then is reported, with the rows of the others
        max_staleness: timedelta | None = None,
        partial: bool = False,
    ) -> Rows[Any]:
        """As `Reader.scatter`. A cancelled read cancels its calls."""
        return await greenlet_spawn(
            self._reader.scatter,
            statement,
            order_by=order_by,
            limit=limit,
            type=type,
            timeout=timeout,
            max_staleness=max_staleness,
            partial=partial,
        )


def _close(session: Session, view: View) -> None:
    try:
        session.close()
    finally:
        view.close()
