"""What a column may hold: by its type, and by what a kind of database keeps exactly. Pure; docs/values.md has the table."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from shardctl.fleet.settings.columns import ColumnType
from shardctl.fleet.settings.databases import DatabaseKind
from shardctl.wire.jsontext import MAX_DEPTH, Digits

_MAX_CHARACTERS = 160_000  # of a decimal: more than any database takes, so that no body is expensive to check
MAX_EXPONENT, MAX_PLACES = 131_072, 16_383  # as PostgreSQL reads a decimal, whatever zeros it ends in


class Room(NamedTuple):
    """Which decimals a column holds exactly: by digits before the point, behind it, and in all."""

    whole_digits: int
    places: int
    significant_digits: int | None = None  # but for whole numbers of 64 bits

    def __str__(self) -> str:
        in_all = f", {self.significant_digits} in all" if self.significant_digits else ""
        return f"{self.whole_digits:,} digits before its point and {self.places:,} behind it{in_all}"

    @property
    def is_ample(self) -> bool:
        """Whether it holds every number of 15 digits before its point and 15 behind it, and every whole one of 64 bits."""
        return self.whole_digits >= 20 and self.places >= 15 and self.significant_digits is None

    def takes(self, text: str) -> bool:
        """Whether the text is a number that fits; zeros at its end don't count."""
        if len(text) > _MAX_CHARACTERS or not _DECIMAL.fullmatch(text):
            return False
        number = Decimal(text)
        _, digits, exponent = number.as_tuple()
        if not isinstance(exponent, int) or not -MAX_PLACES <= exponent < MAX_EXPONENT:
            return False
        return not number or (number.adjusted() < self.whole_digits and self._takes_digits(number, digits, exponent))

    def _takes_digits(self, number: Decimal, digits: tuple[int, ...], exponent: int) -> bool:
        if self.significant_digits is None and -exponent <= self.places:
            return True
        zeros = next(count for count, digit in enumerate(reversed(digits)) if digit)
        if -exponent - zeros > self.places:
            return False
        if self.significant_digits is None or len(digits) - zeros <= self.significant_digits:
            return True
        return -exponent <= zeros and -(1 << 63) <= number < 1 << 63


ANY_DECIMAL = Room(MAX_EXPONENT, MAX_PLACES)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a kind of database keeps exactly."""

    decimal: Room
    json_depth: int = MAX_DEPTH  # arrays and objects within each other in a json column
    json_places: int | None = None  # of a number in a json column
    key_characters: int | None = None  # of a key's `text`, as `shardctl provision` makes the column
    key_bytes: int | None = None  # of all texts of a key
    pads_keys: bool = False  # treats texts as equal that differ only in trailing blanks


_MARIADB = Limits(Room(35, 30), json_depth=31, key_characters=255, pads_keys=True)
LIMITS: Mapping[DatabaseKind, Limits] = {
    "postgresql": Limits(ANY_DECIMAL, json_places=MAX_PLACES, key_bytes=2_600),
    "mariadb": _MARIADB,
    "mysql": _MARIADB,
    "sqlite": Limits(Room(290, 290, 15)),
}


def strictest(kinds: Iterable[DatabaseKind]) -> Limits:
    """What each of these kinds of database keeps."""
    limits = [LIMITS[kind] for kind in kinds]
    return Limits(
        Room(*(_least(limit.decimal[number] for limit in limits) for number in range(len(Room._fields)))),  # type: ignore[arg-type]
        json_depth=min(limit.json_depth for limit in limits),
        json_places=_least(limit.json_places for limit in limits),
        key_characters=_least(limit.key_characters for limit in limits),
        key_bytes=_least(limit.key_bytes for limit in limits),
        pads_keys=any(limit.pads_keys for limit in limits),
    )


def _least(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


# What RFC 3339 allows, and a bare date or no offset besides: what every database reads, and reads as the same moment.
# PostgreSQL takes no offset of 16 hours.
_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ][0-2]\d:\d\d(?::\d\d(?P<fraction>\.\d{1,12})?)?(?:Z|[+-](?:0\d|1[0-5]):\d\d)?)?", re.ASCII
)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_UUID = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)  # in one form: two spellings of a key would be two keys
_DECIMAL = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,9})?", re.ASCII)
_PLAIN = re.compile(r"0|-?(?:[1-9]\d*|(?:0|[1-9]\d*)\.\d*[1-9])", re.ASCII)
_SHORT = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?", re.ASCII)
MICROSECOND = timedelta(microseconds=1)

# Whether a value fits; None for a float that must be looked at again as the digits that it was written with.
Test = Callable[[Any], bool | None]


def moment_of(text: str) -> datetime | None:
    """The moment that a timestamp names, rounded to microseconds as databases do; UTC where it gives no offset.

    None where it isn't a timestamp that every database takes.
    """
    match = _MOMENT.fullmatch(text)
    if match is None:
        return None
    fraction = match["fraction"]
    try:
        if fraction is None or len(fraction) <= len(".123456"):
            moment = datetime.fromisoformat(text)
        else:
            whole = datetime.fromisoformat(text.replace(fraction, ""))
            moment = whole + round(float(fraction) * 1_000_000) * MICROSECOND
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def date_of(text: str) -> date | None:
    """The day that an RFC 3339 full-date names; None where it is none."""
    try:
        return date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        return None


def bytes_of(text: str) -> bytes | None:
    """What base64 stands for, in its one form: the standard alphabet, padded, no line breaks, no stray bits. Else None."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return data if base64_of(data) == text else None


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_of(column_type: ColumnType, room: Room, characters: int | None) -> Test:
    """What a value of a column must pass; `room` is a decimal's, `characters` how many a text may have."""
    if characters is not None:
        return lambda value: _is_text(value) and len(value) <= characters
    if column_type != "decimal":
        return _TESTS[column_type]
    is_ample = room.is_ample

    def is_decimal(value: object) -> bool | None:
        if type(value) is float:
            return None
        if type(value) is int:
            return is_ample or room.takes(str(value))
        return isinstance(value, str) and ((is_ample and _SHORT.fullmatch(value) is not None) or room.takes(value))

    return is_decimal


def is_plain(column_type: ColumnType, text: str) -> bool:
    """Whether a number is written in the one form that a routing key may have: `7` and `0.5`, not `07`, `7.0`, `7e0` or `+7`.

    A column of doubles also takes only digits that its double is shown with: a longer number would be the row of another one.
    """
    if len(text) > _MAX_CHARACTERS or not _PLAIN.fullmatch(text):
        return False
    return column_type != "number" or Decimal(repr(float(text))) == Decimal(text)


def _is_text(value: object) -> bool:
    return (
        type(value) is str and "\x00" not in value
    )  # PostgreSQL can't hold a NUL, and SQLite would cut the text there


def _is_number(value: object) -> bool | None:
    if type(value) is float:
        return True if value else None  # it may be one that is too small for a double
    return type(value) is int or (isinstance(value, Digits) and not Decimal(value))


# `type` instead of `isinstance`, since True is no number here.
_TESTS: Mapping[ColumnType, Test] = {
    "text": _is_text,
    "integer": lambda value: type(value) is int and -(1 << 31) <= value < 1 << 31,
    "bigint": lambda value: type(value) is int and -(1 << 63) <= value < 1 << 63,
    "number": _is_number,
    "boolean": lambda value: type(value) is bool,
    "timestamp": lambda value: type(value) is str and moment_of(value) is not None,
    "date": lambda value: type(value) is str and date_of(value) is not None,
    "uuid": lambda value: type(value) is str and _UUID.fullmatch(value) is not None,
    "bytes": lambda value: type(value) is str and bytes_of(value) is not None,
    "json": lambda _: True,
}

WANTED: Mapping[ColumnType, str] = {
    "text": "text without NUL",
    "integer": "a whole number of 32 bits",
    "bigint": "a whole number of 64 bits",
    "number": "a number that a double can stand for",
    "decimal": "a number, or text that is one",
    "boolean": "true or false",
    "timestamp": "an RFC 3339 time as text",
    "date": "a day as text, such as 2026-12-31",
    "uuid": "a UUID in lower-case hexadecimal digits with hyphens",
    "bytes": "bytes in base64, padded and without line breaks",
    "json": "JSON",
}
