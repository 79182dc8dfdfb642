"""Adopt tables that are older than their fleet: each row gets its slot, while others write to them.

Rows are given slots in chunks, each in a transaction of its own, and only those that have none. So it may be stopped anywhere and
run again, and a second run finds rows that were written without a slot meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, inspect

from shardctl.errors import ShardctlError
from shardctl.fleet.keyspace import SlotRule, SlotSet
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.rebalance.rows.catalog import place_of
from shardctl.rebalance.rows.checksum import expected_slot, prepare
from shardctl.rebalance.rows.shape import Named, SlotTable, look_at, quoted
from shardctl.shard import database
from shardctl.shard.engine import MYSQL

CHUNK_ROWS = 5_000


class AdoptError(ShardctlError):
    """A table can't be adopted as it is."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What a table lacks. `elsewhere` counts rows whose slot is another shard's; `unknown` those whose key gives no slot."""

    shard: str
    table: str
    lacks_column: bool
    rows: int
    without_slot: int
    elsewhere: int
    unknown: int
    lacks_index: bool

    @property
    def fit(self) -> bool:
        return not (self.elsewhere or self.unknown)


def survey(engine: Engine, shard: str, kind: MessageType, rule: SlotRule, slots: SlotSet) -> Adoption | None:
    """What the type's table lacks in a shard's database; None where the table isn't there. Reads each row once.

    Raises AdoptError, DatabaseError.
    """
    with database.snapshot(engine) as connection:
        lookup = _table(connection, kind)
        if lookup is None:
            return None
        table, has_column = lookup
        prepare(connection)
        wanted = _expected(connection, table, kind, rule)
        own_slots = " OR ".join(f"{wanted} BETWEEN {first} AND {last}" for first, last in slots.ranges) or "1 = 0"
        without = f"{table.slot_sql} IS NULL" if has_column else "1 = 1"
        counts = connection.exec_driver_sql(
            f"SELECT count(*), sum(CASE WHEN {without} THEN 1 ELSE 0 END), "  # noqa: S608
            f"sum(CASE WHEN {wanted} IS NOT NULL AND NOT ({own_slots}) THEN 1 ELSE 0 END), "
            f"sum(CASE WHEN {wanted} IS NULL THEN 1 ELSE 0 END) FROM {table.sql}"
        ).one()
        rows, without_slot, elsewhere, unknown = (int(count or 0) for count in counts)
        return Adoption(
            shard, kind.table, not has_column, rows, without_slot, elsewhere, unknown, has_column and not table.indexed
        )


def add_column(engine: Engine, kind: MessageType) -> None:
    """Add the slot column, empty. On PostgreSQL and MySQL 8 it doesn't rewrite the table, and locks it only for a moment."""
    product = engine.dialect.name
    with database.writing(engine) as connection:
        column = quoted(product, kind.slot_column)
        connection.exec_driver_sql(f"ALTER TABLE {quoted(product, kind.table)} ADD COLUMN {column} integer")


def give_slots(engine: Engine, kind: MessageType, rule: SlotRule, progress: Callable[[int], None]) -> int:
    """Give each row that has no slot its own, in the order of the primary key; how many. `progress` gets each chunk's rows read.

    Raises AdoptError, DatabaseError.
    """
    given, after = 0, None
    while True:
        with database.writing(engine) as connection:
            lookup = _table(connection, kind)
            if lookup is None or not lookup[1]:
                raise AdoptError(f"table {kind.table} has no slot column {kind.slot_column!r}")
            table = lookup[0]
            prepare(connection)
            keys = _primary_key(table)
            names = ", ".join(quoted(engine.dialect.name, name) for name in keys)
            mark = "?" if engine.dialect.name == "sqlite" else "%s"
            marks = f"({', '.join([mark] * len(keys))})"
            # Compared with a key, a row whose own has a NULL in it is neither before nor after.
            null = "(" + " OR ".join(f"{quoted(engine.dialect.name, name)} IS NULL" for name in keys) + ")"
            begins = f" AND ({names}) > {marks}" if after else ""
            read = connection.exec_driver_sql(
                f"SELECT {names} FROM {table.sql} WHERE NOT {null}{begins} ORDER BY {names} LIMIT {CHUNK_ROWS}",  # noqa: S608
                after or (),
            ).all()
            wanted = _expected(connection, table, kind, rule)
            change = (
                f"UPDATE {table.sql} SET {table.slot_sql} = {wanted}{_kept_times(connection, table)} "  # noqa: S608
                f"WHERE {table.slot_sql} IS NULL AND "
            )
            if not read:
                return given + connection.exec_driver_sql(change + null).rowcount
            last = tuple(read[-1])
            between = f"({names}) <= {marks}" + (f" AND ({names}) > {marks}" if after else "")
            given += connection.exec_driver_sql(change + between, last + (after or ())).rowcount
        after = last
        progress(len(read))


def _kept_times(connection: Connection, table: SlotTable) -> str:
    """Assignments that keep what MariaDB and MySQL would set to this moment: columns with ON UPDATE CURRENT_TIMESTAMP."""
    if connection.dialect.name not in MYSQL:
        return ""
    names = connection.exec_driver_sql(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s "
        "AND extra LIKE '%%on update%%'",
        place_of(table),
    ).scalars()
    columns = (quoted(connection.dialect.name, name) for name in names)
    return "".join(f", {column} = {column}" for column in columns)


def _table(connection: Connection, kind: MessageType) -> tuple[SlotTable, bool] | None:
    """The table, and whether it has its slot column; where it hasn't, its key takes the column's place."""
    inspector = inspect(connection)
    space, _, name = kind.table.rpartition(".")
    if not inspector.has_table(name, schema=space or None):
        return None
    columns = {column["name"] for column in inspector.get_columns(name, schema=space or None)}
    has_column = kind.slot_column in columns
    missing = [column for column in kind.columns if column not in columns]
    if missing:
        raise AdoptError(f"table {kind.table} has no column {missing[0]!r}, which shards.yaml names")
    table = look_at(inspector, Named(kind.table, kind.slot_column if has_column else kind.key[0]))
    return None if table is None else (table, has_column)


def _expected(connection: Connection, table: SlotTable, kind: MessageType, rule: SlotRule) -> str:
    slot_sql = expected_slot(connection.dialect.name, table, kind, rule)
    if slot_sql is None:
        field = kind.time_bucket.field if kind.time_bucket else kind.routing_field
        raise AdoptError(
            f"table {table.name}: {field!r}, which gives the routing key, isn't a column that the database can hash as producers "
            "do. Fill the slot column yourself; docs/producers.md says how a slot is made."
        )
    return slot_sql


def _primary_key(table: SlotTable) -> tuple[str, ...]:
    if not table.unique:
        raise AdoptError(f"table {table.name} has no primary key, so its rows can't be walked through. Give it one.")
    return table.unique[0]


def finishing(engine: Engine, kind: MessageType) -> Iterator[str]:
    """Statements for an operator to run once no writer leaves rows without a slot any more."""
    product = engine.dialect.name
    table, column = quoted(product, kind.table), quoted(product, kind.slot_column)
    if product == "postgresql":
        concurrently = "" if _is_partitioned(engine, table) else "CONCURRENTLY "
        yield f"CREATE INDEX {concurrently}ON {table} ({column});"
        yield f"ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL;"
    elif product == "sqlite":
        name = quoted(product, f"{kind.table.replace('.', '_')}_{kind.slot_column}")
        yield f"CREATE INDEX {name} ON {table} ({column});"
    else:
        yield f"ALTER TABLE {table} ADD INDEX ({column}), MODIFY {column} integer NOT NULL;"


def _is_partitioned(engine: Engine, table: str) -> bool:
    """Of PostgreSQL, which makes no index of such a table concurrently."""
    with database.snapshot(engine) as connection:
        query = "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = to_regclass(%s)"
        return bool(connection.exec_driver_sql(query, (table,)).scalar())
