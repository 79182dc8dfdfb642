"""The control plane's way into a shard's database: an engine, a transaction that writes, a view that stays as it is.

Whatever the database refuses comes out as DatabaseError, whose text never holds a password.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from shardctl import databaseurl
from shardctl.errors import ShardctlError

CONNECT_TIMEOUT_SECONDS = 5  # a host
LOST_HOST_MS = 11_000  # a host that is gone without a word is given up after as long as the keepalives take
LOCK_TIMEOUT_SECONDS = 30  # no consumer keeps the fence for longer than its own statement timeout
IDLE_SECONDS = 600  # one side of a copy waits while the other is checked
STATEMENT_SECONDS = 3_600  # copying a large slot and checking a large table are single statements
SEE_EVERY_ROW = (
    "Let the user see every row: `ALTER ROLE … BYPASSRLS`, or make it the table's owner, or a member of the owner's role, where "
    "the table doesn't FORCE ROW LEVEL SECURITY."
)

_DIALECTS = ("postgresql", "mysql", "mariadb", "sqlite")


class DatabaseError(ShardctlError):
    """A shard's database can't be reached, or refused a statement. Its cause is SQLAlchemy's error."""


def connect(url: str) -> Engine:
    """An engine whose sessions are in UTC and don't wait for ever. Connects when first used; `dispose()` it when done.

    Raises DatabaseError where the URL can't be used. Its sessions do so inside `writing` and `snapshot`.
    """
    try:
        parsed = databaseurl.parse(url)
    except databaseurl.DatabaseUrlError as error:
        raise DatabaseError(f"the database URL can't be used: {error}") from error
    backend = parsed.get_backend_name()
    if backend not in _DIALECTS:
        raise DatabaseError(f"no support for {backend!r} databases; there is: {', '.join(_DIALECTS)}")
    if backend == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": LOCK_TIMEOUT_SECONDS, "check_same_thread": False})
        event.listen(engine, "connect", _configure_sqlite)
    else:
        arguments = _postgresql() if backend == "postgresql" else _mysql()
        # What others have committed is seen at once; no locks on gaps.
        engine = create_engine(parsed, pool_pre_ping=True, isolation_level="READ COMMITTED", connect_args=arguments)
    event.listen(engine, "handle_error", _remember_engine)
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed when the block ends, rolled back when it raises."""
    with _session(engine) as connection, connection.begin():
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # who reads first and writes then may be refused
        yield connection


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """One view of all that was committed when the block began; nothing that commits later is seen. It can't write."""
    with _session(engine) as connection, connection.begin():
        for statement in _SNAPSHOT[engine.dialect.name]:
            connection.exec_driver_sql(statement).close()
        try:
            yield connection
        finally:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = OFF")


_MYSQL_SNAPSHOT = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
)
_SNAPSHOT = {
    # On PostgreSQL and SQLite a view begins with its first query.
    "postgresql": ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY", "SELECT 1"),
    "mysql": _MYSQL_SNAPSHOT,
    "mariadb": _MYSQL_SNAPSHOT,
    "sqlite": ("PRAGMA query_only = ON", "BEGIN DEFERRED", "SELECT 1 FROM sqlite_master LIMIT 1"),
}


def error_of(engine: Engine, error: BaseException) -> DatabaseError:
    """What to raise, from `error`. For what uses a driver without SQLAlchemy, too."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    hosts = {name: value for name, value in engine.url.query.items() if name in {"host", "port"}}
    where = engine.url.set(query=hosts).render_as_string(hide_password=True)
    told = str(cause).strip().partition("\n")[0]
    fix = f". {SEE_EVERY_ROW}" if "row-level security" in told else ""
    return DatabaseError(f"database {where}: {told}{fix}")


@contextmanager
def _session(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.connect() as connection:
            yield connection
    except (SQLAlchemyError, sqlite3.Error) as error:
        # Of two sessions in one block, this may be the other one's error.
        raise error_of(getattr(error, _REFUSED_BY, engine), error) from error


_REFUSED_BY = "refused_by"


def _remember_engine(context: ExceptionContext) -> None:
    if context.sqlalchemy_exception is not None and context.engine is not None:
        setattr(context.sqlalchemy_exception, _REFUSED_BY, context.engine)


def _postgresql() -> dict[str, Any]:
    session = {
        "statement_timeout": f"{STATEMENT_SECONDS}s",
        "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
        # The fence may be held alone: should this machine vanish, the server must notice.
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        # Values are moved as text, whatever a role or a database has made its own way of writing them.
        "timezone": "UTC",
        "datestyle": "ISO",
        "intervalstyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        # Rows that a policy hides would be missed by copies, counts and deletions; so a policy is an error, as for pg_dump.
        "row_security": "off",
    }
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "options": " ".join(f"-c {name}={value}" for name, value in session.items()),
        "client_encoding": "utf8",
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": LOST_HOST_MS,
        "application_name": "shardctl",
    }


def _mysql() -> dict[str, Any]:
    session = {
        "sql_mode": "'TRADITIONAL,NO_AUTO_VALUE_ON_ZERO'",  # what doesn't fit is an error instead of another value
        "time_zone": "'+00:00'",
        "innodb_lock_wait_timeout": LOCK_TIMEOUT_SECONDS,
        "lock_wait_timeout": LOCK_TIMEOUT_SECONDS,
        "wait_timeout": IDLE_SECONDS,
        "net_write_timeout": IDLE_SECONDS,  # rows are read as they are needed, and the server waits for us
    }
    return {
        "charset": "utf8mb4",
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "read_timeout": STATEMENT_SECONDS,
        "write_timeout": STATEMENT_SECONDS,
        "init_command": "SET SESSION " + ", ".join(f"{name} = {value}" for name, value in session.items()),
    }


def _configure_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions behind our back
    for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}")
