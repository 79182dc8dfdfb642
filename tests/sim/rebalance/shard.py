"""One shard's database: real tables on SQLite in memory, the consumers' way in and the executor's.

Each of the consumers' transactions happens at one instant. The executor's statements outside of a transaction, and so its
transactions as wholes, each wait for their turn. The engines outlive a schedule, since making them takes longer than one.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.pool import QueuePool

from consumer.database.dialects import SQLite
from consumer.delivery import Delivery
from consumer.errors import TransientError
from consumer.sinks.sql import SqlSink
from consumer.store.fence import Fence
from consumer.store.parked import Key
from consumer.store.transaction import Outcome, Passed, Released, Store
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.rebalance.rows.tables import slot_tables
from shardctl.shard import schema
from shardctl.shard.engine import configure_sqlite
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import LaneState, OutcomeCode
from shardctl.wire.identity import key_hash
from tests.sim.loop import Process, SimLoop
from tests.sim.network import Answer, Network
from tests.sim.rebalance.message import BALANCE, KEYS

_OF_BALANCES = frozenset(key_hash(BALANCE, key) for keys in KEYS.values() for key in keys)
SQLITE = make_url("sqlite://").get_dialect()()
ADDED = ("entries", "notes")  # whose rows nobody changes
TABLES = (*ADDED, "balances")
_OWN = tuple(table.name for table in reversed(schema.metadata.sorted_tables))


class Hooks:
    """Receives what is done through the executor's engines: the process that runs there at the moment."""

    def before_statement(self, shard: str, connection: sqlite3.Connection, statement: str) -> None: ...
    def commit(self, shard: str, connection: sqlite3.Connection) -> None: ...


current = Hooks()  # set through `hooked`


def hooked(hooks: Hooks) -> Hooks:
    """Let the executor's engines report to another; returns the one before."""
    global current
    before, current = current, hooks
    return before


@dataclass(frozen=True, slots=True)
class Engines:
    consumers: Engine
    executor: Engine
    observer: sqlite3.Connection  # for the oracle, who asks after each transaction


@functools.cache
def engines(name: str) -> Engines:
    """Of a database that holds the tables, as long as this process lives."""
    url = make_url(f"sqlite:///file:{name}?mode=memory&cache=shared&uri=true")
    consumers, executor = (
        create_engine(url, poolclass=QueuePool, connect_args={"check_same_thread": False}) for _ in range(2)
    )
    for engine in (consumers, executor):
        event.listen(engine, "connect", configure_sqlite)

    @event.listens_for(executor, "before_cursor_execute")
    def before(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        current.before_statement(name, connection.connection.dbapi_connection, statement)

    @event.listens_for(executor, "commit")
    def commit(connection: Any) -> None:
        current.commit(name, connection.connection.dbapi_connection)

    where = f"file:{name}?mode=memory&cache=shared"
    return Engines(consumers, executor, sqlite3.connect(where, uri=True, check_same_thread=False, isolation_level=None))


class ShardDatabase:
    def __init__(self, name: str) -> None:
        self.name, self._engines = name, engines(name)
        self._rows: frozenset[str] = frozenset()  # that were there at the last look, by id
        self._changes: frozenset[bytes] = frozenset()  # of balances, the same, by identity
        _make_tables(name)
        with self.consumers.begin() as connection:
            for table in (*TABLES, *_OWN, "sqlite_sequence"):
                connection.exec_driver_sql(f"DELETE FROM {table}")

    @property
    def consumers(self) -> Engine:
        return self._engines.consumers

    @property
    def executor(self) -> Engine:
        return self._engines.executor

    def provision(self, kinds: dict[str, MessageType], slots: SlotSet, generation: int) -> None:
        schema.create(self.consumers, kinds, slots, generation)
        with self.executor.connect() as connection:
            slot_tables(connection, kinds)  # looked at once for each engine: else the first schedule would be another

    def written(self) -> tuple[list[str], list[bytes]]:
        """Since the last look: the ids of rows that were added, in order, and the identities of writes to balances.

        A balance's row doesn't show how often it was written, but the inbox does.
        """
        rows = [row_id for table in ADDED for (row_id,) in self._ask(f"SELECT id FROM {table} ORDER BY rowid")]
        applied = self._ask("SELECT identity, key_hash FROM shardctl_inbox WHERE outcome IS NULL")
        changes = [its_identity for its_identity, key_hash in applied if key_hash in _OF_BALANCES]
        rows_before, self._rows = self._rows, frozenset(rows)
        changes_before, self._changes = self._changes, frozenset(changes)
        return [row for row in rows if row not in rows_before], [c for c in changes if c not in changes_before]

    def version(self) -> int:
        return self._ask("SELECT version FROM shardctl_fence")[0][0]

    def lanes(self) -> list[Lane]:
        rows = self._ask(
            "SELECT slot, generation, state, barrier_time_us FROM shardctl_lanes ORDER BY slot, generation"
        )
        return [Lane(slot, generation, LaneState(state), time_us) for slot, generation, state, time_us in rows]

    def ids(self, slot: int | None = None) -> list[str]:
        """Of the rows of a slot, or of all."""
        return sorted(row_id for table in TABLES for row_id in self._column(f"id FROM {table}", slot))

    def recorded(self, slot: int, identity: bytes) -> str | None:
        rows = self._ask("SELECT outcome FROM shardctl_inbox WHERE slot = ? AND identity = ?", slot, identity)
        return OutcomeCode().process_result_value(rows[0][0], SQLITE) if rows else None

    def slots_with_rows(self) -> set[int]:
        slots: set[int] = set()
        for table in (*TABLES, "shardctl_inbox", "shardctl_parked_keys", "shardctl_parked"):
            slots.update(self._column(f"slot FROM {table}"))
        return slots

    def rebalance_states(self) -> list[str]:
        return self._column("state FROM shardctl_rebalances")

    def rebalance_ids(self) -> list[str]:
        return self._column("id FROM shardctl_rebalances")

    def parked(self) -> list[tuple[int, str, str]]:
        """Slot, routing key and idempotency key of each parked message, in order."""
        return self._ask("SELECT slot, partition_key, idempotency_key FROM shardctl_parked ORDER BY position")

    def _column(self, what: str, slot: int | None = None) -> list[Any]:
        where = "" if slot is None else f" WHERE slot = {slot}"
        return [value for (value,) in self._ask(f"SELECT {what}{where}")]

    def _ask(self, query: str, *values: object) -> list[Any]:
        return self._engines.observer.execute(query, values).fetchall()


@functools.cache
def _make_tables(name: str) -> None:
    engine = engines(name).consumers
    with engine.begin() as connection:
        for table in TABLES:
            key = "id" if table in ADDED else "owner"
            connection.exec_driver_sql(
                f"CREATE TABLE {table} (id TEXT, owner TEXT, number INTEGER CHECK (number >= 0), slot INTEGER NOT NULL, "
                f"PRIMARY KEY ({key}))"
            )
    schema.metadata.create_all(engine)


Observer = Callable[[ShardDatabase, object], None]


class ShardStore:
    """A replica's own store, with the network between it and the database. `observe` is called after each transaction."""

    def __init__(
        self, loop: SimLoop, network: Network, shard: ShardDatabase, config: ShardConfig, observe: Observer, fail: Any
    ) -> None:
        self._loop, self._network, self._shard, self._observe, self._fail = loop, network, shard, observe, fail
        dialect = SQLite()
        self.fence = Fence(dialect)
        self.inner = Store(shard.consumers, dialect, self.fence, SqlSink(dialect, config.message_types))

    async def apply(self, deliveries: Sequence[Delivery], lock_seconds: float | None = None) -> Outcome:
        return await self._ask(lambda: self.inner.apply(deliveries, lock_seconds))

    async def pass_barriers(self, barriers: Sequence[Delivery]) -> Passed:
        return await self._ask(lambda: self.inner.pass_barriers(barriers))

    async def released_keys(self) -> list[Key]:
        return sorted(await self._ask(self.inner.released_keys))

    async def release(self, key: Key, read: Callable[[Delivery], None]) -> Released | None:
        return await self._ask(lambda: self.inner.release(key, read))

    async def _ask(self, call: Callable[[], Any]) -> Any:
        process = self._loop.current()

        def serve(answer: Answer) -> None:
            answer(self._transaction(process, call))

        service = f"database {self._shard.name}"
        return await self._network.request(service, serve, 20.0, lambda why: TransientError(f"database: {why}"))

    def _transaction(self, process: Process, call: Callable[[], Any]) -> Any:
        if self._fail():
            return TransientError("commit failed")
        try:
            return call()
        except TransientError as error:
            return error
        finally:
            self._observe(self._shard, process)


def active(lanes: Sequence[Lane]) -> Iterator[tuple[int, int]]:
    """Slot and generation of each active lane."""
    return ((lane.slot, lane.generation) for lane in lanes if lane.state == LaneState.ACTIVE)
