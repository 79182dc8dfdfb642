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
from sqlalchemy.util import await_only

from shardctl.fleet.keyspace import MAX_SLOT_BITS
from shardctl.reader.errors import ReadError
from shardctl.shard import database
from shardctl.shard.engine import MYSQL
from shardctl.shard.membership import ForeignDatabaseError
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
_OF_EVERY_SLOT = f"state IN ('{LaneState.ACTIVE}', '{LaneState.DUE}')"
_IN_SNAPSHOT = "ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_NO_STATES: frozenset[LaneState] = frozenset()
_STATES = {state.value: frozenset((state,)) for state in LaneState}
_PREPARED = "shardctl_lane"
_PREPARE = (
    f"PREPARE {_PREPARED} (integer) AS SELECT slot, state, {_IS_STANDBY['postgresql']} FROM {lanes.name} "  # noqa: S608
    "WHERE slot = $1; "
)
_NOT_AS_PREPARED = ("26000", "42P05")  # no such prepared statement; one of that name is there already


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
        cls,
        engine: Engine,
        slots: tuple[int, ...] = (),
        *,
        replica: bool = False,
        statement_seconds: float | None = None,
    ) -> View:
        """See the lanes of these slots, or all. Raises DatabaseError. On PostgreSQL `statement_seconds` bounds each statement."""
        connection = None
        database.check_file(engine)
        try:
            connection = engine.connect()
            view = cls(engine, connection)
            try:
                view._begin(slots, statement_seconds, replica=replica)
            except BaseException:
                view.close()
                raise
        except ForeignDatabaseError as error:  # of an engine that compares by itself
            raise database.DatabaseError(str(error)) from error
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
            elif self.engine.dialect.driver == "psycopg":
                self._roll_back()
            self.connection.close()
        except (SQLAlchemyError, self.engine.dialect.loaded_dbapi.Error):
            # A lost connection, which the pool must not give to anybody else.
            self.connection.invalidate()
            self.connection.close()

    def _begin(self, slots: tuple[int, ...], statement_seconds: float | None, *, replica: bool) -> None:
        self.connection.begin()
        dialect, limit = self.engine.dialect, ""
        if statement_seconds is not None and dialect.name == "postgresql":
            limit = f"SET LOCAL statement_timeout = {max(1, round(statement_seconds * 1_000))}"
        if dialect.driver == "psycopg":
            rows = self._in_one_request(limit, slots, replica=replica)
        else:
            for statement in (*database.SNAPSHOT[dialect.name], *filter(None, (limit,))):
                self.connection.exec_driver_sql(statement).close()
            rows = self.connection.exec_driver_sql(_query(dialect.name, slots, replica=replica)).all()
        states: dict[int, frozenset[LaneState]] = {}
        for slot_text, state, about in rows:  # numbers as text, where the driver's own reading of them is left out
            slot = int(slot_text)
            states[slot] = states.get(slot, _NO_STATES) | _STATES[state]
            if not replica:
                self.is_standby = about != "0" and bool(int(about))
            elif about is not None:
                self.age_seconds = float(about)
        self.lanes = states

    def _in_one_request(self, limit: str, slots: tuple[int, ...], *, replica: bool) -> Any:
        """BEGIN and the query of the lanes in the round trip that BEGIN takes anyway.

        The query of one slot is prepared along with its first use: the server would take longer to plan it than to run it.
        """
        query = _query(self.engine.dialect.name, slots, replica=replica)
        if replica or len(slots) != 1 or not self._may_prepare():
            return self._rows(limit, query)
        info = self.connection.info  # of the driver's connection
        prepare = "" if info.get(_PREPARED) else _PREPARE
        try:
            rows = self._rows(limit, f"{prepare}EXECUTE {_PREPARED} ({slots[0]})")
        except self.engine.dialect.loaded_dbapi.ProgrammingError as error:
            if error.sqlstate not in _NOT_AS_PREPARED:
                raise
            info[_PREPARED] = None
            self._exec("ROLLBACK")
            return self._rows(limit, query)
        info[_PREPARED] = True
        return rows

    def _may_prepare(self) -> bool:
        """Not where the driver may not, nor where a pooler has lost or mixed up what was prepared."""
        driver: Any = self.connection.connection.driver_connection
        return driver.prepare_threshold is not None and self.connection.info.get(_PREPARED, False) is not None

    def _rows(self, limit: str, query: str) -> Any:
        """By libpq itself: psycopg would send a BEGIN of its own before it. Once a transaction is open, it sends none."""
        from psycopg import pq

        driver: Any = self.connection.connection.driver_connection
        # Open where the engine's own listener has sent a BEGIN.
        opening = "BEGIN" if driver.pgconn.transaction_status == pq.TransactionStatus.IDLE else "SET TRANSACTION"
        result = self._exec("; ".join(filter(None, (f"{opening} {_IN_SNAPSHOT}", limit, query))))
        return [tuple(_text(result.get_value(row, column)) for column in range(3)) for row in range(result.ntuples)]

    def _roll_back(self) -> None:
        """By libpq too. After a rollback of its own, psycopg forgets what it has prepared, since tables that the transaction
        made are gone; a view makes none, so the session's statements stay prepared for the next one.
        """
        from psycopg import pq

        driver: Any = self.connection.connection.driver_connection
        if driver.pgconn.transaction_status in {pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR}:
            self._exec("ROLLBACK")

    def _exec(self, text: str) -> Any:
        """The last statement's result. Raises the driver's errors."""
        from psycopg import errors, pq

        driver: Any = self.connection.connection.driver_connection
        sent = text.encode()
        result = await_only(_last_result(driver, sent)) if self.engine.dialect.is_async else driver.pgconn.exec_(sent)
        if result.status not in {pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK}:
            state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
            error = errors.lookup(state) if state else errors.OperationalError
            raise error(result.get_error_message())
        return result


async def _last_result(driver: Any, text: bytes) -> Any:
    """What libpq's `exec` returns, without blocking the event loop."""
    from psycopg import generators

    driver.pgconn.send_query(text)
    return (await driver.wait(generators.execute(driver.pgconn)))[-1]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _query(product: str, slots: tuple[int, ...], *, replica: bool) -> str:
    return _query_of_one(product, slots[0], replica=replica) if len(slots) == 1 else _query_of(product, slots, replica)


@lru_cache(1 << MAX_SLOT_BITS)
def _query_of_one(product: str, slot: int, *, replica: bool) -> str:
    return _query_of(product, (slot,), replica)


def _query_of(product: str, slots: tuple[int, ...], replica: bool) -> str:
    about = f"(SELECT {_AGE[product]} FROM {replicas.name})" if replica else _IS_STANDBY[product]  # noqa: S608
    where = f"slot IN ({', '.join(map(str, slots))})" if slots else _OF_EVERY_SLOT
    return f"SELECT slot, state, {about} FROM {lanes.name} WHERE {where}"  # noqa: S608
