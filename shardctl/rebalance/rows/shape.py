"""A table whose rows belong to slots, as a database really has it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy import types as sa
from sqlalchemy.engine.reflection import Inspector

from shardctl.errors import ShardctlError
from shardctl.rebalance.rows.values import MYSQL, Kind, kind_of, precision_of, reading
from shardctl.shard import schema


class SlotTableError(ShardctlError):
    """A table whose rows belong to slots isn't as it must be."""


@dataclass(frozen=True, slots=True)
class Named:
    """A table as `shards.yaml` names it. `given`: the columns that bodies set, so the database doesn't.

    The log of changes knows its rows by the columns `key`, under the name `logged_as`; `key` is empty where it doesn't.
    """

    name: str
    slot_column: str
    given: frozenset[str] = frozenset()
    order: str | None = None  # a column that gives the rows' order, made anew by each database
    key: tuple[str, ...] = ()
    logged_as: str = ""
    in_digits: bool = False  # the log has the key's bytes as hexadecimal digits

    @property
    def own(self) -> bool:
        """Whether it is shardctl's."""
        return self.name in schema.metadata.tables


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: sa.TypeEngine[Any]
    native: str  # the type as the database writes it
    kind: Kind
    precision: int
    nullable: bool
    numbered: bool  # the database gives it the next number
    read: str  # SQL that selects it


@dataclass(frozen=True, slots=True)
class ForeignKey:
    columns: tuple[str, ...]
    table: str  # the identity of the table it refers to
    referred: tuple[str, ...]
    on_delete: str  # "" where it is unknown
    deferrable: bool
    on_update: str = ""  # likewise


@dataclass(frozen=True, slots=True)
class SlotTable:
    """`columns` are those that are moved, in the order of their names: not generated ones, nor `named.order`.

    `generated` has each generated column with what it is made from.
    """

    named: Named
    identity: str
    sql: str
    slot_sql: str
    columns: tuple[Column, ...]
    every_column: frozenset[str]
    generated: tuple[tuple[str, str], ...]
    primary: tuple[str, ...]
    unique: tuple[tuple[str, ...], ...]  # the primary key first, where there is one
    indexed: bool  # an index begins with the slot column
    foreign_keys: tuple[ForeignKey, ...]

    @property
    def name(self) -> str:
        return self.named.name

    @property
    def slot_column(self) -> Column:
        return next(column for column in self.columns if column.name == self.named.slot_column)

    @property
    def refers_to_itself(self) -> bool:
        return any(key.table == self.identity for key in self.foreign_keys)


def look_at(inspector: Inspector, wanted: Named) -> SlotTable | None:
    """The table as the database has it; None where it isn't there. Raises SlotTableError without its slot column.

    `inspector` is of a connection.
    """
    space, _, name = wanted.name.rpartition(".")
    if not inspector.has_table(name, schema=space or None):
        return None
    product = inspector.dialect.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types it doesn't know; `unfit` reports those
        listed = inspector.get_columns(name, schema=space or None)
    every = {column["name"]: column for column in listed}
    if wanted.slot_column not in every:
        raise SlotTableError(
            f"table {wanted.name} has no slot column {wanted.slot_column!r}. Add it, as an integer that holds each row's slot, "
            "or name the right one in shards.yaml."
        )
    primary = tuple(inspector.get_pk_constraint(name, schema=space or None).get("constrained_columns") or ())
    indexes = inspector.get_indexes(name, schema=space or None)
    unique = [primary] if primary else []
    unique += [tuple(filter(None, index["column_names"])) for index in indexes if index.get("unique")]
    if product == "sqlite":  # what a UNIQUE makes isn't among its indexes
        constraints = inspector.get_unique_constraints(name, schema=space or None)
        unique += [tuple(key["column_names"]) for key in constraints]
    natives = _natives(inspector, wanted.name) if product == "postgresql" else {}
    columns = [
        _column(inspector.dialect, every[column], natives.get(column), rowid=primary == (column,))
        for column in sorted(every)
        if column != wanted.order and "computed" not in every[column]
    ]
    return SlotTable(
        named=wanted,
        identity=identity_of(inspector, space, name),
        sql=quoted(product, wanted.name),
        slot_sql=quoted(product, wanted.slot_column),
        columns=tuple(columns),
        every_column=frozenset(every),
        generated=tuple(
            (name, column["computed"]["sqltext"]) for name, column in sorted(every.items()) if "computed" in column
        ),
        primary=primary,
        unique=tuple(unique),
        indexed=any(
            wanted.slot_column == first
            for first in (*(key[0] for key in unique), *(i["column_names"][0] for i in indexes))
        ),
        foreign_keys=foreign_keys(inspector, wanted.name),
    )


def foreign_keys(inspector: Inspector, table: str) -> tuple[ForeignKey, ...]:
    """Those that a table has now, in an order of their own."""
    space, _, name = table.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what else MySQL says of a table
        reflected = inspector.get_foreign_keys(name, schema=space or None)
    keys = (
        ForeignKey(
            tuple(key["constrained_columns"]),
            identity_of(inspector, key["referred_schema"] or "", key["referred_table"]),
            tuple(key["referred_columns"]),
            key.get("options", {}).get("ondelete") or ("" if inspector.dialect.name == "sqlite" else "NO ACTION"),
            bool(key.get("options", {}).get("deferrable")),
            key.get("options", {}).get("onupdate") or ("" if inspector.dialect.name == "sqlite" else "NO ACTION"),
        )
        for key in reflected
    )
    return tuple(sorted(keys, key=repr))


def _column(dialect: Dialect, reflected: Any, native: str | None, *, rowid: bool) -> Column:
    product, column_type = dialect.name, reflected["type"]
    default = str(reflected.get("default") or "")
    numbered = bool(reflected.get("identity")) or default.startswith("nextval(")
    if product in MYSQL:
        numbered = reflected.get("autoincrement") is True
    elif product == "sqlite":
        numbered = rowid and isinstance(column_type, sa.INTEGER)
    kind = kind_of(product, column_type)
    return Column(
        name=reflected["name"],
        type=column_type,
        native=native or ("" if kind is Kind.UNKNOWN else column_type.compile(dialect)),
        kind=kind,
        precision=precision_of(product, column_type),
        nullable=bool(reflected["nullable"]),
        numbered=numbered,
        read=reading(product, quoted(product, reflected["name"]), column_type),
    )


def _natives(inspector: Any, name: str) -> dict[str, str]:
    """Each column's type as PostgreSQL writes it, extensions' types and enums by name."""
    query = (
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_catalog.pg_attribute "
        "WHERE attrelid = CAST(%s AS regclass) AND attnum > 0 AND NOT attisdropped"
    )
    rows = inspector.bind.exec_driver_sql(query, (quoted("sqlite", name),))
    return dict(tuple(row) for row in rows)


def identity_of(inspector: Inspector, space: str, name: str) -> str:
    """One text for a table, whether a schema was named or not."""
    return f"{space or inspector.default_schema_name or ''}.{name}"


def quoted(product: str, name: str) -> str:
    """A name, or a dotted pair, as the database quotes it; for statements that go through SQLAlchemy."""
    mark = "`" if product in MYSQL else '"'
    text = ".".join(f"{mark}{part.replace(mark, mark * 2)}{mark}" for part in name.split("."))
    return text if product == "sqlite" else text.replace("%", "%%")


def crossing(product: str, child: SlotTable, key: ForeignKey, parent: SlotTable, condition: str) -> str:
    """A query for one row of `child`, called c, that refers to a row of `parent`, called p, under a condition on their slots."""
    on = " AND ".join(
        f"p.{quoted(product, theirs)} = c.{quoted(product, ours)}"
        for ours, theirs in zip(key.columns, key.referred, strict=True)
    )
    return f"SELECT c.{child.slot_sql} FROM {child.sql} c JOIN {parent.sql} p ON {on} WHERE {condition} LIMIT 1"  # noqa: S608
