"""Reads for an application: by key, from the database that owns the key's slot, and over all shards.

reads = Reader(load_fleet(Path("shards.yaml")), {"s0": create_engine(...), "s1": create_engine(...)})
order = reads.get(Order, "o-1001")
with reads.session("o-1001") as session:
lines = session.scalars(select(Line).where(Line.order_id == "o-1001")).all()
newest = reads.scatter(select(Order), order_by=[Order.placed.desc()], limit=20).scalars()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Select
from sqlalchemy.orm import Session

from shardctl.fleet.spec import Fleet
from shardctl.reader.answer import Rows
from shardctl.reader.callers import Callers, Threads
from shardctl.reader.order import Order
from shardctl.reader.places import PATIENCE, Places
from shardctl.reader.routes import Key

CONCURRENCY = 8
TIMEOUT = timedelta(seconds=30)


class Reader:
    """Reads from any thread. `databases`: an engine of the application's for each shard, to its primary.

    A session is a read-only snapshot in which the key's slot is active: it sees all that was committed for the slot when it was
    opened, and nothing that commits later. It is a promise for rows of that slot alone; other slots' rows in the same database
    may be left over from a move.

    While a slot changes hands, a read of it waits for up to `patience`. `replicas` serve reads that pass `max_staleness`.
    """

    def __init__(
        self,
        fleet: Fleet,
        databases: Mapping[str, Engine],
        *,
        replicas: Mapping[str, Sequence[Engine]] | None = None,
        patience: timedelta = PATIENCE,
        concurrency: int = CONCURRENCY,
        sleep: Callable[[float], None] = time.sleep,
        callers: Callers | None = None,
    ) -> None:
        self.places = Places(fleet, databases, replicas or {}, patience, sleep)
        self._sleep, self._patience_seconds = sleep, patience.total_seconds()
        self._callers = callers or Threads(concurrency)

    @contextmanager
    def session(
        self,
        key: Key,
        *,
        type: str | None = None,  # noqa: A002 - as the file calls it
        at: datetime | None = None,
        max_staleness: timedelta | None = None,
    ) -> Iterator[Session]:
        """A session in the database that owns the key's slot. `type` is needed where types lie in different shards, or by time.

        Raises UsageError, DatabaseError, SlotMovingError and SlotUnknownError.
        """
        view = self.places.open(key, type, at, max_staleness)
        try:
            with view.session() as session:
                yield session
        finally:
            view.close()

    def get(
        self,
        entity: Any,
        identity: Any,
        *,
        key: Key | None = None,
        type: str | None = None,  # noqa: A002 - as the file calls it
        at: datetime | None = None,
        max_staleness: timedelta | None = None,
    ) -> Any:
        """The object of a mapped class, detached, or the row of a Table, by its primary key; None where there is none.

        `identity` is a value, or one for each column of the primary key. `key` is the routing key, where it isn't among them.
        """
        row = self.places.one(entity, identity, key, type)
        with self.session(row.key, type=row.type, at=at, max_staleness=max_staleness) as session:
            return row.read(session)

    def scatter(
        self,
        statement: Select[Any],
        *,
        order_by: Sequence[Any] = (),
        limit: int | None = None,
        type: str | None = None,  # noqa: A002 - as the file calls it
        timeout: timedelta = TIMEOUT,
        max_staleness: timedelta | None = None,
        partial: bool = False,
    ) -> Rows[Any]:
        """The statement's rows of all shards, each slot once; so the sum of each shard's `count(*)` is the fleet's.

        Raises UsageError, ReadError, and PartialReadError where a slot wasn't read within `timeout`, unless `partial`.
        """
        began = time.monotonic()
        until = began + timeout.total_seconds()
        gathering = self.places.gathering(statement, Order(order_by, limit), type, max_staleness)
        while (left := until - time.monotonic()) > 0 and (calls := gathering.calls(left)):
            self._callers.run(gathering, calls, until)
            if time.monotonic() >= began + self._patience_seconds:
                break
            self._sleep(gathering.pause_seconds)
        return gathering.result(take_partial=partial)
