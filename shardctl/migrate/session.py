"""Sessions that change tables while others write: no statement waits for a lock for long, since writers queue behind it."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import ceil

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from shardctl.shard import database, revisions
from shardctl.shard.database import DatabaseError
from shardctl.shard.engine import MYSQL

_LOCKED_STATES = ("55P03", "40P01")
_LOCKED_NUMBERS = (1205, 1213, 3572)
_CHANGED_NUMBER = 1412  # of MariaDB and MySQL
_ALONE = "hashtextextended('shardctl.migrate', 0)"  # an advisory lock is one database's
IS_BUSY = "another `shardctl migrate apply` changes this shard. Wait until it ends, and run this again"
_LOCK = "CONCAT('shardctl.migrate.', SHA1(DATABASE()))"
MAX_HOLDERS = 3


class BusyError(DatabaseError):
    """Another `apply` changes this shard."""


@contextmanager
def altering(engine: Engine, longest_wait: timedelta) -> Iterator[Connection]:
    """A transaction on the shard, in which no statement waits longer for a lock; others that change tables of it wait.

    On MariaDB and MySQL each statement that changes a table commits what came before it.
    """
    product = engine.dialect.name
    with database.writing(engine) as connection:
        if product == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{longest_wait // timedelta(milliseconds=1)}ms'")
            connection.exec_driver_sql(f"LOCK TABLE {revisions.table.name} IN EXCLUSIVE MODE")
            yield connection
        elif product in MYSQL:
            with _named_lock(connection, ceil(longest_wait.total_seconds())):
                yield connection
        else:
            yield connection  # there is one writer


@contextmanager
def _named_lock(connection: Connection, seconds: int) -> Iterator[None]:
    """It outlives commits, and ends with the session at the latest."""
    connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {seconds}, innodb_lock_wait_timeout = {seconds}")
    if not connection.exec_driver_sql(f"SELECT GET_LOCK({_LOCK}, {seconds})").scalar():
        raise BusyError(IS_BUSY)
    try:
        yield
        connection.exec_driver_sql("COMMIT")
    finally:
        if not connection.invalidated:
            connection.exec_driver_sql(f"SELECT RELEASE_LOCK({_LOCK})").close()


@contextmanager
def alone(engine: Engine, longest_wait: timedelta) -> Iterator[Connection]:
    """A session of PostgreSQL without a transaction: each statement commits by itself.

    Another `apply` doesn't wait for its lock but raises BusyError: CREATE INDEX CONCURRENTLY waits for every statement that runs,
    and would wait for that one.
    """
    with database.writing(engine) as connection:
        connection.exec_driver_sql("COMMIT")
        if not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_ALONE})").scalar():
            raise BusyError(IS_BUSY)
        connection.exec_driver_sql(f"SET lock_timeout = '{longest_wait // timedelta(milliseconds=1)}ms'")
        try:
            yield connection
        finally:
            if not connection.invalidated:
                connection.exec_driver_sql("RESET lock_timeout")
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_ALONE})")


def was_overtaken(error: DatabaseError) -> bool:
    """Whether a table was changed while one view of the database was read: another view has what it is now."""
    return next(iter(getattr(_cause_of(error), "args", ())), None) == _CHANGED_NUMBER


def _cause_of(error: DatabaseError) -> BaseException | None:
    return error.__cause__.orig if isinstance(error.__cause__, DBAPIError) else error.__cause__


def is_locked(error: DatabaseError) -> bool:
    """Whether a lock took too long, or two sessions met in a deadlock: another try may find it free."""
    if isinstance(error, BusyError):
        return True
    cause = _cause_of(error)
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    number = next(iter(getattr(cause, "args", ())), None)
    return getattr(cause, "sqlstate", None) in _LOCKED_STATES or number in _LOCKED_NUMBERS


_HOLDERS = {
    "postgresql": (
        "SELECT DISTINCT a.pid, coalesce(nullif(a.application_name, ''), a.usename), a.xact_start FROM pg_catalog.pg_locks l "
        "JOIN pg_catalog.pg_class c ON c.oid = l.relation JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid "
        "WHERE l.granted AND a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL AND c.relname = ANY (%s) "
        "AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) ORDER BY a.xact_start"
    ),
    **dict.fromkeys(
        MYSQL,
        "SELECT t.trx_mysql_thread_id, p.user, t.trx_started FROM information_schema.innodb_trx t "
        "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id "
        "WHERE p.db = DATABASE() AND p.id <> CONNECTION_ID() ORDER BY t.trx_started",
    ),
}


def holders(engine: Engine, tables: Collection[str]) -> str:
    """Whose transactions use the tables now, the oldest first, for people; "" where the database doesn't report it."""
    product = engine.dialect.name
    if product not in _HOLDERS:
        return ""
    names = [name.rpartition(".")[2] for name in tables] + [revisions.table.name]
    parameters = ((names,),) if product == "postgresql" else ()
    try:
        with database.snapshot(engine) as connection:
            rows = connection.exec_driver_sql(_HOLDERS[product], *parameters).all()[:MAX_HOLDERS]
    except DatabaseError:
        return ""  # it takes the right to see others' sessions
    return ", ".join(
        f"session {number} of {name}, in a transaction since {since:%H:%M:%S} UTC" for number, name, since in rows
    )
