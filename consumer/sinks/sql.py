"""Writes as rows of mapped tables, in few statements: a batch of a thousand upserts is one."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson
from sqlalchemy import Connection

from consumer.delivery import Delivery
from consumer.errors import DataFaultError, NeverError
from consumer.rows import Dialect, moment_of
from shardctl.spec import ColumnType, MessageType, Operation

# What decides a write's statement: its type, its operation, and the columns it sets.
Shape = tuple[str, Operation, frozenset[str]]


@dataclass(slots=True)
class Group:
    """Writes of one shape to different rows: one statement."""

    shape: Shape
    rows: dict[tuple[Any, ...], Delivery] = field(default_factory=dict)


def group(writes: Sequence[Delivery], kinds: dict[str, MessageType]) -> list[Group]:
    """Cut writes into the statements that bring about the same as one after the other would.

    Writes of one routing key, and writes to one row, keep their order across groups. Of writes of one shape to one row that
    could share a group, the last alone is sent (with a version column: the highest): nobody can see the ones it replaces.
    """
    groups: list[Group] = []
    by_shape: dict[Shape, list[int]] = {}
    last_of_key: dict[tuple[int, str], int] = {}
    last_of_row: dict[tuple[Any, ...], int] = {}
    for write in writes:
        shape = (write.message_type, write.operation, frozenset(write.body))
        identity = (kinds[write.message_type].table, *write.row)
        key = (write.slot, write.partition_key)
        earliest = max(last_of_key.get(key, 0), last_of_row.get(identity, 0))
        places = by_shape.setdefault(shape, [])
        possible = range(bisect_left(places, earliest), len(places))
        number = next((places[at] for at in possible if _may_join(groups[places[at]], write, kinds)), None)
        if number is None:
            number = len(groups)
            groups.append(Group(shape))
            places.append(number)
        rows = groups[number].rows
        if not _is_stale(write, rows.get(write.row), kinds):
            rows[write.row] = write
        last_of_key[key] = last_of_row[identity] = number
    return groups


def _may_join(existing: Group, write: Delivery, kinds: dict[str, MessageType]) -> bool:
    """Whether the database would see no difference.

    A second insert of one row must fail there, so it never shares a statement with the first. Of two versions the database
    must say which is higher where we can't.
    """
    other = existing.rows.get(write.row)
    if other is None:
        return True
    if write.operation == "insert":
        return False
    return not _is_versioned(write, kinds) or None not in (_version(write, kinds), _version(other, kinds))


def _is_stale(write: Delivery, than: Delivery | None, kinds: dict[str, MessageType]) -> bool:
    """Of equal versions the first counts, as it does in the database."""
    if than is None or not _is_versioned(write, kinds):
        return False
    return bool(_version(write, kinds) <= _version(than, kinds))


def _is_versioned(write: Delivery, kinds: dict[str, MessageType]) -> bool:
    return write.body.get(kinds[write.message_type].version_column or "") is not None


def _version(write: Delivery, kinds: dict[str, MessageType]) -> Any:
    """The version as a value that compares as it would in the database; None where only the database can compare it."""
    kind = kinds[write.message_type]
    column = kind.version_column or ""
    value = write.body[column]
    match kind.columns[column]:
        case "integer" | "bigint":
            return value
        case "number":
            return float(value)
        case "decimal":
            return None if type(value) is float else Decimal(value)  # a float has lost what the body's text holds
        case "timestamp":
            return moment_of(value)
        case _:
            return None  # a text's order is its collation's


class SqlSink:
    """Insert, upsert, update and delete. An update of a row that isn't there is a fault; a delete of one is not."""

    def __init__(self, dialect: Dialect, kinds: dict[str, MessageType]) -> None:
        self._dialect, self._kinds = dialect, kinds
        self._statements: dict[Shape, str] = {}

    def check(self, delivery: Delivery) -> None:
        kind = self._kinds[delivery.message_type]
        try:
            body = orjson.loads(delivery.message.data)
        except orjson.JSONDecodeError as error:
            raise NeverError("bad_json", str(error)) from error
        if not isinstance(body, dict):
            raise NeverError("bad_json", "the body must be a JSON object")
        if not body.keys() <= kind.columns.keys():
            unknown = min(body.keys() - kind.columns.keys())
            raise NeverError("unknown_column", f"{unknown!r} isn't a column of type {delivery.message_type!r}")
        for column, value in body.items():
            if value is not None and not _FITS[kind.columns[column]](value):
                raise NeverError("bad_value", f"{column!r} must be {kind.columns[column]}, not {_shown(value)}")
        if None in (row := tuple(body.get(column) for column in kind.key)):
            raise NeverError("missing_key", f"the body must give the key of {kind.table}: {', '.join(kind.key)}")
        if kind.version_column and delivery.operation != "delete" and body.get(kind.version_column) is None:
            raise NeverError(
                "missing_version", f"the body must give a number for the version column {kind.version_column!r}"
            )
        delivery.body = body
        delivery.row = row if _ROWS_AS_GIVEN.issuperset(map(kind.columns.get, kind.key)) else _row(delivery, kind)

    def apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        stale = 0
        for statement_group in group(writes, self._kinds):
            kind = self._kinds[statement_group.shape[0]]
            operation = statement_group.shape[1]
            rows = statement_group.rows.values()
            text = self._text(rows, kind.slot_column)
            result = connection.exec_driver_sql(self._statement(statement_group.shape), (text,))
            missed = len(rows) - result.rowcount
            if missed and operation == "update":
                stale += self._explain_missed(connection, kind, text, len(rows), missed)
            elif missed and operation == "upsert":
                stale += missed
        return stale

    def _text(self, writes: Iterable[Delivery], slot_column: str) -> str:
        if self._dialect.reads_json_as_written:
            return (b"[" + b",".join(_with_slot(write, slot_column) for write in writes) + b"]").decode()
        try:
            return json.dumps([{slot_column: write.slot, **write.body} for write in writes])
        except RecursionError as error:
            raise DataFaultError("bad_value", "the body is nested too deeply") from error

    def _explain_missed(self, connection: Connection, kind: MessageType, text: str, rows: int, missed: int) -> int:
        """Updates that touched no row: stale when the row is there, else a fault.

        Also a fault, so that the search sends them one by one: two keys that we tell apart and the database doesn't, as a
        collation that ignores case. Of such two, one statement would apply any.
        """
        there = connection.exec_driver_sql(self._find(kind), (text,)).all()
        if len(there) < rows:
            raise DataFaultError("no_row", f"{rows - len(there)} of the rows to update aren't in {kind.table}")
        if len(set(map(tuple, there))) < len(there):
            raise DataFaultError("no_row", f"two updates of one statement meet in one row of {kind.table}")
        return missed

    def _statement(self, shape: Shape) -> str:
        found = self._statements.get(shape)
        if found is None:
            found = self._statements[shape] = _write(self._dialect, self._kinds[shape[0]], shape)
        return found

    def _find(self, kind: MessageType) -> str:
        quote = self._dialect.quote
        columns = [(column, kind.columns[column]) for column in kind.key]
        same = " AND ".join(f"t.{quote(column)} = r.{quote(column)}" for column in kind.key)
        listed = ", ".join(f"t.{quote(column)}" for column in kind.key)
        return f"SELECT {listed} FROM {quote(kind.table)} AS t, {self._dialect.source(columns)} WHERE {same}"  # noqa: S608


def _write(dialect: Dialect, kind: MessageType, shape: Shape) -> str:
    """The statement of a shape. Identifiers come from the spec, which allows letters, digits and underscores alone."""
    quote, operation = dialect.quote, shape[1]
    table, version = quote(kind.table), kind.version_column
    given = [column for column in kind.columns if column in shape[2]]
    columns = [*((column, kind.columns[column]) for column in given), (kind.slot_column, "integer")]
    names = [quote(column) for column, _ in columns]
    source = dialect.source(columns)
    same_row = " AND ".join(f"t.{quote(column)} = r.{quote(column)}" for column in kind.key)
    newer = (
        f"(t.{quote(version)} IS NULL OR t.{quote(version)} < {{}}.{quote(version)})"
        if version and version in given
        else ""
    )
    if operation == "delete":
        found = f"SELECT 1 FROM {source} WHERE {same_row}{_and(newer.format('r'))}"  # noqa: S608
        return f"DELETE FROM {table} AS t WHERE EXISTS ({found})"  # noqa: S608
    settable = [name for name in names if name not in {quote(column) for column in kind.key}]
    if operation == "update":
        assigned = ", ".join(f"{name} = r.{name}" for name in settable)
        return f"UPDATE {table} AS t SET {assigned} FROM {source} WHERE {same_row}{_and(newer.format('r'))}"  # noqa: S608
    listed = ", ".join(names)
    insert = f"INSERT INTO {table} AS t ({listed}) SELECT {listed} FROM {source} WHERE true"  # noqa: S608
    if operation == "insert":
        return insert
    keys = ", ".join(quote(column) for column in kind.key)
    assigned = ", ".join(f"{name} = excluded.{name}" for name in settable)
    guard = f" WHERE {newer.format('excluded')}" if newer else ""
    return f"{insert} ON CONFLICT ({keys}) DO UPDATE SET {assigned}{guard}"


def _and(condition: str) -> str:
    return f" AND {condition}" if condition else ""


def _with_slot(write: Delivery, slot_column: str) -> bytes:
    """The body with its slot put in front. The text is otherwise the producer's own, so numbers keep every digit."""
    data: bytes = write.message.data
    return b'{"%s":%d,%s' % (slot_column.encode(), write.slot, data.lstrip()[1:])


# Key columns whose values are equal exactly where the database's are.
_ROWS_AS_GIVEN: frozenset[ColumnType | None] = frozenset(("text", "integer", "bigint", "boolean"))


def _row(delivery: Delivery, kind: MessageType) -> tuple[Any, ...]:
    """The key as the database compares it, whichever way it was written: 1.0 and 1, or one moment in two time zones.

    Taking two rows for one would lose a write.
    """
    exact = delivery.body
    if any(type(exact[column]) is float and kind.columns[column] == "decimal" for column in kind.key):
        exact = json.loads(delivery.message.data, parse_float=Decimal)

    def canonical(column: str) -> Any:
        value = exact[column]
        match kind.columns[column]:
            case "number":
                return float(value)
            case "decimal":
                return Decimal(value)
            case "timestamp":
                return moment_of(value)
            case _:
                return value

    return tuple(map(canonical, kind.key))


def _is_text(value: object) -> bool:
    return (
        type(value) is str and "\x00" not in value
    )  # PostgreSQL can't hold a NUL, and SQLite would cut the text there


def _is_decimal(value: object) -> bool:
    if type(value) is not str:
        return type(value) in (int, float)
    try:
        return Decimal(value).is_finite() and value.isascii() and "_" not in value
    except InvalidOperation:
        return False


def _is_timestamp(value: object) -> bool:
    return type(value) is str and moment_of(value) is not None


# What a body may hold for a column of each type, whatever the database: SQLite would take anything. `type` instead of
# `isinstance`, since True is no number here.
_FITS: dict[ColumnType, Callable[[Any], bool]] = {
    "text": _is_text,
    "integer": lambda value: type(value) is int and -(1 << 31) <= value < 1 << 31,
    "bigint": lambda value: type(value) is int and -(1 << 63) <= value < 1 << 63,
    "number": lambda value: type(value) in (int, float),
    "decimal": _is_decimal,
    "boolean": lambda value: type(value) is bool,
    "timestamp": _is_timestamp,
    "json": lambda _: True,
}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
