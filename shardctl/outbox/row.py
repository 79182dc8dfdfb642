"""A row of an outbox, read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, LargeBinary, Text, cast

from shardctl.shard.outboxtables import outbox

UNREADABLE = "its attributes aren't a JSON object of texts"


@dataclass(frozen=True, slots=True)
class Row:
    """A write that waits. `attributes` is empty where they can't be read; `key` is its routing key, None where it is unknown."""

    position: int
    slot: int
    attributes: Mapping[str, str]
    body: bytes
    key: str | None = None

    @property
    def size(self) -> int:
        """Its bytes in a request, or a few more."""
        return len(self.body) + sum(4 * len(name) + 4 * len(value) + 16 for name, value in self.attributes.items()) + 64


def attributes_of(text: str) -> Mapping[str, str]:
    """Empty where they can't be read."""
    try:
        attributes = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    readable = isinstance(attributes, dict) and all(isinstance(value, str) for value in attributes.values())
    return attributes if readable else {}


def body_in(connection: Connection) -> ColumnElement[bytes]:
    """The body's column. SQLite keeps a text that was stored by hand as a text."""
    return cast(outbox.c.body, LargeBinary) if connection.dialect.name == "sqlite" else outbox.c.body


def enqueued_in(connection: Connection) -> ColumnElement[Any]:
    """The column of when a row was stored, for `utc`: SQLite also keeps what is no time."""
    return cast(outbox.c.enqueued_time, Text) if connection.dialect.name == "sqlite" else outbox.c.enqueued_time


def utc(moment: Any) -> datetime | None:
    """SQLite and MySQL keep UTC without saying so. None for what is no time."""
    try:
        time = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    except ValueError:
        return None
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)
