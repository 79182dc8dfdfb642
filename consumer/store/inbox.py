"""The inbox: a message's row commits in the transaction of its effect, so the effect is there once or not at all.

This is where exactly-once rests. Not on the Redis lock, not on a clock, not on Pub/Sub's promises: two replicas that apply the
same message at once meet on the inbox's primary key, the second waits for the first to end, and then has nothing new to apply.

Invariant: a message counts as a duplicate of an earlier one only if both have the same identity, the same fingerprint, and the
same hash of type and routing key. One with the same identity and another content is reported as `key_reused`; see
`shardctl.wire.identity`.

A row's time is when its message was published, since what can bring a message again is limited from then on. So a duplicate that
was published much later than the row says gives the row its own time: it may come again for longer.

While rows of 0.1.0 are moved (see `shardctl.shard.upgrade`), a message is looked for among those first, and only then inserted
here. Each such row is in exactly one of both tables at any moment, and moves one way only: what isn't found in the old table is
in the new one by the time of the insert, or nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, update
from sqlalchemy.exc import IntegrityError

from consumer.database import packet
from consumer.database.dialects import Dialect
from consumer.delivery import Delivery
from consumer.errors import BlockedError, PermanentError
from shardctl.fleet.settings.columns import ColumnType
from shardctl.shard import inbox_0_1
from shardctl.shard.schema import OUTCOME_CODES, InboxOutcome, inbox, parked_keys, published
from shardctl.wire import identity
from shardctl.wire.deadletters import KEY_REUSED

_COLUMNS: tuple[tuple[str, ColumnType], ...] = (
    ("identity", "text"),
    ("slot", "integer"),
    ("key_hash", "integer"),
    ("fingerprint", "integer"),
    ("published", "integer"),
    ("outcome", "integer"),
)
_OLD_KEY: tuple[tuple[str, ColumnType], ...] = (("slot", "integer"), ("idempotency_key", "text"))
_DEAD = OUTCOME_CODES[InboxOutcome.DEAD]
_PARKED = OUTCOME_CODES[InboxOutcome.PARKED]

_EXPLAIN = (
    update(inbox)
    .where(inbox.c.slot == bindparam("of_slot"), inbox.c.identity == bindparam("of_identity"))
    .values(reason=bindparam("because"))
)

LATER_SECONDS = 3_600  # a duplicate that was published so much later than its row says is remembered from then on

Place = tuple[int, bytes]  # slot and identity: a row's key

_REMEMBER_LONGER = (
    update(inbox)
    .where(
        inbox.c.slot == bindparam("of_slot"),
        inbox.c.identity == bindparam("of_identity"),
        inbox.c.published < bindparam("later"),
    )
    .values(published=bindparam("later"))
)


@dataclass(frozen=True, slots=True)
class Row:
    """What a row that is there says of its write. `fingerprint` is None where 0.1.0 wrote it."""

    key_hash: int
    fingerprint: int | None
    published: int
    outcome: int | None

    def is_of(self, delivery: Delivery) -> bool:
        if self.fingerprint is None:
            return True
        return self.fingerprint == delivery.fingerprint and self.key_hash == _key_hash(delivery)


Known = dict[Place, Row]
_OF_0_1 = Row(
    0, None, (1 << 31) - 1, None
)  # of a row in the old table: equals every write of its identity, and stays as it is


@dataclass(frozen=True, slots=True)
class Added:
    """`fresh` messages were not there before. Those in `reused` have the identity of another write; their fault says so.

    `none_parked`: certainly no key is parked. See `consumer.store.parked` for why that was known when the insert began.
    """

    fresh: Sequence[Delivery] = ()
    reused: Sequence[Delivery] = ()
    refreshed: Sequence[Delivery] = ()
    none_parked: bool = False


NOTHING_ADDED = Added()


class Inbox:
    """`beside_old`, in each call: rows of 0.1.0 may still be in their own table."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect, self._has_on_conflict = dialect, dialect.has_on_conflict
        table, names = dialect.quote(inbox.name), ", ".join(dialect.quote(name) for name, _ in _COLUMNS)
        its_identity = dialect.identity_of("r.identity")
        values = ", ".join(its_identity if name == "identity" else f"r.{dialect.quote(name)}" for name, _ in _COLUMNS)
        # Sorted, so that two replicas with the same messages wait for each other instead of deadlocking.
        insert = (
            f"INSERT INTO {table} ({names}) SELECT {values} FROM {dialect.source(_COLUMNS)} "  # noqa: S608
            "WHERE true ORDER BY r.identity"
        )
        none_parked = f"NOT EXISTS (SELECT 1 FROM {dialect.quote(parked_keys.name)})"  # noqa: S608
        self._insert = dialect.insert_new(insert, none_parked) if dialect.has_on_conflict else insert
        self._find = (
            f"SELECT t.slot, r.identity, t.key_hash, t.fingerprint, t.published, t.outcome FROM {table} AS t, "  # noqa: S608
            f"{dialect.source(_COLUMNS[:2])} WHERE t.slot = r.slot AND t.identity = {its_identity}"
        )
        self._find_old = (
            f"SELECT t.slot, t.idempotency_key, t.message_type, t.message_id FROM {dialect.quote(inbox_0_1.NAME)} AS t, "  # noqa: S608
            f"{dialect.source(_OLD_KEY)} WHERE t.slot = r.slot AND t.idempotency_key = r.idempotency_key"
        )

    def add(self, connection: Connection, deliveries: Sequence[Delivery], *, beside_old: bool = False) -> Added:
        """Record the messages, in the order given. A message that comes twice counts once.

        One statement where all are new; what was there before is looked up only where the insert has found some.
        """
        first: dict[Place, Delivery] = {}
        for delivery in deliveries:
            first.setdefault(_place(delivery), delivery)
        known = self._known_before(connection, first, beside_old=beside_old)
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
        refreshed = self._remember_longer(connection, deliveries, known)
        known |= {place: _row(delivery) for place, delivery in new.items()}
        return Added(fresh_ones, self._reused(connection, deliveries, known), refreshed, none_parked)

    def _known_before(self, connection: Connection, first: dict[Place, Delivery], *, beside_old: bool) -> Known:
        """What has to be looked up before anything is inserted. First the old table, whose rows come into the new one."""
        known = self._look_up_old(connection, first.values()) if beside_old else {}
        if not self._has_on_conflict:
            known |= self._look_up(connection, (place for place in first if place not in known))
        return known

    def _insert_new(self, connection: Connection, new: dict[Place, Delivery]) -> tuple[dict[Place, Delivery], bool]:
        """Insert rows; those that were not there, and whether no key was parked before, as far as the statement shows."""
        rows = [
            {
                "identity": its_identity.hex(),
                "slot": slot,
                "key_hash": _key_hash(delivery),
                "fingerprint": delivery.fingerprint,
                "published": published(delivery.publish_time_us),
                **({"outcome": _DEAD} if delivery.fault else {}),
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
            inserted = self._dialect.inserted(partial(connection.exec_driver_sql, self._insert), text, count)
            if inserted.count == count:
                return new, inserted.none_parked
            fresh = {place: delivery for place, delivery in new.items() if place[1].hex() in inserted.identities}
            return fresh, inserted.none_parked
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
        refusals = {delivery: refusal_of(delivery) for delivery in others}
        recorded = self._look_up(connection, refusals.values())
        reused = [delivery for delivery in others if refusals[delivery] not in recorded]
        for delivery in reused:
            refuse(delivery)
        return reused

    def _remember_longer(self, connection: Connection, deliveries: Sequence[Delivery], known: Known) -> list[Delivery]:
        """Give rows the time of duplicates that were published much later, and return these. Not those of parked messages: a
        release locks them behind rows of the user's, and none is forgotten while it is parked.
        """
        latest: dict[Place, Delivery] = {}
        for delivery in deliveries:
            place = _place(delivery)
            row = known.get(place)
            if row is None or row.outcome == _PARKED or not row.is_of(delivery):
                continue
            before = latest[place].publish_time_us if place in latest else 0
            if (
                published(delivery.publish_time_us) - row.published > LATER_SECONDS
                and delivery.publish_time_us > before
            ):
                latest[place] = delivery
        in_order = sorted(latest.values(), key=lambda delivery: delivery.identity)  # the insert's
        rows = [
            {"of_slot": delivery.slot, "of_identity": delivery.identity, "later": published(delivery.publish_time_us)}
            for delivery in in_order
        ]
        if rows:
            connection.execute(_REMEMBER_LONGER, rows)
        return in_order

    def explain(self, connection: Connection, dead: Sequence[Delivery]) -> None:
        """Give the rows of dead messages their reasons. A statement of its own, so that the insert of all others has none."""
        rows = [
            {"of_slot": delivery.slot, "of_identity": delivery.identity, "because": delivery.fault.reason}
            for delivery in dead
            if delivery.fault
        ]
        connection.execute(_EXPLAIN, rows)

    def known(
        self, connection: Connection, deliveries: Sequence[Delivery], *, beside_old: bool = False
    ) -> set[Delivery]:
        """The messages that are recorded and committed."""
        known = self._look_up_old(connection, deliveries) if beside_old else {}
        known |= self._look_up(
            connection, (place for delivery in deliveries if (place := _place(delivery)) not in known)
        )
        return {delivery for delivery in deliveries if _place(delivery) in known and _same(delivery, known)}

    def _look_up(self, connection: Connection, places: Iterable[Place]) -> Known:
        rows = [{"slot": slot, "identity": its_identity.hex()} for slot, its_identity in places]
        known: Known = {}
        if not rows:
            return known
        for _, text in packet.parts(connection, (self._find,), rows, _text):
            for slot, its_identity, *says in connection.exec_driver_sql(self._find, (text,)):
                known[slot, bytes.fromhex(its_identity)] = Row(*says)
        return known

    def _look_up_old(self, connection: Connection, deliveries: Iterable[Delivery]) -> Known:
        """Those that are in 0.1.0's table. It knew a write by its key and slot alone."""
        by_place = {_place(delivery): delivery for delivery in deliveries}
        rows = [{"slot": slot, "idempotency_key": delivery.idempotency_key} for (slot, _), delivery in by_place.items()]
        known: Known = {}
        if not rows:
            return known
        for _, text in packet.parts(connection, (self._find_old,), rows, _text):
            for slot, key, message_type, message_id in connection.exec_driver_sql(self._find_old, (text,)):
                places = (
                    (slot, its_identity) for its_identity in inbox_0_1.identities(slot, key, message_type, message_id)
                )
                known |= {place: _OF_0_1 for place in places if place in by_place}
        return known


def _place(delivery: Delivery) -> Place:
    return delivery.slot, delivery.identity


def _row(delivery: Delivery) -> Row:
    """As it has just been inserted."""
    its_time = published(delivery.publish_time_us)
    return Row(_key_hash(delivery), delivery.fingerprint, its_time, _DEAD if delivery.fault else None)


def _key_hash(delivery: Delivery) -> int:
    return identity.key_hash(delivery.message_type, delivery.partition_key)


def refusal_of(delivery: Delivery) -> Place:
    """Where it is recorded that a message was refused because its identity belongs to another write."""
    return delivery.slot, identity.in_slot(identity.of_refusal(delivery.message_id), delivery.slot)


def _same(delivery: Delivery, known: Known) -> bool:
    """Whether the row that is there is this write's. Raises BlockedError where it was deleted after the insert had met it."""
    try:
        row = known[_place(delivery)]
    except KeyError:
        raise BlockedError("a message's inbox row was deleted in this moment") from None
    return row.is_of(delivery)


def refuse(delivery: Delivery) -> None:
    """From here on it is a message at fault, with a row of its own, so that a redelivery doesn't report it once more.

    It doesn't park its key: no later write depends on a write that can't be applied under this key.
    """
    name = f"{'message id' if delivery.keyless else 'idempotency key'} {delivery.idempotency_key!r}"
    delivery.fault = PermanentError(
        KEY_REUSED, f"{name} was used before, by this caller and type, with another operation, routing key or body"
    )
    delivery.identity, delivery.parks = refusal_of(delivery)[1], False


def _text(rows: Sequence[dict[str, Any]]) -> str:
    return orjson.dumps(rows).decode()
