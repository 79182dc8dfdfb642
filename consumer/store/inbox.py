"""The inbox: a message's row commits in the transaction of its effect, so the effect is there once or not at all.

This is where exactly-once rests. Not on the Redis lock, not on a clock, not on Pub/Sub's promises: two replicas that apply the
same message at once meet on the inbox's primary key, the second waits for the first to end, and then has nothing new to apply.

Invariant: a message counts as a duplicate of an earlier one only if both have the same identity and the same fingerprint. One
with the same identity and another content is reported as `key_reused`; see `shardctl.wire.identity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from consumer.database import packet
from consumer.database.dialects import Dialect
from consumer.delivery import Delivery
from consumer.errors import BlockedError, PermanentError
from shardctl.fleet.settings.messagetypes import ColumnType
from shardctl.shard.schema import InboxOutcome, inbox, parked_keys
from shardctl.wire import identity
from shardctl.wire.deadletters import KEY_REUSED

_COLUMNS: tuple[tuple[str, ColumnType], ...] = (
    ("slot", "integer"),
    ("identity", "text"),
    ("fingerprint", "bigint"),
    ("message_type", "text"),
    ("partition_key", "text"),
    ("message_id", "text"),
    ("publish_time", "timestamp"),
    ("outcome", "text"),
)

Place = tuple[int, bytes]  # slot and identity: the inbox's key
Known = dict[Place, int | None]  # the fingerprints of rows that are there


@dataclass(frozen=True, slots=True)
class Added:
    """`fresh` messages were not there before. Those in `reused` have the identity of another write; their fault says so.

    `none_parked`: certainly no key is parked. See `consumer.store.parked` for why that was known when the insert began.
    """

    fresh: Sequence[Delivery] = ()
    reused: Sequence[Delivery] = ()
    none_parked: bool = False


NOTHING_ADDED = Added()


class Inbox:
    def __init__(self, dialect: Dialect) -> None:
        self._has_on_conflict = dialect.has_on_conflict
        self._offset = "Z" if dialect.reads_json_as_written else ""
        table, names = dialect.quote(inbox.name), ", ".join(dialect.quote(name) for name, _ in _COLUMNS)
        bytes_of_it = dialect.bytes_of("r.identity")
        values = ", ".join(bytes_of_it if name == "identity" else dialect.quote(name) for name, _ in _COLUMNS)
        # Sorted, so that two replicas with the same messages wait for each other instead of deadlocking.
        self._insert = (
            f"INSERT INTO {table} ({names}) SELECT {values} FROM {dialect.source(_COLUMNS)} "  # noqa: S608
            "WHERE true ORDER BY r.slot, r.identity"
        )
        if dialect.has_on_conflict:
            none_parked = f"NOT EXISTS (SELECT 1 FROM {dialect.quote(parked_keys.name)})"  # noqa: S608
            self._insert += f" ON CONFLICT DO NOTHING RETURNING slot, identity, {none_parked}"
        self._find = (
            f"SELECT t.slot, t.identity, t.fingerprint FROM {table} AS t, {dialect.source(_COLUMNS[:2])} "  # noqa: S608
            f"WHERE t.slot = r.slot AND t.identity = {bytes_of_it}"
        )

    def add(self, connection: Connection, deliveries: Sequence[Delivery]) -> Added:
        """Record the messages, in the order given. A message that comes twice counts once.

        One statement where all are new; what was there before is looked up only where the insert has found some.
        """
        first: dict[Place, Delivery] = {}
        for delivery in deliveries:
            first.setdefault(_place(delivery), delivery)
        known: Known = {} if self._has_on_conflict else self._look_up(connection, first)
        new = {place: delivery for place, delivery in first.items() if place not in known} if known else first
        none_parked = False
        if new:
            fresh, none_parked = self._insert_new(connection, new)
            if len(fresh) < len(new):
                none_parked = False  # it may have waited for a replica that has parked one since
                known |= self._look_up(connection, (place for place in new if place not in fresh))
                new = {place: delivery for place, delivery in new.items() if place in fresh}
        fresh_ones = list(new.values())
        if len(fresh_ones) == len(deliveries):
            return Added(fresh_ones, none_parked=none_parked)
        known |= {place: delivery.fingerprint for place, delivery in new.items()}
        return Added(fresh_ones, self._reused(connection, deliveries, known), none_parked)

    def _insert_new(self, connection: Connection, new: dict[Place, Delivery]) -> tuple[dict[Place, Delivery], bool]:
        """Insert rows; those that were not there, and whether no key was parked before, as far as the statement tells."""
        rows = [
            {
                "slot": slot,
                "identity": its_identity.hex(),
                "fingerprint": delivery.fingerprint,
                "message_type": _storable(delivery.message_type)[:100],
                "partition_key": _storable(delivery.partition_key),
                "message_id": delivery.message_id,
                "publish_time": _timestamp(delivery.publish_time_us) + self._offset,
                "outcome": InboxOutcome.DEAD if delivery.fault else InboxOutcome.APPLIED,
            }
            for (slot, its_identity), delivery in new.items()
        ]
        fresh, none_parked = new, False
        for part, text in packet.parts(connection, (self._insert,), rows, _text):  # several parts are for MySQL alone
            fresh, none_parked = self._insert_part(connection, text, len(part), new)
        return fresh, none_parked

    def _insert_part(
        self, connection: Connection, text: str, count: int, new: dict[Place, Delivery]
    ) -> tuple[dict[Place, Delivery], bool]:
        if self._has_on_conflict:
            fresh = connection.exec_driver_sql(self._insert, (text,)).all()
            none_parked = bool(fresh and fresh[0][2])
            all_are = len(fresh) == count
            return new if all_are else {place: new[place] for place in map(_read_place, fresh)}, none_parked
        try:
            connection.exec_driver_sql(self._insert, (text,))
        except IntegrityError as error:  # no fault of the data: another replica inserted one after we had looked
            raise BlockedError("another replica was quicker with the same messages") from error
        return new, False

    def _reused(self, connection: Connection, deliveries: Sequence[Delivery], known: Known) -> list[Delivery]:
        """Messages that say something else than the write whose identity they have, unless that was recorded before."""
        others = [delivery for delivery in deliveries if not _same(delivery, known)]
        if not others:
            return []
        refusals = {delivery: (delivery.slot, identity.of_refusal(delivery.message_id)) for delivery in others}
        recorded = self._look_up(connection, refusals.values())
        reused = [delivery for delivery in others if refusals[delivery] not in recorded]
        for delivery in reused:
            refuse(delivery)
        return reused

    def known(self, connection: Connection, deliveries: Sequence[Delivery]) -> set[Delivery]:
        """The messages that are recorded and committed."""
        known = self._look_up(connection, map(_place, deliveries))
        return {delivery for delivery in deliveries if _place(delivery) in known and _same(delivery, known)}

    def _look_up(self, connection: Connection, places: Iterable[Place]) -> Known:
        rows = [{"slot": slot, "identity": its_identity.hex()} for slot, its_identity in places]
        known: Known = {}
        for _, text in packet.parts(connection, (self._find,), rows, _text):
            known |= {_read_place(row): row[2] for row in connection.exec_driver_sql(self._find, (text,))}
        return known


def _place(delivery: Delivery) -> Place:
    return delivery.slot, delivery.identity


def _read_place(row: Sequence[Any]) -> Place:
    return row[0], bytes(row[1])


def _same(delivery: Delivery, known: Known) -> bool:
    """Whether the row that is there is this write's. Raises BlockedError where it was deleted after the insert had met it."""
    try:
        its_fingerprint = known[_place(delivery)]
    except KeyError:
        raise BlockedError("a message's inbox row was deleted in this moment") from None
    return its_fingerprint is None or its_fingerprint == delivery.fingerprint


def refuse(delivery: Delivery) -> None:
    """From here on it is a message at fault, with a row of its own, so that a redelivery doesn't report it once more.

    It doesn't park its key: no later write may need what nobody can apply under this key.
    """
    name = f"{'message id' if delivery.keyless else 'idempotency key'} {delivery.idempotency_key!r}"
    delivery.fault = PermanentError(
        KEY_REUSED, f"{name} was used before, by this caller and type, with another operation, routing key or body"
    )
    delivery.identity, delivery.parks = identity.of_refusal(delivery.message_id), False


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
