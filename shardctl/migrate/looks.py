"""Whether what an operation of Alembic would make is there already, and the same, or what it would remove is gone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Connection, Dialect, Table
from sqlalchemy.engine.reflection import Inspector

from shardctl.errors import ShardctlError
from shardctl.migrate.named import dotted
from shardctl.migrate.upcoming import Upcoming
from shardctl.shard.engine import MYSQL

_ADDED = re.compile(r"::\w+|[`\"()\s]")  # casts, quotes, parentheses


class DiffersError(ShardctlError):
    """What an operation would make is there, and is something else."""


def fold(dialect: Dialect, name: str) -> str:
    """MySQL, MariaDB and SQLite don't distinguish the case of a column's, index's or constraint's name."""
    return name if dialect.name == "postgresql" else name.lower()


@dataclass(frozen=True, slots=True)
class ByName:
    """Columns or indexes of a table."""

    folded: Mapping[str, Any]
    fold: Callable[[str | None], str]

    def __contains__(self, name: str | None) -> bool:
        return self.fold(name) in self.folded

    def __getitem__(self, name: str | None) -> Any:
        return self.folded[self.fold(name)]

    def get(self, name: str | None) -> Any:
        return self.folded.get(self.fold(name))


class Place:
    """The table of an operation, as the database has it."""

    def __init__(
        self,
        context: MigrationContext,
        connection: Connection,
        inspector: Inspector,
        name: str,
        schema: str | None,
        upcoming: Upcoming,
    ) -> None:
        self.context, self.connection, self.inspector, self.upcoming = context, connection, inspector, upcoming
        self.name, self.schema = name, schema
        self.there = inspector.has_table(name, schema=schema)

    def __str__(self) -> str:
        return f"table {self.table}"

    @property
    def table(self) -> str:
        return dotted(self.schema, self.name)

    def has(self, name: str) -> bool:
        return bool(self.inspector.has_table(name, schema=self.schema))

    def changes(self, column: str) -> bool:
        """Whether a later operation changes the column, or takes it away."""
        return self.upcoming.changes(self.table, column)

    def columns(self) -> ByName:
        return self._by_name(self.inspector.get_columns(self.name, schema=self.schema))

    def indexes(self) -> ByName:
        return self._by_name(self.inspector.get_indexes(self.name, schema=self.schema))

    def _by_name(self, listed: Iterable[Any]) -> ByName:
        return ByName({self.fold(part["name"]): part for part in listed}, self.fold)

    def fold(self, name: str | None) -> str:
        """Names of columns, indexes and constraints that the database takes for one are equal."""
        return fold(self.connection.dialect, str(name))

    def primary_key(self) -> list[str]:
        key = self.inspector.get_pk_constraint(self.name, schema=self.schema)
        return list(key["constrained_columns"] if key else ())

    def constraints(self) -> list[tuple[str | None, str]]:
        """Name and content of each, but for the primary key."""
        inspector, place = self.inspector, {"schema": self.schema}
        uniques = [
            (key["name"], _unique(key["column_names"])) for key in inspector.get_unique_constraints(self.name, **place)
        ]
        foreign = [
            (
                key["name"],
                _foreign(key["constrained_columns"], key["referred_table"], key["referred_columns"]),
            )
            for key in inspector.get_foreign_keys(self.name, **place)
        ]
        checks = [
            (check["name"], _check(check["sqltext"])) for check in inspector.get_check_constraints(self.name, **place)
        ]
        return [*uniques, *foreign, *checks]

    def differs(self, wanted: Column[Any], present: Any) -> str | None:
        """How a column that is there differs from the wanted one."""
        if self.context.impl.compare_type(Column(wanted.name, present["type"]), wanted):
            return f"its type is {present['type']}, and the revision's {wanted.type.compile(self.connection.dialect)}"
        if wanted.nullable and not present["nullable"] and present.get("default") is None:
            return "it is NOT NULL without a default, and the revision's is not"
        if not wanted.nullable and present["nullable"]:
            return "it may be NULL, and the revision's may not"
        return None


def _refuse(place: Place, what: str, fault: str) -> None:
    raise DiffersError(
        f"{place}: {what} is there already, and {fault}. Somebody made it by hand: make it as the revision has it, or rename it; "
        "then run this again."
    )


def _create_table(place: Place, operation: ops.CreateTableOp) -> str | None:
    if not place.there:
        return None
    present = place.columns()
    table: Table = operation.to_table(place.context)
    for column in table.columns:
        later = place.upcoming.column_of(place.table, column.name)
        if place.changes(column.name) or (later != column.name and later in present):
            continue
        if column.name not in present:
            _refuse(place, "the table", f"has no column {column.name}")
        elif fault := place.differs(column, present[column.name]):
            _refuse(place, f"its column {column.name}", fault)
    return f"{place} is there already"


def _add_column(place: Place, operation: ops.AddColumnOp) -> str | None:
    name = str(operation.column.name)
    if not place.there:
        return None
    present, later = place.columns(), place.upcoming.column_of(place.table, name)
    if name not in present:
        return f"{place}: column {name} is called {later} already" if later in present else None
    if not place.changes(name) and (fault := place.differs(operation.column, present[name])):
        _refuse(place, f"column {name}", fault)
    return f"{place}: column {name} is there already"


def _drop_column(place: Place, operation: ops.DropColumnOp) -> str | None:
    if place.there and operation.column_name in place.columns():
        return None
    return f"{place}: column {operation.column_name} isn't there any more"


def _drop_table(place: Place, _: ops.DropTableOp) -> str | None:
    return None if place.there else f"{place} isn't there any more"


def _rename_table(place: Place, operation: ops.RenameTableOp) -> str | None:
    new = operation.new_table_name
    if not place.has(new):
        return None
    if place.there and not place.upcoming.makes_table(place.table):
        return None
    return f"{place} is called {new} already"


def _alter_column(place: Place, operation: ops.AlterColumnOp) -> str | None:
    old, new = operation.column_name, operation.modify_name
    if not place.there or new is None:
        return None
    present = place.columns()
    if new not in present or (old in present and not place.upcoming.makes_column(place.table, old)):
        return None
    return f"{place}: column {old} is called {new} already"


def _create_index(place: Place, operation: ops.CreateIndexOp) -> str | None:
    present = place.indexes().get(operation.index_name) if place.there else None
    if present is None:
        return None
    if place.connection.dialect.name == "postgresql" and _is_invalid(place, operation):
        name = place.connection.dialect.identifier_preparer.quote(str(operation.index_name))
        space = f"{place.connection.dialect.identifier_preparer.quote(place.schema)}." if place.schema else ""
        place.connection.exec_driver_sql(f"DROP INDEX {space}{name}")  # of a CREATE INDEX CONCURRENTLY that was ended
        return None
    wanted = operation.to_index(place.context)
    names = [column.name for column in wanted.columns]
    if place.upcoming.drops_index(operation.index_name):
        return f"{place}: index {operation.index_name} is there already"
    if len(names) == len(wanted.expressions) and present["column_names"] != names:
        _refuse(
            place, f"index {operation.index_name}", f"is on {present['column_names']}, and the revision's on {names}"
        )
    if bool(present["unique"]) != bool(operation.unique):
        _refuse(place, f"index {operation.index_name}", "differs in whether it is unique")
    return f"{place}: index {operation.index_name} is there already"


def _is_invalid(place: Place, operation: ops.CreateIndexOp) -> bool:
    query = (
        "SELECT NOT x.indisvalid FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid "
        "WHERE x.indrelid = CAST(%s AS regclass) AND i.relname = %s"
    )
    table = ".".join(f'"{part}"' for part in (place.schema, place.name) if part)
    return bool(place.connection.exec_driver_sql(query, (table, operation.index_name)).scalar())


def _drop_index(place: Place, operation: ops.DropIndexOp) -> str | None:
    if place.there and operation.index_name in place.indexes():
        return None
    return f"{place}: index {operation.index_name} isn't there any more"


def _constraint(place: Place, operation: Any) -> str | None:
    """One without a name, which the database gives, is known by its content."""
    if not place.there:
        return None
    if isinstance(operation, ops.CreatePrimaryKeyOp):
        return f"{place}: the primary key is there already" if place.primary_key() == list(operation.columns) else None
    name, wanted = operation.constraint_name, _content(operation)
    for present, content in place.constraints():
        if name is None and content == wanted:
            return f"{place}: {wanted} is there already"
        if name is not None and place.fold(present) == place.fold(name):
            if not _same(content, wanted):
                _refuse(place, f"constraint {name}", f"is {content}, and the revision's is {wanted}")
            return f"{place}: constraint {name} is there already"
    return None


def _content(operation: Any) -> str:
    if isinstance(operation, ops.CreateUniqueConstraintOp):
        return _unique(operation.columns)
    if isinstance(operation, ops.CreateForeignKeyOp):
        return _foreign(operation.local_cols, operation.referent_table, operation.remote_cols)
    if isinstance(operation, ops.CreateCheckConstraintOp):
        return _check(str(operation.condition))
    return str(operation.constraint_type)


def _same(present: str, wanted: str) -> bool:
    """Each database writes a CHECK in its own form, so of two CHECKs of one name nothing more is known."""
    return present == wanted or present.partition(" ")[0] == wanted.partition(" ")[0] == "CHECK"


def _unique(columns: Iterable[str | None]) -> str:
    return f"UNIQUE ({', '.join(map(str, columns))})"


def _foreign(columns: Iterable[str], table: str, referred: Iterable[str]) -> str:
    return f"FOREIGN KEY ({', '.join(columns)}) to {table} ({', '.join(referred)})"


def _check(condition: str) -> str:
    """Without what a database adds to a simple one."""
    return f"CHECK {_ADDED.sub('', condition)}"


def _drop_constraint(place: Place, operation: ops.DropConstraintOp) -> str | None:
    name = operation.constraint_name
    if place.there:
        if operation.constraint_type == "primary" and place.connection.dialect.name in MYSQL:  # it has no name there
            is_there = bool(place.primary_key())
        else:
            key = place.inspector.get_pk_constraint(place.name, schema=place.schema)
            named = {place.fold(present) for present, _ in place.constraints()}
            is_there = place.fold(name) in named | {place.fold(key and key["name"])}
        if is_there:
            return None
    return f"{place}: constraint {name} isn't there any more"


_LOOKS: dict[type[Any], Callable[[Place, Any], str | None]] = {
    ops.CreateTableOp: _create_table,
    ops.AddColumnOp: _add_column,
    ops.DropColumnOp: _drop_column,
    ops.DropTableOp: _drop_table,
    ops.RenameTableOp: _rename_table,
    ops.AlterColumnOp: _alter_column,
    ops.CreateIndexOp: _create_index,
    ops.DropIndexOp: _drop_index,
    ops.DropConstraintOp: _drop_constraint,
}


def reason(place: Place, operation: Any) -> str | None:
    """Why there is nothing to do; None where there is. Raises DiffersError."""
    if isinstance(operation, ops.AddConstraintOp):
        return _constraint(place, operation)
    look = _LOOKS.get(type(operation))
    return look(place, operation) if look else None
