"""What a revision would do, without a database: its SQL in a product's dialect, and what it takes away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Any

from alembic.operations import MigrateOperation, ops
from sqlalchemy import Dialect

from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.migrate import history
from shardctl.migrate.history import Revision
from shardctl.migrate.operations import Context, Steps, folded, run


@dataclass(frozen=True, slots=True)
class Preview:
    """`sql` is empty and `fault` says why where the revision asks a database.

    `tables` are those that its operations name. `removed` and `added` are pairs of a table and a column; the column
    of a whole table is "".
    `alone`: it runs outside of a transaction, since it has what PostgreSQL refuses inside of one.
    """

    sql: str
    tables: frozenset[str]
    removed: tuple[tuple[str, str], ...]
    added: tuple[tuple[str, str], ...]
    contracts: bool
    alone: bool = False
    fault: str = ""


class _Recorder(Steps):
    """Remembers each operation, and writes its SQL."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.operations: list[MigrateOperation] = []

    def invoke(self, operation: MigrateOperation) -> Any:
        self.operations.append(operation)
        return super().invoke(operation)


def preview(revision: Revision, dialect: Dialect) -> Preview:
    """Raises RevisionError where the file can't be loaded."""
    module = history.load(revision.path)
    text = StringIO()
    context = Context(dialect, None, {"as_sql": True, "output_buffer": text}, None)
    recorder, fault = _Recorder(context), ""
    try:
        run(module, recorder)
    except Exception as error:  # noqa: BLE001 - the user's own code, on a connection that answers nothing
        fault = f"{history.line_of(error, revision)}: {type(error).__name__}: {error}"
    operations = recorder.operations
    return Preview(
        "" if fault else text.getvalue().strip(),
        frozenset(filter(None, map(_table, operations))),
        tuple(pair for operation in operations for pair in _removed(operation)),
        tuple(pair for operation in operations for pair in _added(operation)),
        any(map(_contracts, operations)),
        dialect.name == "postgresql" and (context.uses_autocommit or "CONCURRENTLY" in text.getvalue().upper()),
        fault,
    )


def still_mapped(preview: Preview, kinds: Mapping[str, MessageType], dialect: Dialect) -> Iterator[str]:
    """Why a revision that takes something away must wait: the file's message types still map it."""
    for table, column in preview.removed:
        for name, kind in kinds.items():
            mapped = {folded(dialect, its_column) for its_column in (*kind.columns, kind.slot_column)}
            if kind.table == table and (not column or folded(dialect, column) in mapped):
                what = f"column {table}.{column}" if column else f"table {table}"
                yield (
                    f"it removes {what}, to which message type {name} writes. Take it out of shards.yaml, deploy the consumers, "
                    "and apply it then"
                )
            elif not column and table in kind.slot_tables:
                yield f"it removes table {table}, which message type {name} names among its slot_tables. Take it out there first"


def _table(operation: MigrateOperation) -> str | None:
    name = getattr(operation, "table_name", None)
    schema = getattr(operation, "schema", None)
    return f"{schema}.{name}" if schema and name else name


def _removed(operation: MigrateOperation) -> Iterable[tuple[str, str]]:
    table = _table(operation) or ""
    if isinstance(operation, ops.DropColumnOp):
        return ((table, operation.column_name),)
    if isinstance(operation, ops.DropTableOp | ops.RenameTableOp):
        return ((table, ""),)
    if isinstance(operation, ops.AlterColumnOp) and operation.modify_name is not None:
        return ((table, operation.column_name),)
    return ()


def _added(operation: MigrateOperation) -> Iterable[tuple[str, str]]:
    table = _table(operation) or ""
    if isinstance(operation, ops.AddColumnOp):
        return ((table, str(operation.column.name)),)
    if isinstance(operation, ops.AlterColumnOp) and operation.modify_name is not None:
        return ((table, operation.modify_name),)
    if isinstance(operation, ops.CreateTableOp):
        return ((table, ""),)
    return ((operation.new_table_name, ""),) if isinstance(operation, ops.RenameTableOp) else ()


def _contracts(operation: MigrateOperation) -> bool:
    """Whether what consumers write today may fail after it."""
    if isinstance(operation, ops.AlterColumnOp):
        return operation.modify_nullable is False or operation.modify_type is not None or bool(operation.modify_name)
    if isinstance(operation, ops.AddColumnOp):
        return not operation.column.nullable and operation.column.server_default is None
    return isinstance(operation, ops.DropColumnOp | ops.DropTableOp | ops.RenameTableOp | ops.AddConstraintOp)
