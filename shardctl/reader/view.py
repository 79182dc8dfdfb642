"""One database as it was at one moment: its rows, and the lanes that say which slots they are of.

Invariant: rows and lanes are read in one snapshot (REPEATABLE READ, read-only), and the query of the lanes opens it. So where a
slot's lane is active in a view, the view holds all of the slot's rows as they were then, whatever commits later, here or in the
database that the slot moves to.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

from shardctl.fleet.keyspace import MAX_SLOT_BITS
from shardctl.reader.errors import ReadError
from shardctl.shard import database
from shardctl.shard.engine import MYSQL
from shardctl.shard.schema import LaneState, lanes, replicas

# A standby is behind its primary, so its lanes may still hold what the fleet has moved away.
_IS_STANDBY = {
    "postgresql": "pg_is_in_recovery()::integer",
    **dict.fromkeys(MYSQL, "@@global.read_only"),
    "sqlite": "0",
}
# Seconds since the newest report of a consumer's presence that is in this view. What committed before the report is in it too.
_AGE = {
    "postgresql": "extract(epoch FROM clock_timestamp() - max(seen_time))",
    **dict.fromkeys(MYSQL, "timestampdiff(MICROSECOND, max(seen_time), utc_timestamp(6)) / 1e6"),
    "sqlite": "(julianday('now') - julianday(max(seen_time))) * 86400",
}
_IN_SNAPSHOT = "ISOLATION LEVEL REPEATABLE READ, READ ONLY"


class ReadSession(Session):
    """A session in a view. It ends with the view: after a commit or rollback, a statement would see another moment, unchecked."""


@event.listens_for(ReadSession, "after_begin")
def _once(session: Session, _: SessionTransaction, __: Connection) -> None:
    if session.info.setdefault("begun", session.get_transaction()) is not session.get_transaction():
        raise ReadError("the session's transaction has ended, and its snapshot with it: open another session.")


class View:
    """An open view. `close` it, from whichever thread."""

    def __init__(self, engine: Engine, connection: Connection) -> None:
        self.engine, self.connection = engine, connection
        self.lanes: Mapping[int, frozenset[LaneState]] = {}
        self.age_seconds: float | None = None  # of a replica's view, at most; None where unknown
        self.is_standby = False

    @classmethod
    def open(
        cls, engine: Engine, slot: int | None = None, *, replica: bool = False, statement_seconds: float | None = None
    ) -> View:
        """See one slot's lanes, or all. Raises DatabaseError. `statement_seconds` bounds each statement, on PostgreSQL."""
        connection = None
        try:
            connection = engine.connect()
            view = cls(engine, connection)
            try:
                view._begin(_query(engine.dialect.name, slot, replica=replica), statement_seconds, replica=replica)
            except BaseException:
                view.close()
                raise
        except (SQLAlchemyError, engine.dialect.loaded_dbapi.Error) as error:
            raise database.error_of(engine, error) from error
        return view

    def session(self) -> ReadSession:
        return ReadSession(self.connection, autoflush=False)

    def close(self) -> None:
        """End the transaction and return the connection to its pool, as it was."""
        try:
            if self.engine.dialect.name == "sqlite":
                self.connection.exec_driver_sql("PRAGMA query_only = OFF")
            self.connection.close()
        except SQLAlchemyError:  # a lost connection, which the pool must not give to anybody else
            self.connection.invalidate()
            self.connection.close()

    def _begin(self, query: str, statement_seconds: float | None, *, replica: bool) -> None:
        self.connection.begin()
        dialect, limit = self.engine.dialect, ""
        if statement_seconds is not None and dialect.name == "postgresql":
            limit = f"SET LOCAL statement_timeout = {max(1, round(statement_seconds * 1_000))}"
        if dialect.driver == "psycopg" and not dialect.is_async:
            rows = self._in_one_request("; ".join(filter(None, (limit, query))))
        else:
            for statement in (*database.SNAPSHOT[dialect.name], *filter(None, (limit,))):
                self.connection.exec_driver_sql(statement).close()
            rows = self.connection.exec_driver_sql(query).all()
        states: dict[int, frozenset[LaneState]] = {}
        for slot_text, state, about in rows:  # numbers as text, where the driver's own reading of them is left out
            slot = int(slot_text)
            states[slot] = states.get(slot, frozenset()) | {LaneState(state)}
            if not replica:
                self.is_standby = bool(int(about))
            elif about is not None:
                self.age_seconds = float(about)
        self.lanes = states

    def _in_one_request(self, query: str) -> Any:
        """BEGIN and the query of the lanes in the round trip that BEGIN takes anyway.

        By libpq itself: psycopg would send a BEGIN of its own before it. Once a transaction is open, it sends none.
        """
        from psycopg import errors, pq

        driver: Any = self.connection.connection.driver_connection
        # Open where the engine's own listener has sent a BEGIN.
        opening = "BEGIN" if driver.pgconn.transaction_status == pq.TransactionStatus.IDLE else "SET TRANSACTION"
        result = driver.pgconn.exec_(f"{opening} {_IN_SNAPSHOT}; {query}".encode())
        if result.status != pq.ExecStatus.TUPLES_OK:
            state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
            error = errors.lookup(state) if state else errors.OperationalError
            raise error(result.get_error_message())
        return [tuple(_text(result.get_value(row, column)) for column in range(3)) for row in range(result.ntuples)]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


@lru_cache(1 << MAX_SLOT_BITS)
def _query(product: str, slot: int | None, *, replica: bool) -> str:
    about = f"(SELECT {_AGE[product]} FROM {replicas.name})" if replica else _IS_STANDBY[product]  # noqa: S608
    where = f"slot = {slot:d}" if slot is not None else f"state IN ('{LaneState.ACTIVE}', '{LaneState.DUE}')"
    return f"SELECT slot, state, {about} FROM {lanes.name} WHERE {where}"  # noqa: S608
