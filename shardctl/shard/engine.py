"""Engines on a shard's database, for both planes: the one place for session settings.

A pooler that hands a server session to each transaction, such as PgBouncer with `pool_mode = transaction`, loses what a client
keeps in its session, or gives it to another client. So on PostgreSQL nothing is kept there: each transaction sets what safety
or meaning needs as its first act, in the round trip that its BEGIN takes anyway, and no statement is prepared under a name
unless the URL asks for it by `prepare_threshold`. MySQL and MariaDB have no SET LOCAL. There the settings are the session's, and
each transaction verifies that they still hold: see `HOLDS_MYSQL_SETTINGS`.
"""

from __future__ import annotations

import base64
import sqlite3
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from shardctl.shard import databaseurl, membership
from shardctl.shard.membership import Membership

CONNECT_TIMEOUT_SECONDS = 5  # a host
LOST_HOST_MS = 11_000  # a host that is gone without a word is given up after as long as the keepalives take
PRODUCTS = ("postgresql", "mysql", "mariadb", "sqlite")
MYSQL = ("mysql", "mariadb")
MAX_PACKET = "max_allowed_packet"  # in `Connection.info`: the server's limit, in bytes, for what this session sends
PING_AFTER_SECONDS = 1.0  # unused for so long, a connection is asked whether it lives before a transaction meets it
UNHEX = "shardctl_unhex"  # a function of SQLite's sessions; it has one of its own from 3.41
FROM_BASE64 = "shardctl_from_base64"  # likewise

_READ_ONLY_TRANSACTION = "25006"
_RETURNED_AT = "returned at"  # in a pooled connection's `info`
_MYSQL_READ_ONLY = (1290, 1792, 1836)

# A boolean expression: the session is as `_mysql` made it. A proxy that shares server sessions may have swapped it for another.
HOLDS_MYSQL_SETTINGS = (
    "(find_in_set('TRADITIONAL', @@sql_mode) > 0 AND find_in_set('NO_AUTO_VALUE_ON_ZERO', @@sql_mode) > 0 "
    "AND @@time_zone = '+00:00' AND @@autocommit = 0)"
)
SETTINGS_ARE_LOST = (
    "the session's sql_mode, time_zone or autocommit is not what this client has set. A proxy in between shares server sessions "
    "and doesn't track these: see docs/poolers.md"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session may cost the server and others. MySQL and MariaDB count whole seconds, from one."""

    application: str  # as the server lists its sessions
    statement: timedelta
    lock: timedelta
    idle: timedelta  # in a transaction: a session that stops there is ended
    answer: timedelta  # a MySQL or MariaDB that says nothing for so long is given up


def open_engine(
    url: URL,
    limits: Limits,
    connections: int | None = None,
    *,
    begins_with_statement: bool = False,
    whose: Membership | None = None,
) -> Engine:
    """An engine whose transactions are bounded by `limits`, in UTC, and in READ COMMITTED. Connects when first used.

    With `connections`, it never has more of them. Where a transaction `begins_with_statement`, PostgreSQL gets BEGIN and the
    transaction's first statement in one request: not for callers that use the driver's own connection before any of ours.
    With `whose`, no session begins on a database that belongs to another shard: see `shardctl.shard.membership`.
    """
    pool = {} if connections is None else {"pool_size": connections, "max_overflow": 0}
    product = url.get_backend_name()
    if product == "sqlite":
        engine = _sqlite(url, limits)
        if whose:
            membership.guard(engine, whose)
        return engine
    if product == "postgresql":
        engine = _postgresql(url, limits, pool, begins_with_statement=begins_with_statement)
    else:
        engine = _mysql(url, limits, pool)
    _ping_what_was_idle(engine)
    event.listen(engine, "handle_error", _leave_what_cant_write)
    if whose:
        membership.guard(engine, whose, begin=postgresql_begin(limits) if product == "postgresql" else "")
    return engine


def _postgresql(url: URL, limits: Limits, pool: dict[str, Any], *, begins_with_statement: bool) -> Engine:
    url, prepare_threshold = databaseurl.prepare_threshold(url)
    hosts = url.query.get("host") or ""
    if isinstance(hosts, str) and "," not in hosts:
        # Asked below instead: libpq believes what a pooler remembers of its first session, however long ago that was.
        url = url.update_query_dict({"target_session_attrs": "any"})
    engine = create_engine(
        url,
        connect_args={
            "autocommit": True,  # of the driver: it would send a BEGIN of its own
            "prepare_threshold": prepare_threshold,
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "client_encoding": "utf8",
            "application_name": limits.application,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": LOST_HOST_MS,  # keepalives are silent while something sent is unanswered
        },
        **pool,
    )
    begin = postgresql_begin(limits)

    @event.listens_for(engine, "connect")
    def _(driver: Any, _: Any) -> None:
        if driver.execute("SHOW transaction_read_only").fetchone()[0] == "on":
            raise engine.dialect.loaded_dbapi.OperationalError(
                "session is read-only: the server is a standby, or takes no writes"
            )

    if begins_with_statement:
        _begin_with_statement(engine, begin)
    else:
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin).close())
    return engine


def _begin_with_statement(engine: Engine, begin: str) -> None:
    """Send `begin` with a transaction's first statement: the driver sends a text without parameters whole, whatever is in it.

    A statement with parameters can't share a request, and comes after it. The driver is asked whether a transaction is open:
    after a first statement that the server could not even parse, none is.
    """
    from psycopg.pq import TransactionStatus

    idle = TransactionStatus.IDLE

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def _(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        driver: Any = connection.connection.driver_connection
        if driver.info.transaction_status != idle:
            return statement, parameters
        if parameters:
            cursor.execute(begin)
            return statement, parameters
        return f"{begin}; {statement}", parameters

    @event.listens_for(engine, "after_cursor_execute")
    def _(_: Connection, cursor: Any, statement: str, *__: Any) -> None:
        if statement.startswith(begin):
            while cursor.nextset():  # to the statement's own result, which is the last
                pass


def _ping_what_was_idle(engine: Engine) -> None:
    """After a fail-over, or a time-out of the server's, a dead connection is found before a transaction meets it.

    As the pool's own `pre_ping`, but without a round trip for a connection that was in use a moment ago.
    """

    @event.listens_for(engine, "checkin")
    def _(_: Any, record: ConnectionPoolEntry) -> None:
        record.info[_RETURNED_AT] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _(driver: Any, record: ConnectionPoolEntry, _: Any) -> None:
        returned_at = record.info.get(_RETURNED_AT)
        if returned_at is None or time.monotonic() < returned_at + PING_AFTER_SECONDS:
            return
        try:
            engine.dialect.do_ping(driver)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error


def postgresql_begin(limits: Limits) -> str:
    """BEGIN and what holds until the end of this transaction, in one request: the driver sends a text without parameters whole.

    DEFAULT is what the role, the database or the URL says; it undoes what another client of a pooler left in the session.
    """
    settings = {
        "statement_timeout": _milliseconds(limits.statement),
        # One that is no shorter than the statement's would say nothing.
        "lock_timeout": _milliseconds(limits.lock) if limits.lock < limits.statement else "0",
        "idle_in_transaction_session_timeout": _milliseconds(limits.idle),
        # The fence may be held alone: should this machine vanish, the server must notice.
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        # Values travel as text, whatever a role or a database has made its own way of writing them.
        "timezone": "'UTC'",
        "datestyle": "'ISO'",
        "intervalstyle": "'postgres'",
        "bytea_output": "'hex'",
        "extra_float_digits": "1",
        # A row that a policy hides looks like one that isn't there: so it is an error, as for pg_dump.
        "row_security": "off",
        # Which tables a name means, as whom, and whether a commit is on disk.
        "search_path": "DEFAULT",
        "role": "DEFAULT",
        "synchronous_commit": "DEFAULT",
    }
    local = "; ".join(f"SET LOCAL {name} TO {value}" for name, value in settings.items())
    # What others have committed is seen at once.
    return f"BEGIN ISOLATION LEVEL READ COMMITTED; {local}"


def _mysql(url: URL, limits: Limits, pool: dict[str, Any]) -> Engine:
    session = {
        # What doesn't fit is an error instead of another value; a key of 0 stays 0.
        "sql_mode": "'TRADITIONAL,NO_AUTO_VALUE_ON_ZERO'",
        "time_zone": "'+00:00'",
        "innodb_lock_wait_timeout": _seconds(limits.lock),
        "lock_wait_timeout": _seconds(limits.lock),
        "wait_timeout": _seconds(limits.idle),  # also ends a transaction whose client is stopped
        "net_write_timeout": _seconds(limits.idle),  # rows are read as they are needed, and the server waits for us
    }
    listed = ", ".join(f"{name} = {value}" for name, value in session.items())
    bound = f" /*M! , max_statement_time = {_seconds(limits.statement)} */"  # MariaDB's alone
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",  # what others have committed is seen at once; no locks on gaps
        connect_args={
            "charset": "utf8mb4",
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "read_timeout": CONNECT_TIMEOUT_SECONDS,  # of the greeting, which `connect_timeout` doesn't bound
            "write_timeout": _seconds(limits.answer),
            "init_command": f"SET SESSION {listed}{bound}",
        },
        **pool,
    )

    @event.listens_for(engine, "connect")
    def _(driver: Any, record: ConnectionPoolEntry) -> None:
        driver._read_timeout = _seconds(limits.answer)  # noqa: SLF001 - the server's own limits come first
        with driver.cursor() as cursor:
            cursor.execute("SELECT @@max_allowed_packet")
            record.info[MAX_PACKET] = cursor.fetchone()[0]

    return engine


def _milliseconds(limit: timedelta) -> str:
    return f"'{limit // timedelta(milliseconds=1)}ms'"


def _seconds(limit: timedelta) -> int:
    return max(1, limit // timedelta(seconds=1))


def _sqlite(url: URL, limits: Limits) -> Engine:
    engine = create_engine(url, connect_args={"timeout": limits.lock.total_seconds(), "check_same_thread": False})
    event.listen(engine, "connect", configure_sqlite)
    return engine


def configure_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.create_function(UNHEX, 1, bytes.fromhex, deterministic=True)
    connection.create_function(
        FROM_BASE64, 1, lambda text: None if text is None else base64.b64decode(text), deterministic=True
    )
    connection.isolation_level = None  # the driver would begin transactions behind our back
    for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}")


def _leave_what_cant_write(context: ExceptionContext) -> None:
    """A server that was made a standby, or read-only, under our sessions: the next try asks every host for a writable one."""
    error = context.original_exception
    state, number = getattr(error, "sqlstate", None), next(iter(error.args), None)
    if state == _READ_ONLY_TRANSACTION or number in _MYSQL_READ_ONLY:
        context.is_disconnect = True  # which drops this connection, and its pool's others with it
