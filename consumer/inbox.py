"""The inbox: a message's row commits in the transaction of its effect, so the effect is there once or not at all.

This is where exactly-once rests. Not on the Redis lock, not on a clock, not on Pub/Sub's promises: two replicas that apply the
same message at once meet on the inbox's primary key, the second waits for the first to end, and then finds nothing new.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from consumer import packet
from consumer.delivery import Delivery
from consumer.errors import BlockedError
from consumer.rows import Dialect
from shardctl.schema import InboxOutcome, inbox
from shardctl.settings.messagetypes import ColumnType

_COLUMNS: tuple[tuple[str, ColumnType], ...] = (
    ("slot", "integer"),
    ("idempotency_key", "text"),
    ("message_type", "text"),
    ("partition_key", "text"),
    ("message_id", "text"),
    ("publish_time", "timestamp"),
    ("outcome", "text"),
)


class Inbox:
    def __init__(self, dialect: Dialect) -> None:
        self._has_on_conflict = dialect.has_on_conflict
        self._offset = "Z" if dialect.reads_json_as_written else ""
        table, names = dialect.quote(inbox.name), ", ".join(dialect.quote(name) for name, _ in _COLUMNS)
        # Sorted, so that two replicas with the same messages wait for each other instead of deadlocking.
        self._insert = (
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {dialect.source(_COLUMNS)} "  # noqa: S608
            "WHERE true ORDER BY slot, idempotency_key"
        )
        if dialect.has_on_conflict:
            self._insert += " ON CONFLICT DO NOTHING RETURNING slot, idempotency_key"
        same = "t.slot = r.slot AND t.idempotency_key = r.idempotency_key"
        self._find = f"SELECT r.slot, r.idempotency_key FROM {table} AS t, {dialect.source(_COLUMNS[:2])} WHERE {same}"  # noqa: S608

    def add(self, connection: Connection, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Record the messages; those that were not there before, in the order given. A message that comes twice counts once."""
        first: dict[tuple[int, str], Delivery] = {}
        for delivery in deliveries:
            first.setdefault((delivery.slot, delivery.idempotency_key), delivery)
        if not self._has_on_conflict:
            known = self.known(connection, list(first.values()))
            first = {identity: delivery for identity, delivery in first.items() if delivery not in known}
        if not first:
            return []
        rows = [
            {
                "slot": slot,
                "idempotency_key": key,
                "message_type": _storable(delivery.message_type)[:100],
                "partition_key": _storable(delivery.partition_key),
                "message_id": delivery.message_id,
                "publish_time": _timestamp(delivery.publish_time_us) + self._offset,
                "outcome": InboxOutcome.DEAD if delivery.fault else InboxOutcome.APPLIED,
            }
            for (slot, key), delivery in first.items()
        ]
        new: set[tuple[int, str]] | None = None
        for part, text in packet.parts(connection, (self._insert,), rows, _text):
            new = self._new(connection, text, len(part))  # several parts are for MySQL alone, which says None of each
        return [delivery for identity, delivery in first.items() if new is None or identity in new]

    def _new(self, connection: Connection, rows: str, count: int) -> set[tuple[int, str]] | None:
        """Insert the rows and say which were not there; None means all."""
        if self._has_on_conflict:
            fresh = connection.exec_driver_sql(self._insert, (rows,)).all()
            return None if len(fresh) == count else {(slot, key) for slot, key in fresh}
        try:
            connection.exec_driver_sql(self._insert, (rows,))
        except IntegrityError as error:  # no fault of the data: another replica inserted one after we had looked
            raise BlockedError("another replica was quicker with the same messages") from error
        return None

    def known(self, connection: Connection, deliveries: Sequence[Delivery]) -> set[Delivery]:
        """The messages that are recorded and committed."""
        rows = [{"slot": delivery.slot, "idempotency_key": delivery.idempotency_key} for delivery in deliveries]
        there: set[tuple[Any, ...]] = set()
        for _, text in packet.parts(connection, (self._find,), rows, _text):
            there.update(map(tuple, connection.exec_driver_sql(self._find, (text,))))
        return {delivery for delivery in deliveries if (delivery.slot, delivery.idempotency_key) in there}


def _text(rows: Sequence[dict[str, Any]]) -> str:
    return orjson.dumps(rows).decode()


def _storable(text: str) -> str:
    """A dead message may carry anything in its attributes, and must be recorded all the same: no text holds a NUL."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def _timestamp(microseconds: int) -> str:
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{_whole_second(seconds)}.{rest:06d}"


@lru_cache(maxsize=4096)  # a batch spans few seconds, and writing one out costs more than the rest of its row
def _whole_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
