"""The real `consumer.store.Store` on an SQLite database in memory: each transaction happens at one instant of virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sqlalchemy import Engine, make_url, select, text

from consumer.database import sessions
from consumer.database.dialects import SQLite
from consumer.delivery import Delivery
from consumer.errors import TransientError
from consumer.sinks.sql import SqlSink
from consumer.store.fence import Fence
from consumer.store.transaction import Outcome, Store
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.shard import schema
from shardctl.shard.schema import LaneState
from tests.sim.database import Identity, Watcher, identity_of
from tests.sim.loop import Process, SimLoop
from tests.sim.network import Answer, Network

TABLE = (
    "CREATE TABLE entries (id TEXT PRIMARY KEY, owner TEXT, number INTEGER CHECK (number >= 0), slot INTEGER NOT NULL)"
)


class SqlDatabase:
    """What the world and the oracle ask of a database, answered from real tables."""

    def __init__(
        self, loop: SimLoop, watcher: Watcher, seed: int, config: ShardConfig, arriving: frozenset[int]
    ) -> None:
        self._loop, self._watcher, self._config = loop, watcher, config
        self._draw = random.Random(f"{seed} database").random
        self.arriving = set(arriving)
        self.fail_commit = 0.0
        self._seen = 0  # the last row of `entries` that was reported
        self._dead: set[Identity] = set()
        self.engine: Engine = sessions.engine_of(make_url("sqlite://"), config.consumer)
        with self.engine.begin() as connection:
            connection.exec_driver_sql(TABLE)
        generation = config.generations[0]
        schema.create(self.engine, config.message_types, generation.slots, generation.number)
        self._mark(self.arriving, LaneState.DUE)

    def recorded(self, identity: Identity) -> str | None:
        slot, name = identity
        query = select(schema.inbox.c.outcome).where(schema.inbox.c.slot == slot, schema.inbox.c.identity == name)
        with self.engine.connect() as connection:
            return connection.scalar(query)

    @property
    def log(self) -> dict[str, list[int]]:
        """By routing key, in the order in which the rows were inserted."""
        numbers: dict[str, list[int]] = {}
        with self.engine.connect() as connection:
            for row_id, number in connection.execute(text("SELECT id, number FROM entries ORDER BY rowid")):
                numbers.setdefault(row_id.partition("-")[0], []).append(number)
        return numbers

    def activate(self) -> None:
        self._mark(self.arriving, LaneState.ACTIVE)
        self.arriving.clear()

    def _mark(self, slots: set[int], state: LaneState) -> None:
        with self.engine.begin() as connection:
            connection.execute(schema.fence.update().values(version=schema.fence.c.version + 1))
            connection.execute(schema.lanes.update().where(schema.lanes.c.slot.in_(slots)).values(state=state))

    deadly: frozenset[int] = frozenset()
    kill: Callable[[Process], None]

    def lock_row(self, key: str) -> None:
        """SQLite knows no row locks."""

    def unlock_rows(self) -> None:
        """The same."""

    def fail_over(self) -> None:
        """Transactions take no time here, so none is cut off."""

    def disconnect(self, process: Process) -> None:
        """The same."""

    def close(self) -> None:
        self.engine.dispose()

    def serve(self, process: Process, store: Store, deliveries: Sequence[Delivery], answer: Answer) -> None:
        if self._draw() < self.fail_commit:
            answer(TransientError("commit failed"))
            return
        try:
            outcome = store.apply(deliveries)
        except TransientError as error:
            answer(error)
            return
        self._tell_what_is_new(process, deliveries)
        answer(outcome)

    def _tell_what_is_new(self, process: Process, deliveries: Sequence[Delivery]) -> None:
        by_row = {delivery.row[0]: delivery for delivery in reversed(deliveries) if delivery.row}
        with self.engine.connect() as connection:
            rows = connection.execute(
                text("SELECT rowid, id FROM entries WHERE rowid > :seen ORDER BY rowid"), {"seen": self._seen}
            ).all()
        self._seen = max([self._seen, *(number for number, _ in rows)])
        dead = [
            delivery for delivery in deliveries if delivery.fault and self.recorded(identity_of(delivery)) == "dead"
        ]
        new = [delivery for delivery in dead if identity_of(delivery) not in self._dead]
        self._dead.update(map(identity_of, new))
        self._watcher.committed(process, [by_row[row_id] for _, row_id in rows], new)


class SqlStore:
    """A replica's own store, with the network between it and the database."""

    def __init__(self, loop: SimLoop, network: Network, shard: SqlDatabase) -> None:
        self._loop, self._network, self._shard = loop, network, shard
        config, dialect = shard._config, SQLite()
        self._store = Store(shard.engine, dialect, Fence(dialect), SqlSink(dialect, config.message_types))

    async def apply(self, deliveries: Sequence[Delivery], lock_seconds: float | None = None) -> Outcome:
        process = self._loop.current()

        def serve(answer: Answer) -> None:
            self._shard.serve(process, self._store, deliveries, answer)

        return await self._network.request("database", serve, 20.0, lambda why: TransientError(f"database: {why}"))
