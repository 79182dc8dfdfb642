"""Which fleet and shard a database belongs to: one row, in the table `shardctl_shard`.

Invariants kept here and in the transaction that calls `record`:
- the row is written in the transaction that makes the lanes, and only where there is none. One that names another fleet or
  shard is replaced only where the caller names whom it belonged to, and deleted where that shard has gone. So of two shards that
  are given one database, one is refused;
- a shard's session on a database whose row names another ends before its first statement: see `guard`. So neither a wrong URL
  nor the file of another fleet reads or writes anything there.

A database that an older version made has no row until `shardctl provision` adds it, and is believed meanwhile. The table isn't
among `schema.metadata`, since no consumer waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Engine,
    MetaData,
    SmallInteger,
    String,
    Table,
    delete,
    event,
    func,
    insert,
    select,
    update,
)

from shardctl.errors import ShardctlError
from shardctl.shard.databaseurl import shown

_MYSQL = ("mysql", "mariadb")
_OPTIONS: dict[str, Any] = {
    f"{name}_{option}": value for name in _MYSQL for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
}
table = Table(
    "shardctl_shard",
    MetaData(),
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("fleet", String(255), nullable=False),
    Column("shard", String(255), nullable=False),
    Column("made_time", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("id = 1", name="shardctl_shard_one_row"),
    **_OPTIONS,
)

# Whether this user may read the table. Asked first: a missing table or right is no error then, which PostgreSQL would log.
_IS_READABLE = {
    "postgresql": (
        f"SELECT 1 FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass('{table.name}') "  # noqa: S608
        "AND pg_catalog.has_table_privilege(oid, 'SELECT')"
    ),
    **dict.fromkeys(
        _MYSQL,
        f"SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '{table.name}'",  # noqa: S608
    ),
    "sqlite": f"SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{table.name}'",  # noqa: S608
}
_ROW = f"SELECT fleet, shard FROM {table.name} WHERE id = 1"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Membership:
    """A shard, by the names that never change: its fleet's and its own."""

    fleet: str
    shard: str

    def __str__(self) -> str:
        return f"shard {self.shard} of fleet {self.fleet}"


class ForeignDatabaseError(ShardctlError):
    """The database belongs to another fleet or shard. Nothing was read or written there."""

    def __init__(self, where: str, present: Membership, own: Membership) -> None:
        self.present, self.own = present, own
        super().__init__(
            f"database {where} belongs to {present}, and was given as that of {own}. Nothing was written there. Fix its URL, or "
            f"use the file of fleet {present.fleet}. If the database is a copy, or shall belong to {own} from now on, run "
            f"`shardctl provision --take-over {present.fleet}/{present.shard}`."
        )


def read(connection: Connection) -> Membership | None:
    """Whose the database is; None where it has no record of it, or this user may not read that."""
    return _read(connection.dialect.name, lambda statement: connection.exec_driver_sql(statement).first())


def _read(product: str, first: Callable[[str], Any]) -> Membership | None:
    if not first(_IS_READABLE[product]):
        return None
    row = first(_ROW)
    return Membership(*row) if row else None


def check(connection: Connection, own: Membership) -> None:
    """Raise ForeignDatabaseError where the database belongs to another."""
    _refuse(read(connection), own, connection.engine)


def _refuse(present: Membership | None, own: Membership, engine: Engine) -> None:
    if present is not None and present != own:
        raise ForeignDatabaseError(shown(engine.url), present, own)


def guard(engine: Engine, own: Membership, begin: str = "") -> None:
    """Let each new session of the engine be refused by ForeignDatabaseError where the database belongs to another.

    What a session costs more is some round trips when it connects, and nothing a transaction. `begin` opens a transaction in
    which names mean what they mean in the engine's own.
    """

    @event.listens_for(engine, "connect")
    def _(driver: Any, _: Any) -> None:
        cursor = driver.cursor()

        def first(statement: str) -> Any:
            cursor.execute(statement)
            return cursor.fetchone()

        try:
            if begin:
                cursor.execute(begin)
            _refuse(_read(engine.dialect.name, first), own, engine)
            cursor.close()
            driver.rollback()
        except BaseException:
            driver.close()  # no pool knows it yet
            raise


def record(connection: Connection, own: Membership, instead_of: Membership | None = None) -> None:
    """Record whose the database is, where nothing is recorded, or `instead_of` whom it belonged to. Safe to run again.

    The table must be there. Raises ForeignDatabaseError where the row names anybody else.
    """
    row = connection.execute(select(table.c.fleet, table.c.shard).with_for_update()).first()
    present = Membership(*row) if row else None
    if present is None:
        connection.execute(insert(table).values(id=1, fleet=own.fleet, shard=own.shard))
    elif present == instead_of:
        connection.execute(update(table).values(fleet=own.fleet, shard=own.shard, made_time=func.now()))
    else:
        _refuse(present, own, connection.engine)


def release(connection: Connection, own: Membership) -> None:
    """Let a database that belonged to this shard, which holds no slots any more, be anybody's. Safe to run again."""
    if read(connection) == own:
        connection.execute(delete(table))


def create(connection: Connection) -> None:
    table.create(connection, checkfirst=True)
