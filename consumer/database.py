"""The shard's database: its engine, and what its errors mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from consumer.errors import AgainError, BlockedError, DataFaultError
from consumer.rows import DIALECTS, Dialect
from consumer.sqlstate import judge
from shardctl.errors import UsageError
from shardctl.settings.consuming import Batching

CONNECT_TIMEOUT_SECONDS = 5  # a host
LOST_HOST_MS = 11_000  # a host that is gone without a word is given up after as long as the keepalives take
READ_ONLY_TRANSACTION = "25006"
MYSQL_READ_ONLY = (1290, 1792, 1836)


def dialect_of(url: URL) -> Dialect:
    try:
        return DIALECTS[url.get_backend_name()]
    except KeyError:
        raise UsageError(
            f"no support for {url.get_backend_name()!r} databases; there is: {', '.join(DIALECTS)}"
        ) from None


def engine_of(url: URL, settings: Batching) -> Engine:
    """An engine whose sessions can't hang: a replica that is stopped mid-transaction is cut off by the server."""
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, settings)
    if url.get_backend_name() in ("mysql", "mariadb"):
        return _mysql_engine(url, settings)
    statement_ms = int(settings.statement_timeout.total_seconds() * 1000)
    # A row that a policy hides looks like one that isn't there: its delete would be acked, its update dead-lettered.
    options = (
        f"-c statement_timeout={statement_ms} -c idle_in_transaction_session_timeout={statement_ms} -c timezone=UTC "
        "-c row_security=off"
    )
    engine = create_engine(
        url,
        pool_size=settings.concurrency + 1,  # one for maintenance
        max_overflow=0,
        pool_pre_ping=True,  # after a fail-over, a dead connection is found before a batch meets it
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "options": options,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": LOST_HOST_MS,  # keepalives are silent while something sent is unanswered
            "application_name": "shardctl-consumer",
        },
    )
    event.listen(engine, "handle_error", _leave_what_cant_write)
    return engine


def _leave_what_cant_write(context: ExceptionContext) -> None:
    """A server that was made a standby, or read-only, under our sessions: the next try asks every host for a writable one."""
    error = context.original_exception
    state, number = getattr(error, "sqlstate", None), next(iter(error.args), None)
    if state == READ_ONLY_TRANSACTION or number in MYSQL_READ_ONLY:
        context.is_disconnect = True  # which drops this connection, and its pool's others with it


def _mysql_engine(url: URL, settings: Batching) -> Engine:
    seconds = int(settings.statement_timeout.total_seconds()) or 1
    session = {
        "sql_mode": "'TRADITIONAL'",  # a value that doesn't fit is an error instead of another value
        "time_zone": "'+00:00'",
        "innodb_lock_wait_timeout": seconds,
        "lock_wait_timeout": seconds,
        "wait_timeout": seconds,  # also ends a transaction whose replica is stopped
    }
    listed = ", ".join(f"{name} = {value}" for name, value in session.items())
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",  # what another replica has just committed is seen; no locks on gaps
        pool_size=settings.concurrency + 1,  # one for maintenance
        max_overflow=0,
        pool_pre_ping=True,  # a session may have been idle for too long
        connect_args={
            "charset": "utf8mb4",
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "read_timeout": seconds + CONNECT_TIMEOUT_SECONDS,  # the server's own limits come first
            "write_timeout": seconds + CONNECT_TIMEOUT_SECONDS,
            "init_command": f"SET SESSION {listed} /*M! , max_statement_time = {seconds} */",  # MariaDB's alone
        },
    )
    event.listen(engine, "handle_error", _leave_what_cant_write)
    return engine


def _sqlite_engine(url: URL, settings: Batching) -> Engine:
    engine = create_engine(
        url, connect_args={"timeout": settings.statement_timeout.total_seconds(), "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions behind our back
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours: DataFaultError when the data is to blame, BlockedError when a statement can't finish
    now, AgainError when nothing works.
    """
    try:
        yield
    except DBAPIError as error:
        first_line = str(error.orig).partition("\n")[0]
        verdict = judge(error)
        if verdict.reason:
            raise DataFaultError(verdict.reason, first_line) from error
        again = BlockedError if verdict.alone else AgainError
        raise again(f"database: {first_line}" + (f" ({verdict.why})" if verdict.why else "")) from error
    except (SQLAlchemyError, OSError) as error:
        raise AgainError(f"database: {error}") from error


@contextmanager
def needed_by_all() -> Iterator[None]:
    """What every batch needs: where this is blocked, all of them are, and AgainError says so."""
    try:
        with translated():
            yield
    except BlockedError as error:
        raise AgainError(str(error)) from error


@contextmanager
def transaction(engine: Engine, dialect: Dialect, lock_seconds: float | None = None) -> Iterator[Connection]:
    """One transaction with the consumer's errors: committed when the block ends, rolled back when it raises.

    With `lock_seconds`, a statement that waits longer for a lock is blocked.
    """
    with translated(), engine.connect() as connection, connection.begin():
        for statement in dialect.begin:
            connection.exec_driver_sql(statement)
        with _waiting_for_locks(connection, dialect, lock_seconds):
            yield connection


@contextmanager
def _waiting_for_locks(connection: Connection, dialect: Dialect, seconds: float | None) -> Iterator[None]:
    if seconds is None or dialect.lock_limit is None:
        yield
        return
    connection.exec_driver_sql(dialect.lock_limit.format(seconds=seconds, least=int(seconds), most=ceil(seconds)))
    try:
        yield
    finally:
        if dialect.usual_lock_limit and not connection.invalidated:
            try:
                connection.exec_driver_sql(dialect.usual_lock_limit)
            except DBAPIError:
                connection.invalidate()  # no other transaction may have this limit
