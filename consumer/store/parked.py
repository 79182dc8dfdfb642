"""Keys whose order waits for a person: a failed message and, behind it, every later one of its type and routing key.

A key whose reason is TABLE_NOT_READY waits for its type's table instead, and a release may try it at any time.

A key is of one message type: the same routing key of another type is another key, so that a client that may write only one type
can't hold up the others.

Invariants kept here:
- while a key has a row in `shardctl_parked_keys`, its new messages are stored behind the failed one and none is applied;
- a message is parked in the transaction that records it in the inbox, so it is neither lost nor parked twice;
- writers share the key's row and a release locks it exclusively: a message comes either before the release begins, and is stored
  and then applied by it, or after it ended, and its key is free.

Why a writer sees the row of a key that another replica is parking at this moment: Pub/Sub redelivers in order, so a replica that
has a later message of the key was given the failed one too, in this batch or one before. Its insert met that message's inbox row
and waited for the other replica's transaction to end, and it asks for parked keys only after that. If every row of the batch was
new, it waited for no transaction that committed: then what the insert itself saw of `shardctl_parked_keys` is enough, and no
second statement asks.

No transaction that holds a key's row waits for one that waits for such a row, so none deadlocks there: a writer asks for the row
before it writes any of the user's rows, and a release locks one key a transaction, before anything else but a share of the fence.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    Update,
    and_,
    bindparam,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    tuple_,
    update,
)

from consumer.database import packet
from consumer.database.dialects import Dialect
from consumer.delivery import Delivery
from consumer.errors import DataFaultError, PermanentError
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.settings.columns import ColumnType
from shardctl.shard import schema
from shardctl.shard.schema import InboxOutcome, inbox, parked, parked_keys

Key = tuple[int, str, str]  # slot, message type, routing key

RELEASED_AT_ONCE = 1_000  # messages a transaction
RELEASED_BYTES_AT_ONCE = 16 * 1024**2  # likewise; the message that crosses it still goes along
KEYS_LOOKED_AT = 1_000  # released keys a look

_KEY: tuple[tuple[str, ColumnType], ...] = (
    ("slot", "integer"), ("message_type", "text"), ("partition_key", "text")
)  # fmt: skip
_NOT_READY = parked_keys.c.reason == schema.TABLE_NOT_READY
_COLUMNS = (parked_keys.c.slot, parked_keys.c.message_type, parked_keys.c.partition_key)
_ITS_ROW = update(inbox).where(inbox.c.slot == bindparam("of_slot"), inbox.c.identity == bindparam("of_identity"))
_SET_OUTCOME = _ITS_ROW.values(outcome=bindparam("becomes"))
_SET_APPLIED = _ITS_ROW.values(outcome=null(), published=bindparam("now"))


class Parked:
    """The parked keys and messages of one database. Each call is a part of its caller's transaction."""

    def __init__(self, dialect: Dialect) -> None:
        quote = dialect.quote
        self._any = f"SELECT slot FROM {quote(parked_keys.name)} LIMIT 1"  # noqa: S608
        self._find = (
            f"SELECT r.slot, r.message_type, r.partition_key FROM {quote(parked_keys.name)} AS t, {dialect.source(_KEY)} "  # noqa: S608
            "WHERE t.slot = r.slot AND t.message_type = r.message_type AND t.partition_key = r.partition_key"
        )

    def keys_of(self, connection: Connection, deliveries: Sequence[Delivery]) -> set[Key]:
        """Which keys of these messages are parked. Their rows are shared until the transaction ends."""
        if connection.exec_driver_sql(self._any).first() is None:
            return set()  # as nearly always, and far cheaper to ask
        wanted = {key_of(delivery) for delivery in deliveries if delivery.parks or delivery.fault is None}
        rows = [{"slot": slot, "message_type": kind, "partition_key": key} for slot, kind, key in wanted]
        keys = connection.exec_driver_sql(self._find, (orjson.dumps(rows).decode(),)).all()
        if not keys:
            return set()
        # Those that are still there once a release that holds them has ended.
        query = select(*_COLUMNS).where(tuple_(*_COLUMNS).in_(sorted(map(tuple, keys))))
        return {(slot, kind, key) for slot, kind, key in connection.execute(query.with_for_update(read=True))}

    def too_large(self, connection: Connection, delivery: Delivery) -> DataFaultError | None:
        """Why the message can't be stored here; None where it can."""
        row = _row(delivery)
        values = [value for value in row.values() if isinstance(value, str | bytes)]
        if packet.fits(connection, "", *values):
            return None
        return packet.too_large(connection, *values)

    def park(self, connection: Connection, deliveries: Sequence[Delivery], known: Collection[Key]) -> list[Delivery]:
        """Store messages in order. The first of each key that isn't `known` parks the key with its fault; these are returned."""
        heads: dict[Key, Delivery] = {}
        for delivery in deliveries:
            if key_of(delivery) not in known:
                heads.setdefault(key_of(delivery), delivery)
        if heads:
            rows = [
                {
                    "slot": key[0],
                    "message_type": key[1],
                    "partition_key": key[2],
                    "released": False,
                    **_fault(head.fault),
                }
                for key, head in sorted(
                    heads.items()
                )  # in one order for all, so that replicas wait instead of deadlocking
            ]
            connection.execute(insert(parked_keys), rows)
        connection.execute(insert(parked), [_row(delivery) for delivery in deliveries])
        self._settle(connection, deliveries, InboxOutcome.PARKED)
        return list(heads.values())

    def released(self, connection: Connection, active: Collection[int]) -> list[Key]:
        """Released keys whose slots are active here, those that were parked first at the beginning."""
        return _first_of(connection, active, parked_keys.c.released)

    def not_ready_types(self, connection: Connection) -> list[str]:
        if connection.exec_driver_sql(self._any).first() is None:
            return []
        query = select(parked_keys.c.message_type).where(_NOT_READY).distinct()
        return list(connection.scalars(query.order_by(parked_keys.c.message_type)))

    def not_ready(self, connection: Connection, active: Collection[int], message_type: str) -> list[Key]:
        """Keys of a type that wait for its table, of slots that are active here, the earliest parked first."""
        return _first_of(connection, active, and_(_NOT_READY, parked_keys.c.message_type == message_type))

    def take(self, connection: Connection, key: Key) -> bool:
        """Lock a key that may be released exclusively until the transaction ends. Waits for those who write behind it or release
        it now.
        """
        may_go_on = or_(parked_keys.c.released, _NOT_READY)
        query = select(parked_keys.c.slot).where(_row_of(key), may_go_on).with_for_update()
        return connection.scalar(query) is not None

    def first(self, connection: Connection, key: Key) -> list[tuple[int, Delivery]]:
        """The first messages of a key with their positions, in order; no more than fit into memory and a transaction."""
        sizes = (
            select(parked.c.position, func.length(parked.c.body))
            .where(_of_key(key))
            .order_by(parked.c.position)
            .limit(RELEASED_AT_ONCE)
        )
        last = total = 0
        for position, size in connection.execute(sizes):
            last = position
            total += size
            if total >= RELEASED_BYTES_AT_ONCE:
                break
        query = select(parked).where(_of_key(key), parked.c.position <= last).order_by(parked.c.position)
        return [(row.position, _delivery(row)) for row in connection.execute(query)]

    def finish_release(
        self, connection: Connection, key: Key, done: Sequence[tuple[int, Delivery]], fault: PermanentError | None
    ) -> bool:
        """Delete the first messages, which were applied. With a fault the key waits again; with nothing left it is free.

        True when more messages of the key may be applied.
        """
        if done:
            connection.execute(delete(parked).where(_of_key(key), parked.c.position <= done[-1][0]))
            self._settle(connection, [delivery for _, delivery in done], InboxOutcome.APPLIED)
        if fault:
            connection.execute(update(parked_keys).where(_row_of(key)).values(released=False, **_fault(fault)))
            return False
        if connection.scalar(select(parked.c.position).where(_of_key(key)).limit(1)) is not None:
            return True
        connection.execute(delete(parked_keys).where(_row_of(key)))
        return False

    def _settle(self, connection: Connection, deliveries: Sequence[Delivery], outcome: InboxOutcome) -> None:
        if outcome == InboxOutcome.APPLIED:
            # A copy may have been published while they waited, and may come again for as long as one that is published now.
            statement: Update = _SET_APPLIED
            more: dict[str, Any] = {"now": schema.published_now(connection)}
        else:
            statement, more = _SET_OUTCOME, {"becomes": outcome}
        # Each row by its key: for a join MySQL may read the whole inbox, and wait for rows of other transactions there.
        rows = [{"of_slot": d.slot, "of_identity": d.identity} for d in deliveries]
        connection.execute(statement, [{**more, **row} for row in rows])


def key_of(delivery: Delivery) -> Key:
    return delivery.slot, delivery.message_type, delivery.partition_key


def _first_of(connection: Connection, active: Collection[int], condition: ColumnElement[bool]) -> list[Key]:
    here = [parked_keys.c.slot.between(first, last) for first, last in SlotSet.of(active).ranges]
    if not here:
        return []
    query = select(*_COLUMNS).where(condition, or_(*here)).order_by(parked_keys.c.parked_time).limit(KEYS_LOOKED_AT)
    return [(slot, kind, key) for slot, kind, key in connection.execute(query)]


def _row_of(key: Key) -> ColumnElement[bool]:
    slot, kind, routing_key = key
    return and_(
        parked_keys.c.slot == slot, parked_keys.c.message_type == kind, parked_keys.c.partition_key == routing_key
    )


def _of_key(key: Key) -> ColumnElement[bool]:
    slot, kind, routing_key = key
    return and_(parked.c.slot == slot, parked.c.message_type == kind, parked.c.partition_key == routing_key)


def _fault(fault: PermanentError | None) -> dict[str, str]:
    return {"reason": fault.reason, "detail": fault.detail} if fault else {"reason": "", "detail": ""}


def _row(delivery: Delivery) -> dict[str, Any]:
    return {
        "slot": delivery.slot,
        "partition_key": delivery.partition_key,
        "message_type": delivery.message_type,
        "operation": delivery.operation,
        "idempotency_key": delivery.idempotency_key,
        "identity": delivery.identity,
        "message_id": delivery.message_id,
        "publish_time_us": delivery.publish_time_us,
        "attributes": orjson.dumps(dict(delivery.message.attributes)).decode(),
        "body": delivery.message.data,
    }


def _delivery(row: Any) -> Delivery:
    message = SimpleNamespace(data=bytes(row.body), attributes=orjson.loads(row.attributes), ordering_key="")
    return Delivery(
        "", "", message, row.message_id, row.publish_time_us, len(row.body), 0.0, row.slot, row.partition_key,
        row.message_type, row.operation, row.idempotency_key, bytes(row.identity), parks=True,
    )  # fmt: skip
