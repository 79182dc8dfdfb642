"""The types of `columns` in `shards.yaml`, and what other languages call them. docs/values.md has the table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast, get_args

from pydantic_core import CoreSchema, core_schema

from shardctl.fleet.scalars import Text, shown

ColumnType = Literal[
    "text", "integer", "bigint", "number", "decimal", "boolean", "timestamp", "date", "uuid", "bytes", "json"
]

MAX_PRECISION, MAX_SCALE = 65, 30  # MariaDB's and MySQL's, the smallest among the databases
MAX_CHARACTERS = 16_383  # of `varchar(n)`: what MySQL's row of 65,535 bytes holds
_NUMERIC = re.compile(r"numeric\(([0-9]{1,2})(?:, ?([0-9]{1,2}))?\)")
_VARCHAR = re.compile(r"varchar\(([0-9]{1,5})\)")
_DIGITS = re.compile(r"(?:numeric|decimal|dec|number) ?\(([0-9]{1,2})(?: ?, ?([0-9]{1,2}))?\)")
_LENGTH = re.compile(r"(?:n?varchar2?|(?:n|bp)?char|character(?: varying)?) ?\((?P<length>[0-9]{1,5})\)")

# What databases and languages call the types.
_MEANT = {
    other: name
    for name, others in {
        "text": "varchar, char, character, character varying, nvarchar, nchar, bpchar, string, str, citext, tinytext, "
        "mediumtext, longtext, clob, enum",
        "integer": "int, int2, int4, smallint, mediumint, tinyint, int32, serial, smallserial, year",
        "bigint": "int8, int64, long, bigserial",
        "number": "float, float4, float8, double, double precision, real",
        "decimal": "money",
        "numeric(p,s)": "numeric, dec",
        "boolean": "bool, bit",
        "timestamp": "timestamptz, datetime, datetime2, timestamp with time zone, timestamp without time zone",
        "date": "day",
        "uuid": "guid, uniqueidentifier",
        "bytes": "binary, varbinary, blob, tinyblob, mediumblob, longblob, bytea, byte, bytearray, image",
        "json": "jsonb",
    }.items()
    for other in (*others.split(", "), name)
}
_TIMES_OF_DAY = frozenset(("time", "timetz", "interval", "duration", "time with time zone", "time without time zone"))


def _column(value: Any, handler: Callable[[Any], Any]) -> str:
    if isinstance(value, str):
        if match := _NUMERIC.fullmatch(value):
            return _numeric(value, int(match[1]), int(match[2] or 0))
        if match := _VARCHAR.fullmatch(value):
            return _varchar(value, int(match[1]))
        if advice := _advice(value):
            raise ValueError(f"{shown(value)} isn't a type of this file; {advice}")
    return str(handler(value))


def _numeric(text: str, precision: int, scale: int) -> str:
    if not 1 <= precision <= MAX_PRECISION or scale > min(precision, MAX_SCALE):
        raise ValueError(
            f"{text} can't be: a precision is 1 to {MAX_PRECISION} digits, and a scale at most {MAX_SCALE} of them"
        )
    return f"numeric({precision},{scale})"


def _varchar(text: str, characters: int) -> str:
    if not 1 <= characters <= MAX_CHARACTERS:
        raise ValueError(f"{text} can't be: a length is 1 to {MAX_CHARACTERS:,} characters; `text` has no limit")
    return f"varchar({characters})"


def _advice(value: str) -> str | None:
    """What to write instead of another language's type. None where the value is a type here, or is unknown."""
    if value in get_args(ColumnType):
        return None
    lowered = " ".join(value.lower().split())
    if match := _LENGTH.fullmatch(lowered):
        return f"write varchar({int(match['length'])})"
    if match := _DIGITS.fullmatch(lowered):
        return f"write numeric({match[1]},{match[2] or 0})"
    name = lowered.partition("(")[0].strip()
    if name.startswith(("int", "bigint")) and lowered.endswith("unsigned"):
        return f"write {'bigint' if name.startswith('int') else 'numeric(20,0)'}"
    if name in _TIMES_OF_DAY:
        return "times of day and intervals have none: keep them as text, in a column of text"
    meant = _MEANT.get(name) or _MEANT.get(name.partition(" ")[0])
    return f"write {meant}" if meant else None


def type_of(column: str) -> ColumnType:
    """What a column of `columns` holds."""
    if column.startswith("numeric("):
        return "decimal"
    return "text" if column.startswith("varchar(") else cast("ColumnType", column)


def precision_of(column: str) -> tuple[int, int] | None:
    """Precision and scale, where they are stated."""
    match = _NUMERIC.fullmatch(column)
    return (int(match[1]), int(match[2] or 0)) if match else None


def length_of(column: str) -> int | None:
    """The most characters of a text, where they are stated."""
    match = _VARCHAR.fullmatch(column)
    return int(match[1]) if match else None


class _ColumnText(Text):
    """A ColumnType, or one with its size in parentheses."""

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        known = core_schema.literal_schema(list(get_args(ColumnType)))
        return core_schema.no_info_wrap_validator_function(
            _column, known, serialization=core_schema.to_string_ser_schema()
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: object) -> dict[str, Any]:
        return {
            "anyOf": [
                {"type": "string", "enum": list(get_args(ColumnType))},
                {"type": "string", "pattern": rf"^{_NUMERIC.pattern}$"},
                {"type": "string", "pattern": rf"^{_VARCHAR.pattern}$"},
            ]
        }


_NAMED = get_args(ColumnType)
Column = Annotated[
    str,
    _ColumnText(
        f"{'|'.join(_NAMED)}|{_NUMERIC.pattern}|{_VARCHAR.pattern}",
        f"one of {', '.join(f'`{name}`' for name in _NAMED)}, `numeric(p,s)`: p digits, s of them behind the point, or "
        "`varchar(n)`: at most n characters",
        20,
    ),
]
