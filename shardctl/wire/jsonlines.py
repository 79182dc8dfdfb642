"""Writes as JSON lines: one object a line with "type", "body" and, if wanted, the rest. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from shardctl.wire.jsontext import JsonBody, JsonError, check_depth, exact, is_plain, text_of
from shardctl.wire.message import Write

FIELDS = ("type", "body", "key", "operation", "idempotency_key", "timestamp")
MAX_LINE_BYTES = 10 * 1024**2

_KNOWN = frozenset(FIELDS)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineError(ValueError):
    """The line isn't a write: says what is wrong with it, and `field` with which of its fields, if with one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def fields_of(line: bytes) -> dict[str, Any]:
    """The fields of a line, each of its right kind; those left out are missing. Raises LineError."""
    if len(line) > MAX_LINE_BYTES:
        raise LineError(f"over {MAX_LINE_BYTES // 1024**2} MiB")
    try:
        data = orjson.loads(line.removeprefix(_BYTE_ORDER_MARK))
    except orjson.JSONDecodeError as error:
        raise LineError(f"not JSON: {error}") from error
    if type(data) is not dict:
        raise LineError('not an object with "type" and "body"')
    if not data.keys() <= _KNOWN:
        unknown = next(name for name in data if name not in _KNOWN)
        raise LineError(f"unknown field {unknown!r}; known: {', '.join(FIELDS)}", unknown)
    if type(data.get("type")) is not str:
        raise LineError('"type" must be text', "type")
    if type(data.get("body")) is not dict:
        raise LineError('"body" must be an object', "body")
    for name, value in data.items():
        if value is not None and type(value) is not str and name != "body":
            raise LineError(f'"{name}" must be text', name)
    return data


def body_text(line: bytes, fields: Mapping[str, Any]) -> bytes:
    """The text of the field `body`, every digit as it came. `fields` is what `fields_of` read from `line`. Raises LineError."""
    try:
        check_depth(line, fields["body"])
        if is_plain(line, fields):
            return orjson.dumps(fields["body"])
        return text_of(exact(line)["body"])
    except JsonError as error:
        raise LineError(str(error), error.where[-1] if error.where else None) from None


def write_of(line: bytes) -> Write:
    """A line as a Write, whose body is published as it came. Raises LineError."""
    fields = fields_of(line)
    body = JsonBody(body_text(line, fields))
    return Write(**{**fields, "body": body, "timestamp": time_of(fields.get("timestamp"))})


def time_of(text: str | None) -> datetime | None:
    """The time that the field `timestamp` names. Raises LineError."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise LineError(f'"timestamp" isn\'t an RFC 3339 time: {text[:40]!r}', "timestamp") from error
