"""What a history still changes after one of its operations: names, types, and what it takes away.

An operation is asked for again where tables are as a later one has left them: in a new shard, whose tables were made from
`shards.yaml` of today, and after an `apply` that was killed. So its table or column may bear the name that a later one gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alembic.operations import MigrateOperation, ops

from shardctl.migrate.named import dotted, table_of


@dataclass(frozen=True, slots=True)
class Upcoming:
    """The operations that follow, in their order."""

    operations: Sequence[MigrateOperation] = ()

    def name_of(self, table: str) -> str:
        """What the table will be called. Both are dotted."""
        for operation in self.operations:
            if isinstance(operation, ops.RenameTableOp) and table_of(operation) == table:
                table = dotted(operation.schema, operation.new_table_name)
        return table

    def column_of(self, table: str, column: str) -> str:
        """What the column of the table, as both are called now, will be called."""
        for operation in self.operations:
            if table_of(operation) != table:
                continue
            if isinstance(operation, ops.RenameTableOp):
                table = dotted(operation.schema, operation.new_table_name)
            elif isinstance(operation, ops.AlterColumnOp) and operation.column_name == column:
                column = operation.modify_name or column
        return column

    def changes(self, table: str, column: str) -> bool:
        """Whether the column's type or NULL is changed, or the column dropped: then it needn't be what it is now."""
        for operation in self.operations:
            if table_of(operation) != table:
                continue
            if isinstance(operation, ops.DropTableOp):
                return True
            if isinstance(operation, ops.RenameTableOp):
                table = dotted(operation.schema, operation.new_table_name)
            elif isinstance(operation, ops.DropColumnOp | ops.AlterColumnOp) and operation.column_name == column:
                if isinstance(operation, ops.DropColumnOp):
                    return True
                if operation.modify_type is not None or operation.modify_nullable is not None:
                    return True
                column = operation.modify_name or column
        return False

    def makes_table(self, table: str) -> bool:
        """Whether a table of that name is made, or another one is called so."""
        return any(
            (isinstance(operation, ops.CreateTableOp) and table_of(operation) == table)
            or (
                isinstance(operation, ops.RenameTableOp) and dotted(operation.schema, operation.new_table_name) == table
            )
            for operation in self.operations
        )

    def makes_column(self, table: str, column: str) -> bool:
        """Whether a column of that name is added, or another one is called so."""
        return any(
            table_of(operation) == table
            and (
                (isinstance(operation, ops.AddColumnOp) and operation.column.name == column)
                or (isinstance(operation, ops.AlterColumnOp) and operation.modify_name == column)
            )
            for operation in self.operations
        )

    def drops_index(self, name: str | None) -> bool:
        return any(
            isinstance(operation, ops.DropIndexOp) and operation.index_name == name for operation in self.operations
        )
