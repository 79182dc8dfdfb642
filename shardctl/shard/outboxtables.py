"""The tables of an outbox, in the application's database or in a shard's: writes that wait to be published.

They have a MetaData of their own, for applications that make their tables by Alembic.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.dialects import mysql

_MYSQL = ("mysql", "mariadb")
_MYSQL_OPTIONS: dict[str, Any] = {
    f"{name}_{option}": value for name in _MYSQL for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
}
_LONG_TEXT = Text().with_variant(mysql.LONGTEXT(), *_MYSQL)
# A DATETIME of MySQL's would hold the application's local time.
_MOMENT = DateTime(timezone=True).with_variant(mysql.TIMESTAMP(), *_MYSQL)

metadata = MetaData()

# A row is a message as it will travel. A position is used once; for the order see `shardctl.outbox.queue`.
outbox = Table(
    "shardctl_outbox",
    metadata,
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("slot", Integer, nullable=False),
    Column("attributes", _LONG_TEXT, nullable=False),  # JSON
    Column("body", LargeBinary().with_variant(mysql.LONGBLOB(), *_MYSQL), nullable=False),
    Column("enqueued_time", _MOMENT, nullable=False, server_default=func.now()),
    Column("refused", _LONG_TEXT),  # why it can't be published; NULL while it waits
    Column("behind", BigInteger),  # the refused write of its key that it waits for; NULL where there is none
    sqlite_autoincrement=True,  # else positions are given out again once the table is empty
    **_MYSQL_OPTIONS,
)

# One row: the relay that works holds its lock.
turn = Table(
    "shardctl_outbox_turn",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    CheckConstraint("id = 1", name="shardctl_outbox_turn_one_row"),
    **_MYSQL_OPTIONS,
)


def create(connection: Connection) -> None:
    """Create what is missing. What is there is left alone."""
    metadata.create_all(connection)
    fill(connection)


def fill(connection: Connection) -> None:
    """Give the table of the turn its row, where a migration tool made the tables."""
    if connection.scalar(select(turn.c.id)) is None:
        connection.execute(insert(turn).values(id=1))


def fault_of(connection: Connection) -> str | None:
    """Why the outbox can't be used as it is, and what to do; None where it can."""
    present = set(inspect(connection).get_table_names())
    if missing := sorted(set(metadata.tables) - present):
        return f"there is no {' and no '.join(missing)}: run `shardctl outbox create`"
    if lacking := lacking_columns(connection, metadata):
        return (
            f"there is no column {', '.join(lacking)}: the outbox is of a version of shardctl that was never released. Let that "
            f"version publish what waits, drop {' and '.join(sorted(metadata.tables))}, and run `shardctl outbox create`"
        )
    return None


def lacking_columns(connection: Connection, tables: MetaData) -> tuple[str, ...]:
    """The columns that tables lack which are there, such as `shardctl_outbox.behind`."""
    present = inspect(connection).get_multi_columns(filter_names=list(tables.tables))
    names = {name: {column["name"] for column in columns} for (_, name), columns in present.items()}
    return tuple(
        str(column)
        for name, table in tables.tables.items()
        for column in table.columns
        if name in names and column.name not in names[name]
    )
