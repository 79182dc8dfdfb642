"""The type of `shards.yaml` for a column that exists, and what to know about it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import types as sa
from sqlalchemy.dialects import mysql, postgresql

from shardctl.drafting.catalog import ExistingColumn
from shardctl.fleet.settings.columns import MAX_CHARACTERS, MAX_PRECISION, MAX_SCALE

_UUID_OCTETS = 16


class Choice(NamedTuple):
    """`type` is None where no type fits; `note` says why, or what differs from what `shardctl provision` would make."""

    type: str | None
    note: str = ""


def choice_of(column: ExistingColumn, *, in_key: bool) -> Choice:
    """The type that `columns` gives it."""
    column_type = column.type
    if isinstance(column_type, postgresql.DOMAIN):
        column_type = column_type.data_type
    if column.is_json:
        return Choice("json")
    chosen = next((choose(column_type) for base, choose in _CHOICES if isinstance(column_type, base)), None)
    if chosen is None:
        return Choice(None, f"{column.native} has no type in this file")
    if in_key and chosen.type == "bytes":
        is_uuid = getattr(column_type, "length", None) == _UUID_OCTETS
        return (
            Choice("uuid", "16 bytes in a key, taken for a UUID") if is_uuid else Choice(None, "bytes can't be a key")
        )
    return Choice(None, "json can't be a key") if in_key and chosen.type == "json" else chosen


def _integer(column_type: Any) -> Choice:
    unsigned = getattr(column_type, "unsigned", False)
    if isinstance(column_type, sa.BigInteger):
        return Choice("numeric(20,0)", "unsigned") if unsigned else Choice("bigint")
    if isinstance(column_type, mysql.TINYINT) and column_type.display_width == 1:
        return Choice("boolean")
    narrow = isinstance(column_type, sa.SmallInteger | mysql.TINYINT | mysql.MEDIUMINT)
    if unsigned and not narrow:
        return Choice("bigint", "unsigned")
    return Choice(
        "integer", "a narrower integer: the database refuses what it can't hold" if narrow or unsigned else ""
    )


def _decimal(column_type: Any) -> Choice:
    precision, scale = column_type.precision, column_type.scale or 0
    if precision is None:
        return Choice("decimal")
    if precision <= MAX_PRECISION and 0 <= scale <= min(precision, MAX_SCALE):
        return Choice(f"numeric({precision},{scale})")
    return Choice("decimal", f"numeric({precision},{scale}) in the database, which refuses what it can't hold")


def _text(column_type: Any) -> Choice:
    if labels := getattr(column_type, "enums", None):
        return Choice("text", f"one of {', '.join(labels)}")
    length = getattr(column_type, "length", None)
    if length is None or isinstance(column_type, sa.Text):
        return Choice("text")
    return Choice(f"varchar({length})") if length <= MAX_CHARACTERS else Choice("text", f"at most {length} characters")


def _timestamp(column_type: Any) -> Choice:
    precision = getattr(column_type, "fsp", getattr(column_type, "precision", None))
    if isinstance(column_type, mysql.DATETIME | mysql.TIMESTAMP) and precision is None:
        precision = 0
    notes = [f"rounded to {precision} places of a second"] if precision is not None and precision < 6 else []
    if isinstance(column_type, postgresql.TIMESTAMP) and not column_type.timezone:
        notes.append("without a time zone: written in UTC")
    return Choice("timestamp", ", ".join(notes))


def _float(column_type: Any) -> Choice:
    is_double = isinstance(column_type, sa.Double | mysql.DOUBLE)
    return Choice("number", "" if is_double else "the database rounds it to its own precision")


def _always(column: str) -> Callable[[Any], Choice]:
    return lambda _: Choice(column)


# The first that fits: some types are also of a more general one.
_CHOICES: tuple[tuple[Any, Callable[[Any], Choice]], ...] = (
    (sa.Boolean, _always("boolean")),
    (mysql.YEAR, _always("integer")),
    (mysql.BIT, lambda _: Choice(None, "BIT has no type in this file")),
    (mysql.SET, lambda _: Choice(None, "SET has no type in this file")),
    (sa.Integer, _integer),
    (sa.Float, _float),
    (sa.Numeric, _decimal),
    (sa.JSON, _always("json")),
    (sa.DateTime, _timestamp),
    (sa.Date, _always("date")),
    (sa.Uuid, _always("uuid")),
    (postgresql.CITEXT, _always("text")),
    (sa.String, _text),
    (sa.LargeBinary, _always("bytes")),
    ((sa.BINARY, sa.VARBINARY, mysql.TINYBLOB, mysql.MEDIUMBLOB, mysql.LONGBLOB), _always("bytes")),
)
