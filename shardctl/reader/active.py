"""A SELECT that returns only rows of slots that are active in the database that runs it. Pure.

A database also holds rows of slots that it has left, until `shardctl rebalance finish`, and of slots that are being copied to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, bindparam, select
from sqlalchemy.orm import Mapper, with_loader_criteria
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import Alias, FromClause, Join, SelectBase

from shardctl.errors import UsageError
from shardctl.shard.schema import LaneState, lanes


class Active:
    """A statement, checked and ready for a set of slots. Raises UsageError for one whose rows can't be told apart by slot."""

    def __init__(self, statement: Select[Any], slot_columns: Mapping[str, str]) -> None:
        self._statement = statement
        self.tables: set[str] = set()
        self._columns: list[ColumnElement[Any]] = []
        _check(statement)
        for source in statement.get_final_froms():
            for table, name in _tables(source):
                if slot_column := slot_columns.get(name):
                    self.tables.add(name)
                    self._columns.append(_slot_of(table, name, slot_column))
        if not self._columns:
            raise UsageError(
                "the statement reads no table whose rows belong to slots: such tables are those of message_types and their "
                f"slot_tables: {', '.join(slot_columns)}."
            )
        self._related = [
            (
                mapper,
                _slot_of(mapper.local_table, mapper.local_table.fullname, slot_columns[mapper.local_table.fullname]),
            )
            for mapper in _mappers(statement)
            if isinstance(mapper.local_table, Table) and mapper.local_table.fullname in slot_columns
        ]

    def of(self, slots: Collection[int], active: Collection[int]) -> Select[Any]:
        """The statement for these of the slots that are active here."""
        statement = self._statement.where(*(_among(column, slots, active) for column in self._columns))
        return statement.options(
            *(
                with_loader_criteria(mapper, _among(column, slots, active), include_aliases=True)
                for mapper, column in self._related
            )
        )


def _among(column: ColumnElement[Any], slots: Collection[int], active: Collection[int]) -> ColumnElement[bool]:
    """By the lanes themselves, which the statement's snapshot holds; what is left out, or all there is, by number."""
    others = set(active).difference(slots)
    if len(slots) <= len(others):
        return column.in_(_listed(sorted(slots)))
    here = column.in_(select(lanes.c.slot).where(lanes.c.state == LaneState.ACTIVE.value))
    return here & column.not_in(_listed(sorted(others))) if others else here


def _listed(slots: list[int]) -> Any:
    """In the statement's text: a driver takes 65,535 parameters at most."""
    return bindparam(None, slots, expanding=True, literal_execute=True)


def _check(statement: Select[Any]) -> None:
    if not isinstance(statement, Select):
        raise UsageError(f"a read over all shards takes a select(), not {type(statement).__name__}.")
    parts: Any = statement
    if parts._limit_clause is not None or parts._offset_clause is not None or parts._order_by_clauses:  # noqa: SLF001
        raise UsageError(
            "order_by and limit of the statement hold for one database: pass order_by= and limit= to scatter, which hold for "
            "all of them. There is no offset: continue behind the last row's key."
        )
    nested = [part for part in visitors.iterate(statement) if isinstance(part, SelectBase) and part is not statement]
    if nested:
        raise UsageError(
            "a read over all shards takes a SELECT without subqueries, whose rows could be of slots that are not active here."
        )


def _tables(source: FromClause) -> Iterator[tuple[FromClause, str]]:
    """Each table in a FROM, under the name that it has there, and its own name."""
    if isinstance(source, Join):
        if source.isouter or source.full:
            raise UsageError(
                "a read over all shards takes inner joins: an outer join would return rows for what it must leave out. Load "
                "related rows with selectinload."
            )
        yield from _tables(source.left)
        yield from _tables(source.right)
    elif isinstance(source, Alias) and isinstance(source.element, Table):
        yield source, source.element.fullname
    elif isinstance(source, Table):
        yield source, source.fullname


def _slot_of(table: FromClause, name: str, slot_column: str) -> ColumnElement[Any]:
    if slot_column not in table.c:
        raise UsageError(
            f"table {name}: the reader needs its slot column. Add it to the model, `{slot_column}: Mapped[int]`, or to the "
            "Table."
        )
    return table.c[slot_column]


def _mappers(statement: Select[Any]) -> set[Mapper[Any]]:
    """All mapped classes that the statement may load: its own, and what their relationships lead to."""
    mappers: set[Mapper[Any]] = set()
    for part in visitors.iterate(statement):
        entity = getattr(part, "_annotations", {}).get("parententity")
        if entity is not None:
            mappers |= set(entity.mapper.registry.mappers)
    return mappers
