"""The shard's database: its engine, and what its errors mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from consumer.errors import AgainError, DataFaultError
from consumer.rows import DIALECTS, Dialect, utc_text
from shardctl.errors import UsageError
from shardctl.spec import Batching

CONNECT_TIMEOUT_SECONDS = 5

# SQLSTATE classes that blame the data: two writes of one statement met in one row (21), data exception, integrity constraint
# violation, a trigger that changed the row under way (27), WITH CHECK OPTION violation, an error of the user's own (45, the
# standard's), a limit of the server such as the size of an index entry (54), and whatever PL/pgSQL raises in a trigger. All else
# (connections, resources, locks, missing tables and rights, operator intervention) may pass: again.
_DATA_CLASSES = ("21", "22", "23", "27", "44", "45", "54", "P0")


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
    statement_ms = int(settings.statement_timeout.total_seconds() * 1000)
    options = (
        f"-c statement_timeout={statement_ms} -c idle_in_transaction_session_timeout={statement_ms} -c timezone=UTC"
    )
    return create_engine(
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
            "application_name": "shardctl-consumer",
        },
    )


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
        connection.create_function("utc_text", 1, utc_text, deterministic=True)

    return engine


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours: AgainError, or DataFaultError when the data is to blame."""
    try:
        yield
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        first_line = str(error.orig).partition("\n")[0]
        if _blames_data(error, state):
            raise DataFaultError(_reason(state), first_line) from error
        raise AgainError(f"database: {first_line}") from error
    except (SQLAlchemyError, OSError) as error:
        raise AgainError(f"database: {error}") from error


def _blames_data(error: DBAPIError, state: str | None) -> bool:
    if error.connection_invalidated:
        return False
    if state is not None:
        return state.startswith(_DATA_CLASSES)
    return isinstance(error.orig, sqlite3.IntegrityError | sqlite3.DataError)


def _reason(state: str | None) -> str:
    return "bad_value" if state and state.startswith("22") else "constraint"


@contextmanager
def transaction(engine: Engine, dialect: Dialect) -> Iterator[Connection]:
    """One transaction with the consumer's errors: committed when the block ends, rolled back when it raises."""
    with translated(), engine.connect() as connection, connection.begin():
        for statement in dialect.begin:
            connection.exec_driver_sql(statement)
        yield connection
