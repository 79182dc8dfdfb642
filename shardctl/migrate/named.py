"""Which table an operation of Alembic is about."""

from __future__ import annotations

from alembic.operations import MigrateOperation, ops


def dotted(schema: str | None, name: str) -> str:
    return f"{schema}.{name}" if schema else name


def place_of(operation: MigrateOperation) -> tuple[str | None, str] | None:
    """The table's schema and name; None of what names no table. A foreign key is its own table's."""
    if isinstance(operation, ops.CreateForeignKeyOp):
        return operation.kw.get("source_schema"), operation.source_table
    name = getattr(operation, "table_name", None)
    return None if name is None else (getattr(operation, "schema", None), name)


def table_of(operation: MigrateOperation) -> str | None:
    place = place_of(operation)
    return None if place is None else dotted(*place)
