"""What a body may hold, by the columns of its type: what a consumer would set aside is refused at the door. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from shardctl.settings.messagetypes import ColumnType, MessageType, Operation

_SHOWN_CHARACTERS = 60


class FieldError(ValueError):
    """Something in a request can't be taken. `where` is a JSON pointer into the body, or the name of what else is at fault.

    `kind` says which: pointer, parameter or header.
    """

    def __init__(self, where: str, message: str, kind: str = "pointer") -> None:
        super().__init__(message)
        self.where, self.kind = where, kind


def pointer(*names: str) -> str:
    """A JSON pointer as a URI fragment writes it."""
    return "#" + "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)


def check(kind: MessageType, fits: Mapping[str, Callable[[Any], bool]], body: Mapping[str, Any], to: Operation) -> None:
    """Raise FieldError unless a row can be made of `body`; `fits` is `checks_of(kind)`."""
    for column, value in body.items():
        test = fits.get(column)
        if test is None:
            raise FieldError(pointer(column), f"{_shown(column)} isn't a column of this type")
        if value is not None and not test(value):
            raise FieldError(
                pointer(column), f"{_shown(column)} must be {_WANTED[kind.columns[column]]}, not {_shown(value)}"
            )
    for column in kind.key:
        if body.get(column) is None:
            raise FieldError(pointer(column), f"the body lacks the key column {column!r}")
    if kind.version_column and to != "delete" and body.get(kind.version_column) is None:
        raise FieldError(pointer(kind.version_column), f"the body lacks the version column {kind.version_column!r}")


def checks_of(kind: MessageType) -> Mapping[str, Callable[[Any], bool]]:
    """What each column's value must pass. Empty for a type whose bodies aren't rows."""
    return {column: FITS[of] for column, of in kind.columns.items()}


def as_written(text: bytes, data: Any) -> bytes:
    """JSON with every digit of its numbers as it came. `data` is what orjson read from `text`.

    orjson writes numbers in their shortest form, which for most texts is what they are. Raises FieldError where a name is given
    twice: readers differ in which of the two they take.
    """
    if _plain(data) == text:
        return text
    try:
        json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise FieldError("#", "nested too deeply") from error
    return text.strip(_BLANKS)


def body_as_written(line: bytes, data: Mapping[str, Any]) -> bytes:
    """The field `body` of a line, every digit as it came. `data` is what orjson read from `line`. Raises as `as_written`."""
    if _plain(data) == line:
        return orjson.dumps(data["body"])
    try:
        exact = json.loads(line, object_pairs_hook=_once, parse_float=_Digits, parse_int=_Digits)
    except RecursionError as error:
        raise FieldError("#", "nested too deeply") from error
    return orjson.dumps(exact["body"], default=_digits_of, option=orjson.OPT_PASSTHROUGH_SUBCLASS)


_BLANKS = b" \t\r\n"


def _plain(data: Any) -> bytes:
    try:
        return orjson.dumps(data)
    except orjson.JSONEncodeError as error:  # it reads deeper than it writes
        raise FieldError("#", "nested too deeply") from error


class _Digits(str):
    """A number as it was written."""

    __slots__ = ()


def _digits_of(value: object) -> orjson.Fragment:
    if isinstance(value, _Digits):
        return orjson.Fragment(str(value))
    raise TypeError


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise FieldError(pointer(name), f"{_shown(name)} is given twice")
            seen.add(name)
    return found


# --- values -----------------------------------------------------------------------------------------------------------

_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?P<fraction>\.\d{1,12})?)?(?:Z|[+-]\d\d:\d\d)?)?", re.ASCII
)


def _is_text(value: object) -> bool:
    return type(value) is str and "\x00" not in value


def _is_number(value: object) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_decimal(value: object) -> bool:
    if type(value) is not str:
        return _is_number(value)
    try:
        return value.isascii() and "_" not in value and Decimal(value).is_finite()
    except InvalidOperation:
        return False


def _is_timestamp(value: object) -> bool:
    match = _MOMENT.fullmatch(value) if type(value) is str else None
    if match is None:
        return False
    fraction = match["fraction"]
    try:
        if fraction is None or len(fraction) <= len(".123456"):
            moment = datetime.fromisoformat(match[0])
        else:
            moment = datetime.fromisoformat(match[0].replace(fraction, "")) + timedelta(
                seconds=round(float(fraction), 6)
            )
        if moment.tzinfo:
            moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return False
    return True


# As the consumer's own, which reads what other producers write too.
FITS: Mapping[ColumnType, Callable[[Any], bool]] = {
    "text": _is_text,
    "integer": lambda value: type(value) is int and -(1 << 31) <= value < 1 << 31,
    "bigint": lambda value: type(value) is int and -(1 << 63) <= value < 1 << 63,
    "number": _is_number,
    "decimal": _is_decimal,
    "boolean": lambda value: type(value) is bool,
    "timestamp": _is_timestamp,
    "json": lambda _: True,
}

_WANTED: Mapping[ColumnType, str] = {
    "text": "text without NUL",
    "integer": "a whole number of 32 bits",
    "bigint": "a whole number of 64 bits",
    "number": "a number",
    "decimal": "a number, or text that is one",
    "boolean": "true or false",
    "timestamp": "an RFC 3339 time as text",
    "json": "JSON",
}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
