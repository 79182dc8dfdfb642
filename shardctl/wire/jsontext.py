"""Bodies as JSON text: read strictly, written from Python's values, and no digit of a number lost either way. Pure."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import orjson

MAX_DEPTH = 250  # arrays and objects within each other, the body itself counted: less than any reader on the way allows
_ORJSON_BITS, _DOUBLE_BITS = 64, 1024  # of the largest whole number that orjson writes, and that readers take
_BLANKS = b" \t\r\n"
_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


class JsonError(ValueError):
    """The text or the value can't be a body: says why, and `where` by the names that lead there."""

    def __init__(self, message: str, *where: str) -> None:
        super().__init__(message)
        self.where = where


class Digits(str):
    """A number as it was written."""

    __slots__ = ()


class JsonBody(Mapping[str, Any]):
    """A body that came as JSON text, for `Write.body`: it is published as it came, every digit of its numbers included.

    Raises JsonError unless the text is one JSON object that gives no name twice.
    """

    __slots__ = ("data", "text")

    def __init__(self, text: bytes | str) -> None:
        self.text = (text.encode() if isinstance(text, str) else text).strip(_BLANKS)
        self.data = read_object(self.text)

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"JsonBody({self.text!r})"


def read_object(text: bytes) -> dict[str, Any]:
    """The object that `text` holds. Raises JsonError unless it is one, names nothing twice and nests at most MAX_DEPTH deep.

    A number that isn't a whole one of 64 bits comes as the nearest float: `exact` has its digits.
    """
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise JsonError(f"the body isn't JSON: {error}") from None
    if type(data) is not dict:
        raise JsonError("the body must be a JSON object")
    if len(text) > MAX_DEPTH:  # else there is no room for so many brackets
        check_depth(text, data)
    if not _names_are_distinct(text, data):
        exact(text)
    return data


def exact(text: bytes) -> Any:
    """What `text` holds, with numbers as `Digits`. It has passed `read_object` or `check_depth`. Raises JsonError."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_float=Digits, parse_int=Digits)
    except RecursionError as error:  # the caller's own stack is nearly full
        raise JsonError("the body is nested too deeply") from error


def check_depth(text: bytes, data: Any, most: int = MAX_DEPTH) -> None:
    """Raise JsonError where `data`, which was read from `text` or is a part of it, nests deeper than `most`."""
    if text.count(b"[") + text.count(b"{") > most and is_deeper(data, most):
        raise JsonError(f"the body is nested too deeply: over {most} arrays and objects within each other")


def is_deeper(data: Any, most: int) -> bool:
    """Whether arrays and objects nest deeper than `most`, `data` itself counted."""
    level = [data] if type(data) in _CONTAINERS else []
    for _ in range(most):
        if not level:
            return False
        level = [
            part
            for whole in level
            for part in (whole.values() if type(whole) is dict else whole)
            if type(part) in _CONTAINERS
        ]
    return bool(level)


_CONTAINERS = frozenset((dict, list))


def leaves(data: Any) -> Iterator[Any]:
    """Every name and every value that isn't an array or an object. In no order."""
    waiting = [data]
    while waiting:
        part = waiting.pop()
        if type(part) is dict:
            yield from part
            waiting.extend(part.values())
        elif type(part) is list:
            waiting.extend(part)
        else:
            yield part


def text_of(value: Any) -> bytes:
    """JSON text of what `exact` or `orjson.loads` gave, without blanks."""
    return orjson.dumps(value, default=_number, option=orjson.OPT_PASSTHROUGH_SUBCLASS)


def is_plain(text: bytes, data: Any) -> bool:
    """Whether `text` is just what orjson writes of `data`: then each float's shortest form is what stands in the text."""
    return orjson.dumps(data) == text


def has_long_numbers(text: bytes) -> bool:
    """Whether a number in `text` may have an exponent, or over 15 digits; also where a text looks so."""
    return _LONG.search(text) is not None


def has_tiny_numbers(text: bytes) -> bool:
    """Whether a number in `text` may have an exponent below -999; also where a text looks so."""
    return (b"e-" in text or b"E-" in text) and _TINY.search(text) is not None


def digits_of(column: str, body: Mapping[str, Any], text: bytes) -> Digits:
    """A number of the body in digits that have its exact value."""
    value = body[column]
    if type(value) is not float:
        return Digits(value)
    # A double tells 15 digits apart, so its own shortest form is what was written unless there were more.
    if value and (is_plain(text, body) or not has_long_numbers(text)):
        return Digits(repr(value))
    return Digits(exact(text)[column])


_TINY = re.compile(rb"\d[eE]-\d{4}")
_LONG = re.compile(rb"\d[eE]|[\d.]{17}")


def _names_are_distinct(text: bytes, data: dict[str, Any]) -> bool:
    """Cheap; False where only a closer look can decide. Each name and each text has two quotation marks."""
    if is_plain(text, data):
        return True
    texts, waiting = 0, [data]
    while waiting:
        part: Any = waiting.pop()
        if type(part) is dict:
            texts += len(part)
            part = part.values()
        for value in part:
            kind = type(value)
            if kind is str:
                texts += 1
            elif kind is dict or kind is list:
                waiting.append(value)
    return text.count(b'"') == 2 * texts


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise JsonError(f"{name!r:.60} is given twice", name)
            seen.add(name)
    return members


def _number(value: object) -> orjson.Fragment:
    if isinstance(value, Digits):
        return orjson.Fragment(str(value))
    raise TypeError


# --- from Python's values ---------------------------------------------------------------------------------------------


def written(body: Mapping[str, Any]) -> bytes:
    """The body as JSON text, each value exactly: whole numbers of any size, Decimal as a number, times and UUIDs as text.

    Raises JsonError for NaN and infinities, for half a surrogate pair, and for what JSON has no form for.
    """
    if isinstance(body, JsonBody):
        return body.text
    try:
        text = orjson.dumps(dict(body), default=_simpler, option=_OPTIONS)
    except TypeError:
        text = b""
    if text and b"null" not in text:  # NaN and the infinities become null
        return text
    try:
        return orjson.dumps(_exactly(dict(body), (), MAX_DEPTH), option=_OPTIONS)
    except TypeError as error:
        if "surrogate" in str(error):
            raise JsonError("the body holds half a surrogate pair, which isn't text") from None
        raise JsonError(f"the body isn't JSON: {error}") from error
    except RecursionError as error:
        raise JsonError("the body is nested too deeply") from error


def _exactly(value: Any, where: tuple[str, ...], depth: int) -> Any:
    """The value in types whose every value orjson writes exactly."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return _whole(value, where)
    if isinstance(value, float | Decimal):
        return _finite(value, where)
    if isinstance(value, dict | list | tuple):
        return _parts(value, where, depth)
    try:
        return _exactly(_simpler(value), where, depth)
    except TypeError:
        raise JsonError(f"the body isn't JSON, which has no {type(value).__name__}", *where) from None


def _whole(value: int, where: tuple[str, ...]) -> int | orjson.Fragment:
    if value.bit_length() < _ORJSON_BITS:
        return value
    if value.bit_length() > _DOUBLE_BITS:
        raise JsonError("the body isn't JSON that others can read: the number is larger than any double", *where)
    return orjson.Fragment(str(int(value)))


def _finite(value: float | Decimal, where: tuple[str, ...]) -> float | orjson.Fragment:
    if isinstance(value, Decimal):
        if value.is_finite():
            return orjson.Fragment(str(value))
    elif math.isfinite(value):
        return float(value)
    raise JsonError(f"the body isn't JSON, which has no {value}", *where)


def _parts(value: Any, where: tuple[str, ...], depth: int) -> Any:
    if not depth:
        raise JsonError("the body is nested too deeply", *where[:3])
    if isinstance(value, dict):
        return {name: _exactly(part, (*where, str(name)), depth - 1) for name, part in value.items()}
    return [_exactly(part, (*where, str(number)), depth - 1) for number, part in enumerate(value)]


def _simpler(value: Any) -> Any:
    """The value in a simpler type. Raises TypeError where there is none."""
    for kind, form in _FORMS:
        if isinstance(value, kind):
            return form(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError


def _decimal(value: Decimal) -> orjson.Fragment:
    if not value.is_finite():
        raise TypeError
    return orjson.Fragment(str(value))


def _moment(value: datetime) -> str:
    """RFC 3339 has offsets of whole minutes alone; before there were time zones, places had others."""
    offset = value.utcoffset()
    return (value if offset is None or not offset.total_seconds() % 60 else value.astimezone(UTC)).isoformat()


_FORMS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (Enum, lambda value: value.value),
    (Decimal, _decimal),
    (datetime, _moment),
    (date, date.isoformat),
    (time, time.isoformat),
    (UUID, str),
    (float, float),
    (Mapping, dict),
)
