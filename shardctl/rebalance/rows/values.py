"""Values on their way from one database to another: how they are read, written, and compared.

Each column has a kind, which all databases share. Between two databases of one product a value stays as it is. Between others it
takes the form that the destination keeps, and is compared in a canonical form that both sides have in common.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Context, Decimal, InvalidOperation
from enum import StrEnum
from typing import Any

from sqlalchemy import types as sa
from sqlalchemy.dialects import mysql, postgresql

Convert = Callable[[Any], Any]

MYSQL = ("mysql", "mariadb")
MICROSECONDS = 6  # digits
_ALL_DIGITS = Context(prec=200_000)  # more than any database keeps


class Kind(StrEnum):
    INTEGER = "integer"
    BOOLEAN = "boolean"
    DECIMAL = "decimal"
    DOUBLE = "double"
    TEXT = "text"
    BYTES = "bytes"
    MOMENT = "moment"  # date and time, in UTC where it has a time zone
    JSON = "json"
    UUID = "uuid"  # PostgreSQL's and MariaDB's, moved as its text; elsewhere 16 bytes, or text
    OTHER = "other"  # moved as its text: dates, arrays, …
    UNKNOWN = "unknown"


_KINDS: tuple[tuple[type[sa.TypeEngine[Any]], Kind], ...] = (
    (sa.NullType, Kind.UNKNOWN),
    (sa.Boolean, Kind.BOOLEAN),
    (sa.Integer, Kind.INTEGER),
    (sa.Float, Kind.DOUBLE),  # before Numeric, which it is one of
    (sa.Numeric, Kind.DECIMAL),
    (sa.JSON, Kind.JSON),
    (sa.DateTime, Kind.MOMENT),
    (sa.String, Kind.TEXT),
    (sa.LargeBinary, Kind.BYTES),
    (sa.BINARY, Kind.BYTES),
    (sa.VARBINARY, Kind.BYTES),
    *((mysql_type, Kind.BYTES) for mysql_type in (mysql.TINYBLOB, mysql.MEDIUMBLOB, mysql.LONGBLOB, mysql.BIT)),
)


def kind_of(product: str, column_type: sa.TypeEngine[Any]) -> Kind:
    """The kind of a reflected column type."""
    kind = next((kind for base, kind in _KINDS if isinstance(column_type, base)), Kind.OTHER)
    if product == "postgresql" and kind is Kind.UNKNOWN:
        return Kind.OTHER  # an extension's type; every type of PostgreSQL has a text form
    if product == "postgresql" and isinstance(column_type, postgresql.ENUM):
        return Kind.OTHER
    if product != "sqlite" and isinstance(column_type, sa.Uuid):
        return Kind.UUID
    return kind


def precision_of(product: str, column_type: sa.TypeEngine[Any]) -> int:
    """How many digits of a second a column of kind MOMENT keeps."""
    if product in MYSQL:
        return getattr(column_type, "fsp", None) or 0
    precision = getattr(column_type, "precision", None)
    return MICROSECONDS if precision is None else int(precision)


def reading(product: str, quoted: str, column_type: sa.TypeEngine[Any]) -> str:
    """What to select, so that the driver hands out every digit."""
    kind = kind_of(product, column_type)
    if product == "postgresql":
        if kind is Kind.DOUBLE:
            return f"CAST({quoted} AS double precision)"
        if kind is Kind.MOMENT and getattr(column_type, "timezone", False):
            return f"CAST({quoted} AT TIME ZONE 'UTC' AS text)"
        return f"CAST({quoted} AS text)" if kind in _AS_TEXT else quoted
    if product in MYSQL:
        if kind is Kind.DOUBLE:
            return f"({quoted} + 0e0)"  # a FLOAT would show six digits
        return f"CAST({quoted} AS CHAR)" if kind in {Kind.MOMENT, Kind.UUID, Kind.OTHER} else quoted
    return quoted


_AS_TEXT = frozenset({Kind.TEXT, Kind.MOMENT, Kind.JSON, Kind.UUID, Kind.OTHER, Kind.UNKNOWN})
_MEETING: dict[frozenset[Kind], Kind] = {
    frozenset({Kind.INTEGER, Kind.BOOLEAN}): Kind.INTEGER,
    frozenset({Kind.INTEGER, Kind.DECIMAL}): Kind.DECIMAL,
    frozenset({Kind.TEXT, Kind.JSON}): Kind.JSON,
    frozenset({Kind.TEXT, Kind.BYTES}): Kind.BYTES,
    frozenset({Kind.TEXT, Kind.OTHER}): Kind.TEXT,
    frozenset({Kind.TEXT, Kind.UUID}): Kind.TEXT,
    frozenset({Kind.OTHER, Kind.UUID}): Kind.OTHER,
    frozenset({Kind.BYTES, Kind.UUID}): Kind.UUID,
}


def meeting(source: Kind, destination: Kind) -> Kind | None:
    """The kind as which values of both are compared; None where one can't become the other."""
    return source if source is destination else _MEETING.get(frozenset({source, destination}))


def writer(product: str, source: Kind, destination: Kind, precision: int) -> Convert | None:
    """What makes of a value as `reading` gives it one that a column of `destination` on `product` takes. None: nothing."""
    if (between := _BETWEEN.get((source, destination))) is not None:
        return between
    if destination is Kind.MOMENT and precision < MICROSECONDS:
        return lambda value: _moment(value, precision)  # cut: a database would round
    if source is Kind.BOOLEAN:
        return int
    if product == "sqlite" and Kind.DECIMAL in {source, destination}:
        return str
    return None


def canonical(met: Kind, precision: int) -> Convert | None:
    """What makes equal values of two databases equal in Python. None: they are."""
    if met is Kind.MOMENT:
        return lambda value: _moment(value, precision)
    return _CANONICAL.get(met)


def _encoded(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else bytes(value)


def _uuid(value: Any) -> bytes:
    return bytes.fromhex(value.replace("-", "")) if isinstance(value, str) else bytes(value)


def _moment(value: Any, precision: int) -> str:
    whole, _, fraction = str(value).replace("T", " ", 1).partition(".")
    return f"{whole}.{fraction:0<6.{precision}}" if precision else whole


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _decimal(value: Any) -> Any:
    try:
        number = value if isinstance(value, Decimal) else Decimal(str(value))
    except InvalidOperation:
        return value
    if number.is_nan():
        return "nan"
    return _ALL_DIGITS.normalize(number) if number else 0


def _double(value: Any) -> Any:
    return value + 0.0 if isinstance(value, int | float) else value  # some keep the sign of -0.0, others don't


def _json(value: Any) -> Any:
    """Databases keep other blanks, another order of names, the last of two equal names, and other ways to write a number."""
    text = value.decode() if isinstance(value, bytes) else str(value)  # SQLite makes a number of what looks like one
    try:
        read = json.loads(text, parse_float=_JsonNumber, parse_int=_JsonNumber)
        return json.dumps(read, sort_keys=True, default=_JsonNumber.encoded)
    except (ValueError, RecursionError, TypeError):
        return text


class _JsonNumber:
    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @staticmethod
    def encoded(number: _JsonNumber) -> list[str]:
        return ["number", str(_decimal(number._text))]


_CANONICAL: dict[Kind, Convert] = {
    Kind.INTEGER: _whole,
    Kind.BOOLEAN: _whole,
    Kind.DECIMAL: _decimal,
    Kind.DOUBLE: _double,
    Kind.BYTES: _encoded,
    Kind.UUID: _uuid,
    Kind.JSON: _json,
}
_BETWEEN: dict[tuple[Kind, Kind], Convert] = {
    (Kind.TEXT, Kind.BYTES): _encoded,
    (Kind.BYTES, Kind.TEXT): bytes.decode,
    (Kind.UUID, Kind.BYTES): _uuid,
    (Kind.BYTES, Kind.UUID): bytes.hex,
}
