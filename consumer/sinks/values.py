"""What a body may hold, how its key compares, and its values in the plainest form."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from consumer.delivery import Delivery
from consumer.errors import DataFaultError, NeverError
from consumer.rows import moment_of, utc_text
from consumer.sinks.base import json_object
from shardctl.settings.messagetypes import ColumnType, MessageType


def read(delivery: Delivery, kind: MessageType) -> None:
    """Set the delivery's `body` and `row`. Raises NeverError where no database could take them."""
    body = json_object(delivery)
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


def plain(write: Delivery, kind: MessageType, whole_digits: int | None) -> dict[str, Any]:
    """The row with its slot, in values that every database's JSON functions read alike; see `Dialect`.

    Raises DataFaultError for a decimal with more than `whole_digits` before its point.
    """
    row: dict[str, Any] = {kind.slot_column: write.slot}
    exact: dict[str, Any] | None = None  # a float has lost what the body's text holds
    for column, value in write.body.items():
        of = kind.columns[column]
        if value is None or of not in _NOT_PLAIN:
            row[column] = value
        elif of == "timestamp":
            row[column] = utc_text(value)
        elif of == "json":
            row[column] = _json_text(value)
        else:
            if type(value) is float:
                exact = exact or json.loads(write.message.data, parse_float=str, parse_int=str)
                value = exact[column]  # noqa: PLW2901
            row[column] = digits = str(value)
            if whole_digits is not None and (amount := Decimal(digits)) and amount.adjusted() >= whole_digits:
                raise DataFaultError("bad_value", f"{column!r} has over {whole_digits} digits before its point")
    return row


_NOT_PLAIN: frozenset[ColumnType] = frozenset(("timestamp", "json", "decimal"))


def _json_text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError as error:
        raise DataFaultError("bad_value", "the body is nested too deeply") from error


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
