"""Alembic's operations, of which each is done once however often it is asked for.

What an operation would make is left as it is where it is there already and the same. What it would remove may be gone. So a
revision that was killed half way is completed by running it again, and one that runs in a new shard, whose tables were made from
`shards.yaml` of today, adds what they lack. Statements in SQL can't be looked at: they run each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import alembic.op
from alembic.operations import MigrateOperation, Operations, ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Connection, Dialect, Table, inspect
from sqlalchemy.engine.reflection import Inspector

from shardctl.errors import ShardctlError
from shardctl.shard.engine import MYSQL


def folded(dialect: Dialect, name: str) -> str:
    """A column's, index's or constraint's name, so that two which are one for the database are equal.

    MySQL, MariaDB and SQLite don't distinguish their case. Of tables it depends on the server: there a name is what is written.
    """
    return name if dialect.name == "postgresql" else name.lower()


class DiffersError(ShardctlError):
    """What an operation would make is there, and is something else."""


class Context(MigrationContext):  # type: ignore[misc]  # Alembic is an extra
    """Alembic's context on a connection whose transaction is the caller's."""

    uses_autocommit = False

    @contextmanager
    def autocommit_block(self) -> Iterator[None]:
        """A revision that has such a block is run without a transaction as a whole: see `preview.Preview.alone`."""
        self.uses_autocommit = True
        yield


class Steps(Operations):  # type: ignore[misc]  # likewise
    """`op` of a revision. Tables named in `elsewhere` are of message types that this shard doesn't take; they may be absent."""

    def __init__(
        self,
        context: MigrationContext,
        elsewhere: frozenset[str] = frozenset(),
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(context)
        self._elsewhere, self._tell = elsewhere, tell

    def invoke(self, operation: MigrateOperation) -> Any:
        reason = self._is_done(operation)
        if reason is None:
            return super().invoke(operation)
        self._tell(reason)
        return None

    def _is_done(self, operation: MigrateOperation) -> str | None:
        """Why there is nothing to do; None where there is. Raises DiffersError."""
        connection = self.migration_context.connection
        if self.migration_context.as_sql or connection is None:
            return None
        name = getattr(operation, "table_name", None)
        if name is None:
            return None
        inspector, schema = inspect(connection), getattr(operation, "schema", None)
        there = inspector.has_table(name, schema=schema)
        if not there and _dotted(schema, name) in self._elsewhere:
            return f"table {_dotted(schema, name)} is of message types that this shard doesn't take"
        look = _LOOKS.get(type(operation)) or (_constraint if isinstance(operation, ops.AddConstraintOp) else None)
        return (
            look(_Place(self.migration_context, connection, inspector, name, schema, there), operation)
            if look
            else None
        )


class _Place:
    """The table of an operation, as the database has it."""

    def __init__(
        self,
        context: MigrationContext,
        connection: Connection,
        inspector: Inspector,
        name: str,
        schema: str | None,
        there: bool,
    ) -> None:
        self.context, self.connection, self.inspector = context, connection, inspector
        self.name, self.schema, self.there = name, schema, there

    def __str__(self) -> str:
        return f"table {_dotted(self.schema, self.name)}"

    def fold(self, name: object) -> str:
        """As the keys of `columns` and `indexes`, and those in `constraints`."""
        return folded(self.connection.dialect, str(name))

    def columns(self) -> dict[str, Any]:
        return {
            self.fold(column["name"]): column for column in self.inspector.get_columns(self.name, schema=self.schema)
        }

    def indexes(self) -> dict[str, Any]:
        return {self.fold(index["name"]): index for index in self.inspector.get_indexes(self.name, schema=self.schema)}

    @property
    def quoted(self) -> str:
        quote = self.connection.dialect.identifier_preparer.quote
        return ".".join(quote(part) for part in (self.schema, self.name) if part)

    def has_index(self, name: str) -> bool:
        """Also one of expressions, which SQLAlchemy doesn't list of SQLite."""
        if self.connection.dialect.name != "sqlite":
            return self.fold(name) in self.indexes()
        query = "SELECT 1 FROM sqlite_master WHERE type = 'index' AND lower(tbl_name) = ? AND lower(name) = ?"
        return self.connection.exec_driver_sql(query, (self.name.lower(), name.lower())).first() is not None

    def constraints(self) -> set[str]:
        if self.connection.dialect.name == "postgresql":  # with EXCLUDE, which SQLAlchemy doesn't list
            query = "SELECT conname FROM pg_catalog.pg_constraint WHERE conrelid = CAST(%s AS regclass)"
            return set(self.connection.exec_driver_sql(query, (self.quoted,)).scalars())
        inspector, place = self.inspector, {"schema": self.schema}
        listed: list[Any] = [
            *inspector.get_unique_constraints(self.name, **place),
            *inspector.get_foreign_keys(self.name, **place),
        ]
        listed += inspector.get_check_constraints(self.name, **place)
        listed.append(inspector.get_pk_constraint(self.name, **place))
        return {self.fold(constraint["name"]) for constraint in listed if constraint["name"] is not None}

    def differs(self, wanted: Column[Any], present: Any) -> str | None:
        """How a column that is there differs from the wanted one."""
        if self.context.impl.compare_type(Column(wanted.name, present["type"]), wanted):
            return f"its type is {present['type']}, and the revision's {wanted.type.compile(self.connection.dialect)}"
        if wanted.nullable and not present["nullable"] and present.get("default") is None:
            return "it is NOT NULL without a default, and the revision's is not"
        if not wanted.nullable and present["nullable"]:
            return "it may be NULL, and the revision's may not"
        return None


def _refuse(place: _Place, what: str, fault: str) -> None:
    raise DiffersError(
        f"{place}: {what} is there already, and {fault}. Somebody made it by hand: make it as the revision has it, or rename it; "
        "then run this again."
    )


def _create_table(place: _Place, operation: ops.CreateTableOp) -> str | None:
    if not place.there:
        return None
    present = place.columns()
    table: Table = operation.to_table(place.context)
    for column in table.columns:
        if place.fold(column.name) not in present:
            _refuse(place, "the table", f"has no column {column.name}")
        elif fault := place.differs(column, present[place.fold(column.name)]):
            _refuse(place, f"its column {column.name}", fault)
    return f"{place} is there already"


def _add_column(place: _Place, operation: ops.AddColumnOp) -> str | None:
    name = str(operation.column.name)
    if not place.there or (present := place.columns().get(place.fold(name))) is None:
        return None
    if fault := place.differs(operation.column, present):
        _refuse(place, f"column {name}", fault)
    return f"{place}: column {name} is there already"


def _drop_column(place: _Place, operation: ops.DropColumnOp) -> str | None:
    if place.there and place.fold(operation.column_name) in place.columns():
        return None
    return f"{place}: column {operation.column_name} isn't there any more"


def _drop_table(place: _Place, _: ops.DropTableOp) -> str | None:
    return None if place.there else f"{place} isn't there any more"


def _rename_table(place: _Place, operation: ops.RenameTableOp) -> str | None:
    if place.there or not place.inspector.has_table(operation.new_table_name, schema=place.schema):
        return None
    return f"{place} is called {operation.new_table_name} already"


def _alter_column(place: _Place, operation: ops.AlterColumnOp) -> str | None:
    new = operation.modify_name
    if not place.there or new is None:
        return None
    present = place.columns()
    if place.fold(operation.column_name) in present or place.fold(new) not in present:
        return None
    return f"{place}: column {operation.column_name} is called {new} already"


def _create_index(place: _Place, operation: ops.CreateIndexOp) -> str | None:
    present = place.indexes().get(place.fold(operation.index_name)) if place.there else None
    if present is None:
        return None
    if place.connection.dialect.name == "postgresql" and _is_invalid(place, operation):
        name = place.connection.dialect.identifier_preparer.quote(str(operation.index_name))
        space = f"{place.connection.dialect.identifier_preparer.quote(place.schema)}." if place.schema else ""
        place.connection.exec_driver_sql(f"DROP INDEX {space}{name}")  # of a CREATE INDEX CONCURRENTLY that was ended
        return None
    wanted = operation.to_index(place.context)
    names = [column.name for column in wanted.columns]
    is_plain = len(names) == len(wanted.expressions)
    if is_plain and [*map(place.fold, present["column_names"])] != [*map(place.fold, names)]:
        _refuse(
            place, f"index {operation.index_name}", f"is on {present['column_names']}, and the revision's on {names}"
        )
    if bool(present["unique"]) != bool(operation.unique):
        _refuse(place, f"index {operation.index_name}", "differs in whether it is unique")
    return f"{place}: index {operation.index_name} is there already"


def _is_invalid(place: _Place, operation: ops.CreateIndexOp) -> bool:
    query = (
        "SELECT NOT x.indisvalid FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid "
        "WHERE x.indrelid = CAST(%s AS regclass) AND i.relname = %s"
    )
    return bool(place.connection.exec_driver_sql(query, (place.quoted, operation.index_name)).scalar())


def _drop_index(place: _Place, operation: ops.DropIndexOp) -> str | None:
    if place.there and place.has_index(str(operation.index_name)):
        return None
    return f"{place}: index {operation.index_name} isn't there any more"


def _constraint(place: _Place, operation: Any) -> str | None:
    name = operation.constraint_name
    if name is None or not place.there or place.fold(name) not in place.constraints():
        return None
    return f"{place}: constraint {name} is there already"


def _drop_constraint(place: _Place, operation: ops.DropConstraintOp) -> str | None:
    name = place.fold(operation.constraint_name)
    if place.there and (name in place.constraints() or _is_mysql_key(place, operation)):
        return None
    return f"{place}: constraint {operation.constraint_name} isn't there any more"


def _is_mysql_key(place: _Place, operation: ops.DropConstraintOp) -> bool:
    """MySQL's primary keys have no names."""
    return place.connection.dialect.name in MYSQL and operation.constraint_type == "primary"


_LOOKS: dict[type[Any], Callable[[_Place, Any], str | None]] = {
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


def run(module: ModuleType, steps: Operations) -> None:
    """`upgrade` of a revision's module, with `steps` as its `op`.

    The module is this caller's alone. Alembic's own `op` is one for the process, and shards are changed at the same time.
    """
    for name, value in list(vars(module).items()):
        if value is alembic.op:
            setattr(module, name, steps)
    module.upgrade()


def _dotted(schema: str | None, name: str) -> str:
    return f"{schema}.{name}" if schema else name
