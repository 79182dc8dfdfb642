"""The tables of a database, as far as a message type concerns them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, inspect
from sqlalchemy import types as sa
from sqlalchemy.engine.reflection import Inspector
from sqlalchemy.types import TypeEngine

from shardctl.errors import ShardctlError
from shardctl.shard import database
from shardctl.shard.collations import folding
from shardctl.shard.engine import MYSQL
from shardctl.shard.storage import engine_without_transactions

OWN_PREFIX = "shardctl_"
_JSON_VALID = re.compile(r"json_valid\(`?(?P<column>[^`)]+)`?\)")


class CatalogError(ShardctlError):
    """The database has no such tables."""


@dataclass(frozen=True, slots=True)
class ExistingColumn:
    name: str
    type: TypeEngine[Any]
    native: str  # its type, as the database writes it
    nullable: bool
    has_default: bool
    numbered: bool  # the database gives it the next number
    generated: bool
    is_json: bool = False  # MariaDB's JSON: a text with a constraint


@dataclass(frozen=True, slots=True)
class ExistingTable:
    """`key` is the primary key, or else a unique one without NULL; empty where there is neither."""

    name: str  # `schema.table` outside the session's own schema
    columns: tuple[ExistingColumn, ...]
    key: tuple[str, ...]
    key_is_primary: bool
    parents: tuple[tuple[tuple[str, ...], str], ...]  # foreign keys: the columns, and the table that they refer to
    engine_without_transactions: str | None = None  # its name, on MySQL and MariaDB
    folding: tuple[str, ...] = ()  # columns of the key in which texts that differ may be equal


def existing_tables(engine: Engine, schema: str | None = None, chosen: Collection[str] = ()) -> list[ExistingTable]:
    """The tables of a schema, or those `chosen` by name (`table` or `schema.table`), by name; shardctl's own are left out.

    Raises CatalogError where one isn't there, or there is none at all; DatabaseError.
    """
    with database.snapshot(engine) as connection:
        inspector = inspect(connection)
        names = [(space or schema, name) for space, _, name in (choice.rpartition(".") for choice in chosen)]
        if not names:
            names = [(schema, name) for name in sorted(_listed(connection, inspector, schema))]
        missing = [_called(place) for place in names if not inspector.has_table(place[1], schema=place[0])]
        if missing:
            there = ", ".join(sorted(_listed(connection, inspector, schema))) or "none"
            raise CatalogError(f"there is no table {', '.join(missing)}. Tables: {there}.")
        if not names:
            raise CatalogError(f"there are no tables in {schema or 'the database'}; --schema names another schema.")
        return [_table(inspector, *place) for place in dict.fromkeys(names)]


def _called(place: tuple[str | None, str]) -> str:
    return ".".join(filter(None, place))


def _listed(connection: Connection, inspector: Inspector, schema: str | None) -> Iterator[str]:
    """Without shardctl's own, and without partitions, whose rows are their table's."""
    partitions: set[str] = set()
    if connection.dialect.name == "postgresql":
        query = (
            "SELECT relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE relispartition AND nspname = coalesce(%s, current_schema())"
        )
        partitions = set(connection.exec_driver_sql(query, (schema,)).scalars())
    return (
        name
        for name in inspector.get_table_names(schema=schema)
        if not name.startswith(OWN_PREFIX) and name not in partitions
    )


def _table(inspector: Inspector, schema: str | None, name: str) -> ExistingTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that it doesn't know
        reflected = _named_as_declared(inspector, name, inspector.get_columns(name, schema=schema))
        parents = inspector.get_foreign_keys(name, schema=schema)
    json_columns = frozenset(_json_columns(inspector.bind, schema, name))
    columns = tuple(_column(inspector, column, json_columns) for column in reflected)
    primary = tuple(inspector.get_pk_constraint(name, schema=schema).get("constrained_columns") or ())
    key = primary or _unique(inspector, schema, name, {column.name for column in columns if not column.nullable})
    connection: Any = inspector.bind
    return ExistingTable(
        _called((schema, name)),
        columns,
        key,
        bool(primary),
        tuple(
            (tuple(parent["constrained_columns"]), _called((parent["referred_schema"], parent["referred_table"])))
            for parent in parents
        ),
        engine_without_transactions(connection, _called((schema, name))),
        tuple(folding(connection, schema or "", name, key)),
    )


def _named_as_declared(inspector: Inspector, name: str, reflected: list[Any]) -> list[Any]:
    """On SQLite reflection takes what it doesn't know for a NUMERIC, by its affinity."""
    if inspector.dialect.name != "sqlite":
        return reflected
    query = f"PRAGMA table_xinfo({inspector.dialect.identifier_preparer.quote(name)})"
    declared = {row[1]: str(row[2]).upper() for row in inspector.bind.exec_driver_sql(query)}  # type: ignore[union-attr]
    for column in reflected:
        native = declared.get(column["name"], "")
        if isinstance(column["type"], sa.NUMERIC) and not native.startswith(("NUM", "DEC")):
            column["type"] = sa.Uuid() if native == "UUID" else sa.NullType()
    return reflected


def _json_columns(connection: Any, schema: str | None, name: str) -> Iterator[str]:
    """MariaDB's, which are texts that a constraint of their own checks."""
    if getattr(connection.dialect, "is_mariadb", False):
        query = (
            "SELECT check_clause FROM information_schema.check_constraints "
            "WHERE table_name = %s AND constraint_schema = coalesce(%s, database())"
        )
        for clause in connection.exec_driver_sql(query, (name, schema)).scalars():
            if match := _JSON_VALID.fullmatch(clause):
                yield match["column"]


def _column(inspector: Inspector, reflected: Any, json_columns: Collection[str]) -> ExistingColumn:
    default = str(reflected.get("default") or "")
    column_type = reflected["type"]
    native = "its type" if isinstance(column_type, sa.NullType) else str(column_type.compile(inspector.dialect))
    return ExistingColumn(
        reflected["name"],
        column_type,
        native,
        bool(reflected["nullable"]),
        bool(default),
        bool(reflected.get("identity")) or default.startswith("nextval(") or _counts(inspector, reflected),
        "computed" in reflected,
        reflected["name"] in json_columns,
    )


def _counts(inspector: Inspector, reflected: Any) -> bool:
    return inspector.dialect.name in MYSQL and reflected.get("autoincrement") is True


def _unique(inspector: Inspector, schema: str | None, name: str, not_null: Collection[str]) -> tuple[str, ...]:
    listed: Iterable[Any] = (
        *(index["column_names"] for index in inspector.get_indexes(name, schema=schema) if index.get("unique")),
        *(key["column_names"] for key in inspector.get_unique_constraints(name, schema=schema)),
    )
    usable = [tuple(names) for names in listed if all(column in not_null for column in names)]
    return min(usable, key=lambda names: (len(names), names), default=())
