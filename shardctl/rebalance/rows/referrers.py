"""Foreign keys that refer to moved tables from tables that don't move, wherever on the server these lie.

Deleting what has moved away would follow such a key. PostgreSQL shows all constraints of a database to everybody. On MySQL and
MariaDB a key may come from another database, and only InnoDB's own list, which takes the PROCESS privilege, has those of tables
that the user has no rights on. Without it the answer is unknown, and that is a reason like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from shardctl.rebalance.rows.catalog import POSTGRESQL_FAMILIES, mysql_account, place_of, regclasses
from shardctl.rebalance.rows.shape import SlotTable
from shardctl.rebalance.rows.values import MYSQL

# A key that refers to a partition, or is a partition's, derives from the declared key.
_POSTGRESQL = f"""{POSTGRESQL_FAMILIES},
derived (oid, parent) AS (
    SELECT k.oid, k.conparentid FROM pg_catalog.pg_constraint k
    WHERE k.contype = 'f' AND k.confrelid IN (SELECT member FROM family)
    UNION
    SELECT k.oid, k.conparentid FROM pg_catalog.pg_constraint k JOIN derived ON k.oid = derived.parent
)
SELECT k.conname, CAST(CAST(k.conrelid AS regclass) AS text), CAST(CAST(k.confrelid AS regclass) AS text),
       (SELECT min(place) FROM family WHERE member = k.conrelid AND NOT part),
       (SELECT min(place) FROM family WHERE member = k.confrelid AND NOT part),
       (SELECT min(place) FROM family WHERE member = k.conrelid AND part)
FROM derived JOIN pg_catalog.pg_constraint k ON k.oid = derived.oid
WHERE derived.parent = 0
ORDER BY 2, 1"""  # noqa: S608
_DECODED = "CONVERT(CAST(substring_index({0}, '/', {1}) AS BINARY) USING filename)"  # as names of files are written
_MYSQL = f"""
SELECT substring_index(id, '/', -1), {_DECODED.format("for_name", 1)}, {_DECODED.format("for_name", -1)},
       {_DECODED.format("ref_name", 1)}, {_DECODED.format("ref_name", -1)}
FROM information_schema.%s ORDER BY for_name, id"""  # noqa: S608
_SQLITE = """
SELECT m.name, f."table" FROM sqlite_master m JOIN pragma_foreign_key_list(m.name) f WHERE m.type = 'table' ORDER BY 1, 2"""
_ACCESS_DENIED = 1227


@dataclass(frozen=True, slots=True)
class _Key:
    """`child` and `parent` are the moved tables that it lies between, if any; `whole` the one that its table is a part of."""

    constraint: str
    table: str
    refers_to: str
    child: SlotTable | None
    parent: SlotTable | None
    whole: SlotTable | None = None


def stray_keys(connection: Connection, tables: Sequence[SlotTable]) -> Iterator[str]:
    """Why a deletion of rows of these tables may reach rows that don't move with them, each reason with the way out."""
    product = connection.dialect.name
    try:
        keys = list(_keys(connection, tables))
    except DBAPIError as error:
        if product not in MYSQL or error.orig is None or error.orig.args[:1] != (_ACCESS_DENIED,):
            raise
        yield (
            "foreign keys from other databases of this server, which a deletion would follow, are shown only to users with the "
            f"PROCESS privilege. Run `GRANT PROCESS ON *.* TO {mysql_account(connection)}`."
        )
        return
    for key in keys:
        drop = _drop(product, key)
        if key.parent is None:
            yield (
                f"table {key.table}: its foreign key {key.constraint} refers to {key.refers_to}, of which a moved table is a "
                f"part. Let it refer to the moved table itself, or {drop}."
            )
        elif key.whole is not None:
            yield (
                f"table {key.table}, a part of {key.whole.name}, has a foreign key {key.constraint} of its own to "
                f"{key.parent.name}. Declare it on {key.whole.name}, or {drop}."
            )
        elif key.child is None:
            yield (
                f"table {key.table} refers to {key.parent.name}{_by(key)}, but its own rows don't belong to slots and would stay "
                f"behind. Name it under slot_tables with a slot column, or {drop}."
            )


def _by(key: _Key) -> str:
    return f" by its foreign key {key.constraint}" if key.constraint else ""


def _drop(product: str, key: _Key) -> str:
    if product == "sqlite":
        return "drop its foreign key"
    what = "CONSTRAINT" if product == "postgresql" else "FOREIGN KEY"
    return f"run `ALTER TABLE {key.table} DROP {what} {key.constraint}`"


def _keys(connection: Connection, tables: Sequence[SlotTable]) -> Iterator[_Key]:
    """Every key that refers to one of the tables."""
    if connection.dialect.name == "postgresql":
        yield from _of_postgresql(connection, tables)
    elif connection.dialect.name in MYSQL:
        yield from _of_mysql(connection, tables)
    else:
        by_name = {place_of(table)[1].lower(): table for table in tables}
        for name, refers_to in connection.exec_driver_sql(_SQLITE):
            if parent := by_name.get(refers_to.lower()):
                yield _Key("", name, refers_to, by_name.get(name.lower()), parent)


def _of_postgresql(connection: Connection, tables: Sequence[SlotTable]) -> Iterator[_Key]:
    for constraint, table, refers_to, *places in connection.exec_driver_sql(_POSTGRESQL, (regclasses(tables),)):
        yield _Key(constraint, table, refers_to, *(None if place is None else tables[place] for place in places))


def _of_mysql(connection: Connection, tables: Sequence[SlotTable]) -> Iterator[_Key]:
    is_mariadb = getattr(connection.dialect, "is_mariadb", False)
    fold = str.lower if connection.exec_driver_sql("SELECT @@lower_case_table_names").scalar() else str
    here = fold(str(connection.exec_driver_sql("SELECT database()").scalar()))
    by_place = {tuple(map(fold, place_of(table))): table for table in tables}
    rows = connection.exec_driver_sql(_MYSQL % ("INNODB_SYS_FOREIGN" if is_mariadb else "INNODB_FOREIGN"))
    for constraint, *names in rows:
        space, name, parent_space, parent_name = map(fold, names)
        if parent := by_place.get((parent_space, parent_name)):
            shown = name if space == here else f"{space}.{name}"
            yield _Key(constraint, shown, parent.name, by_place.get((space, name)), parent)
