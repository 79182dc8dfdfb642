"""The shard's database: its engine, and what its errors mean."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from math import ceil
from traceback import clear_frames
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from consumer.database import packet
from consumer.database.dialects import DIALECTS, Dialect
from consumer.database.sqlstate import judge
from consumer.errors import BlockedError, DataFaultError, TableNotReadyError, TransientError
from shardctl.errors import UsageError
from shardctl.fleet.settings.consuming import Batching
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard.engine import CONNECT_TIMEOUT_SECONDS, Limits, open_engine
from shardctl.shard.keys import given_out
from shardctl.shard.mapped import lacking
from shardctl.shard.membership import ForeignDatabaseError, Membership
from shardctl.shard.storage import without_transactions

log = logging.getLogger(__name__)


def dialect_of(url: URL) -> Dialect:
    try:
        return DIALECTS[url.get_backend_name()]
    except KeyError:
        raise UsageError(
            f"no support for {url.get_backend_name()!r} databases; there is: {', '.join(DIALECTS)}"
        ) from None


def engine_of(
    url: URL,
    settings: Batching,
    login: Callable[[], tuple[str | None, str | None]] | None = None,
    whose: Membership | None = None,
) -> Engine:
    """An engine whose sessions can't hang: a replica that is stopped mid-transaction is cut off by the server.

    With `login`, each new connection asks it for user and password, in place of the URL's. With `whose`, no session begins on a
    database that belongs to another shard.
    """
    bound = settings.statement_timeout
    limits = Limits("shardctl-consumer", bound, bound, bound, answer=bound + timedelta(seconds=CONNECT_TIMEOUT_SECONDS))
    connections = settings.concurrency + 1  # one for maintenance
    engine = open_engine(url, limits, connections, begins_with_statement=True, whose=whose)
    if login is not None:
        log_in_by(engine, login)
    return engine


def log_in_by(engine: Engine, login: Callable[[], tuple[str | None, str | None]]) -> None:
    """Ask `login` for user and password of each new connection."""

    @event.listens_for(engine, "do_connect")
    def _(_dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
        given = dict(zip(("user", "password"), login(), strict=True))
        options.update({name: value for name, value in given.items() if value is not None})


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours: DataFaultError if the data is at fault, BlockedError if a statement can't finish now,
    TransientError if nothing works.
    """
    try:
        yield
    except DBAPIError as error:
        # SQLAlchemy's frames refer to each other, and would keep the batch until garbage is collected.
        clear_frames(error.__traceback__)
        first_line = _first_line(error)
        verdict = judge(error)
        if verdict.reason:
            raise DataFaultError(verdict.reason, first_line) from error
        again = BlockedError if verdict.alone else TransientError
        raise again(f"database: {first_line}" + (f" ({verdict.why})" if verdict.why else "")) from error
    except ForeignDatabaseError as error:
        raise TransientError(str(error)) from error  # until somebody fixes the URL
    except (SQLAlchemyError, OSError) as error:
        raise TransientError(f"database: {error}") from error


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).partition("\n")[0]


@contextmanager
def needed_by_all() -> Iterator[None]:
    """What every batch needs: where this is blocked, all of them are, and TransientError says so."""
    try:
        with translated():
            yield
    except BlockedError as error:
        raise TransientError(str(error)) from error


@contextmanager
def needed_by(message_types: Collection[str]) -> Iterator[None]:
    """What the writes of some message types need: raises TableNotReadyError where it isn't there."""
    try:
        yield
    except DBAPIError as error:
        verdict = judge(error)
        if not verdict.of_type:
            raise
        clear_frames(error.__traceback__)
        raise TableNotReadyError(message_types, f"{_first_line(error)} ({verdict.why})") from error


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


def check_keys(engine: Engine, dialect: Dialect, kinds: Mapping[str, MessageType]) -> None:
    """Raises TransientError while the database gives out keys of mapped tables: a write's row could land under another key."""
    with transaction(engine, dialect) as connection:
        if faults := given_out(connection, kinds):
            raise TransientError(" ".join(faults))


def check_storage(engine: Engine, dialect: Dialect, kinds: Mapping[str, MessageType]) -> None:
    """Raises TransientError while a mapped table's engine has no transactions: what is rolled back would stay there."""
    with transaction(engine, dialect) as connection:
        if faults := without_transactions(connection, kinds.values()):
            raise TransientError(" ".join(faults))


def check_columns(engine: Engine, dialect: Dialect, kinds: Mapping[str, MessageType]) -> None:
    """Raises TransientError while a mapped table lacks a column: a rollout stops at its first replica, and the old ones go on."""
    with transaction(engine, dialect) as connection:
        if lacks := lacking(connection, kinds):
            raise TransientError("; ".join(map(str, lacks)))


def check_packets(engine: Engine, dialect: Dialect) -> None:
    """Raises TransientError where the server takes too little in one request; says so where it may not take every message."""
    with transaction(engine, dialect) as connection:
        room = packet.room(connection)
    if room is None or room >= packet.ANY_MESSAGE_BYTES:
        return
    if room < packet.LEAST_BYTES:
        raise TransientError(
            f"the server's max_allowed_packet is {room:,}: set it to at least {packet.LEAST_BYTES:,}, better "
            f"{packet.ANY_MESSAGE_BYTES:,}"
        )
    log.warning(
        "the server's max_allowed_packet is %s: a write that takes more in a request will be dead-lettered as %s. "
        "%s is enough for every message",
        f"{room:,}",
        packet.TOO_LARGE,
        f"{packet.ANY_MESSAGE_BYTES:,}",
        extra={"action": "small_packets"},
    )
