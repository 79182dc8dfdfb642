"""The control plane's way into a shard's database: an engine, a transaction that writes, a view that stays as it is.

Whatever the database refuses comes out as DatabaseError, whose text never holds a password.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, SQLAlchemyError

from shardctl.errors import ShardctlError
from shardctl.shard import databaseurl
from shardctl.shard.engine import HOLDS_MYSQL_SETTINGS, MYSQL, PRODUCTS, SETTINGS_ARE_LOST, Limits, open_engine
from shardctl.shard.membership import ForeignDatabaseError, Membership

LIMITS = Limits(
    "shardctl",
    statement=timedelta(hours=1),  # copying a large slot and checking a large table are single statements
    lock=timedelta(seconds=30),  # no consumer keeps the fence for longer than its own statement timeout
    idle=timedelta(minutes=10),  # one side of a copy waits while the other is checked
    answer=timedelta(hours=1),
)
SEE_EVERY_ROW = (
    "Let the user see every row: `ALTER ROLE … BYPASSRLS`, or make it the table's owner, or a member of the owner's role, where "
    "the table doesn't FORCE ROW LEVEL SECURITY."
)


class DatabaseError(ShardctlError):
    """A shard's database can't be reached, or refused a statement. Its cause is SQLAlchemy's error."""


def connect(
    url: str, limits: Limits = LIMITS, connections: int | None = None, *, whose: Membership | None = None
) -> Engine:
    """An engine whose sessions are in UTC and don't wait for ever. Connects when first used; `dispose()` it when done.

    With `connections`, it never has more of them. With `whose`, its sessions are refused where the database belongs to another.

    Raises DatabaseError where the URL can't be used. Its sessions do so inside `writing` and `snapshot`.
    """
    try:
        parsed = databaseurl.parse(url)
    except databaseurl.DatabaseUrlError as error:
        raise DatabaseError(f"the database URL can't be used: {error}") from error
    backend = parsed.get_backend_name()
    if backend not in PRODUCTS:
        raise DatabaseError(f"no support for {backend!r} databases; there is: {', '.join(PRODUCTS)}")
    engine = open_engine(parsed, limits, connections, whose=whose)
    event.listen(engine, "handle_error", _remember_engine)
    return engine


@contextmanager
def connected(fleet: str, urls: Mapping[str, str]) -> Iterator[dict[str, Engine]]:
    """An engine for the database of each of a fleet's shards, each refused where it belongs to another. Disposed at the end.

    Raises DatabaseError where a URL can't be used, or is given for two shards.
    """
    with ExitStack() as opened:
        engines = {}
        for shard, url in urls.items():
            engines[shard] = connect(url, whose=Membership(fleet, shard))
            opened.callback(engines[shard].dispose)
        refuse_shared(engines)
        yield engines


def refuse_shared(engines: Mapping[str, Engine]) -> None:
    """Raise DatabaseError where two shards have one URL: each command on one would work on the other."""
    first: dict[tuple[object, ...], str] = {}
    for shard, engine in engines.items():
        url = engine.url
        place = (url.get_backend_name(), url.host, url.port, url.database, *url.query.get("host", ()))
        if (other := first.setdefault(place, shard)) != shard:
            raise DatabaseError(f"shards {other} and {shard} have one database URL. Give each a database of its own.")


def is_transient(error: DatabaseError) -> bool:
    """Whether trying again may help: a lost connection, a lock that took too long, a deadlock."""
    return isinstance(error.__cause__, OperationalError | InterfaceError | InternalError | OSError)


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed when the block ends, rolled back when it raises."""
    with _session(engine) as connection, connection.begin():
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # who reads first and writes then may be refused
        _verify_session(connection)
        yield connection


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """One view of all that was committed when the block began; nothing that commits later is seen. It can't write.

    Raises DatabaseError, also for a file of SQLite's that isn't there: connecting would make it.
    """
    check_file(engine)
    with _session(engine) as connection, connection.begin():
        for statement in SNAPSHOT[engine.dialect.name]:
            connection.exec_driver_sql(statement).close()
        _verify_session(connection)
        try:
            yield connection
        finally:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = OFF")


def check_file(engine: Engine, maker: str = "`shardctl provision` makes it for a shard of the file") -> None:
    """Raise DatabaseError for a file that isn't there: SQLite would make an empty one for a person who only reads."""
    path = engine.url.database or ":memory:"
    if engine.dialect.name == "sqlite" and not path.startswith(("file:", ":memory:")) and not Path(path).exists():
        raise DatabaseError(f"database {Path(path).absolute()}: there is no such file; {maker}")


_MYSQL_SNAPSHOT = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
)
SNAPSHOT = {
    # On PostgreSQL and SQLite a view begins with its first query.
    "postgresql": ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY", "SELECT 1"),
    "mysql": _MYSQL_SNAPSHOT,
    "mariadb": _MYSQL_SNAPSHOT,
    "sqlite": ("PRAGMA query_only = ON", "BEGIN DEFERRED", "SELECT 1 FROM sqlite_master LIMIT 1"),
}


def _verify_session(connection: Connection) -> None:
    """Inside a transaction, where no proxy changes the session any more."""
    if connection.dialect.name not in MYSQL:
        return
    if not connection.exec_driver_sql(f"SELECT {HOLDS_MYSQL_SETTINGS}").scalar():
        connection.invalidate()
        raise DatabaseError(f"database {where(connection.engine)}: {SETTINGS_ARE_LOST}")


def error_of(engine: Engine, error: BaseException) -> DatabaseError:
    """What to raise, from `error`. For what uses a driver without SQLAlchemy, too."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    message = str(cause).strip().partition("\n")[0]
    fix = ""
    if "row-level security" in message:
        fix = f". {SEE_EVERY_ROW}"
    elif _is_missing_table(cause) and "shardctl_" in message:
        fix = ". Its tables aren't those of this version of shardctl: run `shardctl provision`"
    return DatabaseError(f"database {where(engine)}: {message}{fix}")


def _is_missing_table(cause: BaseException | None) -> bool:
    """By codes, where there are any: PostgreSQL's words are in the server's language."""
    state, first = getattr(cause, "sqlstate", None), next(iter(getattr(cause, "args", ())), "")
    return state == "42P01" or first == 1146 or str(first).startswith("no such table: ")


def where(engine: Engine) -> str:
    """The database's URL, without secrets."""
    return databaseurl.shown(engine.url)


@contextmanager
def _session(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.connect() as connection:
            yield connection
    except ForeignDatabaseError as error:
        raise DatabaseError(str(error)) from error
    except (SQLAlchemyError, sqlite3.Error) as error:
        # Of two sessions in one block, this may be the other one's error.
        raise error_of(getattr(error, _REFUSED_BY, engine), error) from error


_REFUSED_BY = "refused_by"


def _remember_engine(context: ExceptionContext) -> None:
    if context.sqlalchemy_exception is not None and context.engine is not None:
        setattr(context.sqlalchemy_exception, _REFUSED_BY, context.engine)
