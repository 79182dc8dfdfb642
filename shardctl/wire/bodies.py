"""What a body may hold, by the columns of its type and the databases that store it. Pure.

Gateway, publisher, `shardctl publish` and consumer share these rules. A value that a database would refuse, or keep as another
value, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.wire.jsontext import Digits, JsonError, digits_of, exact, has_tiny_numbers, is_deeper, leaves, read_object
from shardctl.wire.values import ANY_DECIMAL, WANTED, Limits, Room, is_plain, test_of

Reason = Literal["bad_json", "unknown_column", "bad_value", "missing_key", "missing_version", "wrong_key"]

_SHOWN_CHARACTERS = 60
_WHOLE = frozenset(("integer", "bigint"))
_SPELT_ONE_WAY = _WHOLE | {"uuid", "date"}
_SPELT_MANY_WAYS = frozenset(("decimal", "number"))
_PLAIN = "a number without leading zeros, zeros behind its last decimal place, '+' and exponent, such as 7 or 0.5"
_NUMBERS = frozenset((int, float))
_NUL = b"\\u0000"  # the one way to write it in JSON
_BACKSLASH = ord("\\")


class BodyError(ValueError):
    """A body can't become a row, now or later: `reason` is the dead letter's, `where` the names that lead to the fault."""

    def __init__(self, reason: Reason, message: str, *where: str) -> None:
        super().__init__(message)
        self.reason, self.where = reason, where


class Rules:
    """The rules for one message type's bodies.

    With `at_entry` (gateway and publishers), keys that only some tables can't distinguish or can't hold are refused too. For
    messages that are already published, the database itself decides.
    """

    def __init__(self, kind: MessageType, limits: Limits, *, at_entry: bool = False) -> None:
        self.kind, self._limits = kind, limits
        self.types, self._lengths = kind.types, kind.lengths
        self._key, self._version = kind.key, kind.version_column  # read for each body: a model's attributes take longer
        self._fits = {
            column: test_of(self.types[column], self.room(column), self._lengths.get(column)) for column in kind.columns
        }
        self._any_texts = {column for column in kind.columns if kind.types[column] == "text"} - self._lengths.keys()
        self._json = [column for column, column_type in kind.types.items() if column_type == "json"]
        self._texts = [column for column in kind.key if kind.types[column] == "text"] if at_entry else []
        # Two spellings of one number are two routing keys, and so two slots, for one row.
        is_number = kind.types.get(kind.routing_field) in _SPELT_MANY_WAYS
        self._number = kind.routing_field if is_number and not kind.time_bucket else None

    def check(self, body: Mapping[str, Any], text: bytes, operation: str) -> None:
        """Raise BodyError unless a row can be made of `body`, which is what `read_object` read from `text`."""
        if not self._fits:
            return
        self._check_values(body, text)
        self._check_presence(body, operation)
        if self._json:
            self._check_json(body, text)
        if self._texts:
            self._check_texts(body)
        if self._number:
            self._check_number(self._number, body, text)

    def _check_number(self, field: str, body: Mapping[str, Any], text: bytes) -> None:
        number = routing_key_in(field, body, text)
        if number is not None and not is_plain(self.types[field], number):
            raise BodyError(
                "bad_value", f"{field!r} gives the routing key, so it must be {_PLAIN}, not {_shown(number)}", field
            )

    def _check_values(self, body: Mapping[str, Any], text: bytes) -> None:
        any_texts = frozenset() if _may_hold_nul(text) else self._any_texts
        for column, value in body.items():
            if type(value) is str and column in any_texts:  # nearly every value: a call for each would cost more
                continue
            test = self._fits.get(column)
            if test is None:
                raise BodyError(
                    "unknown_column", f"the body has {_shown(column)}, which isn't a column of this type", column
                )
            if value is None:
                continue
            fitting = test(value)
            if fitting is None:  # a float may have lost digits that matter
                fitting = test(digits_of(column, body, text))
            if not fitting:
                raise self._misfit(column, value)

    def _check_presence(self, body: Mapping[str, Any], operation: str) -> None:
        for column in self._key:
            if body.get(column) is None:
                raise BodyError("missing_key", f"the body lacks the key column {column!r}", column)
        version = self._version
        if version and operation != "delete" and body.get(version) is None:
            raise BodyError("missing_version", f"the body lacks the version column {version!r}", version)

    def room(self, column: str) -> Room:
        """Which decimals the column takes."""
        room, stated = self._limits.decimal, self.kind.precisions.get(column)
        if stated is None:
            return room
        precision, scale = stated
        return room._replace(whole_digits=min(room.whole_digits, precision - scale), places=min(room.places, scale))

    def _misfit(self, column: str, value: Any) -> BodyError:
        wanted = WANTED[self.kind.types[column]]
        if self.kind.types[column] == "decimal":
            wanted += f", with at most {self.room(column)}"
        if column in self._lengths:
            wanted += f", of at most {self._lengths[column]:,} characters"
        return BodyError("bad_value", f"{column!r} must be {wanted}, not {_shown(value)}", column)

    def _check_json(self, body: Mapping[str, Any], text: bytes) -> None:
        """The slower checks, where a first look at the text shows that they may find something."""
        most, places = self._limits.json_depth, self._limits.json_places
        if text.count(b"[") + text.count(b"{") > most:
            self._refuse_json(body, lambda value: is_deeper(value, most), f"nests arrays and objects over {most} deep")
        if _may_hold_nul(text):
            self._refuse_json(body, _holds_nul, "holds a NUL")
        if places is not None and (len(text) > places or has_tiny_numbers(text)):
            self._refuse_json(exact(text), _holds_tiny, f"holds a number of over {places:,} places")

        if self._limits.decimal.significant_digits is not None:  # a bare number's text would become a double
            room = self._limits.decimal
            digits = {
                column: digits_of(column, body, text) for column in self._json if type(body.get(column)) in _NUMBERS
            }
            self._refuse_json(
                digits, lambda number: number is not None and not room.takes(number), f"has more than {room}"
            )

    def _refuse_json(self, body: Mapping[str, Any], is_at_fault: Callable[[Any], bool], what: str) -> None:
        for column in self._json:
            if is_at_fault(body.get(column)):
                raise BodyError("bad_value", f"{column!r} {what}, which a database would refuse", column)

    def _check_texts(self, body: Mapping[str, Any]) -> None:
        limits, size = self._limits, 0
        for column in self._texts:
            value = body[column]
            if limits.pads_keys and value[-1:] == " ":
                raise BodyError(
                    "bad_value",
                    f"the key {column!r} ends in a blank, and MariaDB takes two keys that differ in that alone for one",
                    column,
                )
            if limits.key_characters is not None and len(value) > self._lengths.get(column, limits.key_characters):
                raise BodyError(
                    "bad_value",
                    f"the key {column!r} has {len(value):,} characters: over {limits.key_characters}",
                    column,
                )
            size += 4 * len(value)
        if limits.key_bytes is not None and size > limits.key_bytes:
            size = sum(len(body[column].encode()) for column in self._texts)
            if size > limits.key_bytes:
                raise BodyError(
                    "bad_value",
                    f"the key's texts have {size:,} bytes in UTF-8, and an index holds {limits.key_bytes:,}",
                    self._texts[0],
                )


def read(text: bytes) -> dict[str, Any]:
    """`read_object` with the consumer's reason. Raises BodyError."""
    try:
        return read_object(text)
    except JsonError as error:
        raise BodyError("bad_json", str(error), *error.where) from None


def check_key(kind: MessageType, body: Mapping[str, Any], text: bytes, key: str) -> None:
    """Raise BodyError where the body names another routing key: its row would be on another shard than its other writes.

    A body without the field names none: a delete that gives the table's key alone, say.
    """
    field = kind.routing_field
    value = body.get(field)
    if value == key or value is None:
        return
    named = routing_key_in(field, body, text)
    if named == key or (named is None and not kind.table):
        return
    what = f"is {_shown(named)}" if named is not None else "is neither text nor a number"
    raise BodyError(
        "wrong_key", f"the body's {field!r} {what}, and the routing key is {_shown(key)}: they must be equal", field
    )


def check_spelling(kind: MessageType, key: str) -> None:
    """Raise BodyError for a routing key that no body gives, such as `007` or a UUID in capitals: another one may be meant, whose
    slot is another.
    """
    field = kind.routing_field
    column_type = kind.types.get(field)
    if field not in kind.key:
        return
    if column_type in _SPELT_MANY_WAYS and not kind.time_bucket and not is_plain(column_type, key):
        raise BodyError("bad_value", f"no write has the key {_shown(key)}: {field!r} is {_PLAIN}", field)
    if column_type not in _SPELT_ONE_WAY:
        return
    value = _whole(key) if column_type in _WHOLE else key
    if value is None or not test_of(column_type, ANY_DECIMAL, None)(value):
        raise BodyError("bad_value", f"no write has the key {_shown(key)}: {field!r} is {WANTED[column_type]}", field)


def _whole(text: str) -> int | None:
    try:
        number = int(text)
    except ValueError:
        return None
    return number if str(number) == text else None


def routing_key_in(field: str, body: Mapping[str, Any], text: bytes) -> str | None:
    """The routing key that a body gives: its text, or its number as it was written; None where it gives none."""
    value = body.get(field)
    if type(value) is str:
        return value
    if type(value) is int:
        return str(value)
    return str(exact(text)[field]) if type(value) is float else None


def _may_hold_nul(text: bytes) -> bool:
    return _BACKSLASH in text and _NUL in text  # to look for one byte takes a tenth of the time


def _holds_nul(value: Any) -> bool:
    return any(type(leaf) is str and "\x00" in leaf for leaf in leaves(value))


def _holds_tiny(value: Any) -> bool:
    return any(isinstance(leaf, Digits) and not ANY_DECIMAL.takes(leaf) for leaf in leaves(value))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
