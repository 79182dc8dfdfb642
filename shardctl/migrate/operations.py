"""Alembic's operations, of which each is done once however often it is asked for.

What an operation would make is left as it is where it is there already and the same. What it would remove may be gone. So a
revision that was killed half way is completed by running it again, and one that runs in a new shard, whose tables were made from
`shards.yaml` of today, adds what they lack. Statements in SQL can't be looked at: they run each time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import alembic.op
from alembic.operations import MigrateOperation, Operations, ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import PrimaryKeyConstraint, Table, inspect

from shardctl.migrate import looks
from shardctl.migrate.looks import Place
from shardctl.migrate.named import place_of
from shardctl.migrate.upcoming import Upcoming

Invoke = Callable[[MigrateOperation], Any]


class Context(MigrationContext):  # type: ignore[misc]  # Alembic is an extra
    """Alembic's context on a connection whose transaction is the caller's."""

    uses_autocommit = False

    @contextmanager
    def autocommit_block(self) -> Iterator[None]:
        """A revision that has such a block is run without a transaction as a whole: see `preview.Preview.alone`."""
        self.uses_autocommit = True
        yield


class Steps(Operations):  # type: ignore[misc]  # likewise
    """`op` of a revision. Tables named in `elsewhere` are of message types that this shard doesn't take; they may be absent.

    `own` are the operations that the revision is known to have, in their order, and `later` those of the revisions after it.
    """

    def __init__(
        self,
        context: MigrationContext,
        elsewhere: frozenset[str] = frozenset(),
        tell: Callable[[str], None] = lambda _: None,
        own: Sequence[MigrateOperation] = (),
        later: Sequence[MigrateOperation] = (),
    ) -> None:
        super().__init__(context)
        self._elsewhere, self._tell = elsewhere, tell
        self._own, self._later, self._taken = own, later, 0

    def invoke(self, operation: MigrateOperation) -> Any:
        return self.take(operation, super().invoke)

    @contextmanager
    def batch_alter_table(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        """Alembic's batch has operations of its own, which would not look."""
        with super().batch_alter_table(*arguments, **options) as batch:
            invoke = batch.invoke
            batch.invoke = lambda operation: self.take(operation, invoke)
            yield batch

    def take(self, operation: MigrateOperation, invoke: Invoke) -> Any:
        """Do the operation by `invoke`, or what is left of it; what it returns."""
        self._taken += 1
        return self._do(operation, invoke, Upcoming((*self._own[self._taken :], *self._later)))

    def _do(self, operation: MigrateOperation, invoke: Invoke, upcoming: Upcoming) -> Any:
        connection, named = self.migration_context.connection, place_of(operation)
        if self.migration_context.as_sql or connection is None or named is None:
            return invoke(operation)
        schema, name = named
        place = Place(self.migration_context, connection, inspect(connection), name, schema, upcoming)
        if not place.there and place.table in self._elsewhere:
            self._tell(f"{place} is of message types that this shard doesn't take")
            return None
        if not place.there and (later := upcoming.name_of(place.table)) != place.table:
            operation, place = _renamed(operation, later, place)
        operation = _with_present_columns(operation, place)
        reason = looks.reason(place, operation)
        if reason is None:
            return invoke(operation)
        self._tell(reason)
        for part in _parts(operation, self):
            self._do(part, invoke, upcoming)
        return operation.to_table(self.migration_context) if isinstance(operation, ops.CreateTableOp) else None


def _renamed(operation: MigrateOperation, later: str, place: Place) -> tuple[MigrateOperation, Place]:
    """The operation on the table of the name that a later one gives it, where that is there."""
    schema, _, name = later.rpartition(".")
    other = Place(place.context, place.connection, place.inspector, name, schema or None, place.upcoming)
    if not other.there or isinstance(operation, ops.RenameTableOp):
        return operation, place
    changed = copy.copy(operation)
    setattr(changed, "source_table" if isinstance(operation, ops.CreateForeignKeyOp) else "table_name", name)
    return changed, other


# The attributes of operations that name columns which must be there.
_COLUMNS = ("columns", "local_cols")


def _with_present_columns(operation: MigrateOperation, place: Place) -> MigrateOperation:
    """The operation on columns of the names that later ones give them, where these are there and its own are not."""
    if not place.there or isinstance(operation, ops.CreateTableOp | ops.AddColumnOp | ops.DropColumnOp):
        return operation
    present = place.columns()

    def now(column: Any) -> Any:
        if not isinstance(column, str) or column in present:
            return column
        later = place.upcoming.column_of(place.table, column)
        return later if later in present else column

    changed = copy.copy(operation)
    if isinstance(operation, ops.AlterColumnOp) and operation.modify_name is None:
        changed.column_name = now(operation.column_name)
    for attribute in _COLUMNS:
        if (columns := getattr(operation, attribute, None)) is not None:
            setattr(changed, attribute, [now(column) for column in columns])
    return changed


def _parts(operation: MigrateOperation, steps: Operations) -> Iterator[MigrateOperation]:
    """What Alembic makes with a column or table, in statements of their own or, in a new shard, not from `shards.yaml`."""
    if isinstance(operation, ops.CreateTableOp):
        table: Table = operation.to_table(steps.migration_context)
    elif isinstance(operation, ops.AddColumnOp):
        column = operation.column
        if column.table is not None:  # it was asked for before: a column is one table's
            column = column._copy()  # noqa: SLF001 - as Alembic does itself
        table = steps.schema_obj.table(operation.table_name, column, schema=operation.schema)
    else:
        return
    for constraint in sorted(table.constraints, key=lambda constraint: str(constraint.name)):
        of_type = constraint._type_bound  # noqa: SLF001 - SQLAlchemy makes it for a Boolean or Enum, and tells by nothing else
        if not of_type and not isinstance(constraint, PrimaryKeyConstraint):
            yield ops.AddConstraintOp.from_constraint(constraint)
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        yield ops.CreateIndexOp.from_index(index)


def run(module: ModuleType, steps: Operations) -> None:
    """`upgrade` of a revision's module, with `steps` as its `op`.

    The module is this caller's alone. Alembic's own `op` is one for the process, and shards are changed at the same time.
    """
    for name, value in list(vars(module).items()):
        if value is alembic.op:
            setattr(module, name, steps)
    module.upgrade()
