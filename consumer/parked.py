"""Keys whose order waits for a person: a failed message and, behind it, every later one of its routing key.

Invariants kept here:
- while a key has a row in `shardctl_parked_keys`, its new messages are stored behind the failed one and none is applied;
- a message is parked in the transaction that records it in the inbox, so it is neither lost nor parked twice;
- writers share the key's row and whoever releases it takes it alone: a message comes either before the release ends, and is
  stored and then applied by it, or after, and finds the key free.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update

from consumer.delivery import Delivery
from consumer.errors import NeverError
from shardctl.schema import InboxOutcome, inbox, parked, parked_keys

Key = tuple[int, str]  # slot, routing key

RELEASED_AT_ONCE = 1_000  # messages a transaction
RELEASES_LOOKED_AT = 20  # keys, of which one is taken

_ANY = select(parked_keys.c.slot).limit(1)


def held_keys(connection: Connection, slots: Collection[int]) -> set[Key]:
    """The parked keys of these slots, shared until the transaction ends."""
    if connection.scalar(_ANY) is None:
        return set()  # as nearly always, and far cheaper to ask
    query = select(parked_keys.c.slot, parked_keys.c.partition_key).where(parked_keys.c.slot.in_(sorted(slots)))
    return {(slot, key) for slot, key in connection.execute(query.with_for_update(read=True))}


def park(connection: Connection, deliveries: Sequence[Delivery], held: set[Key]) -> None:
    """Store messages in order. The first of a key that isn't in `held` makes its row there, with its fault."""
    heads = []
    for delivery in deliveries:
        key = (delivery.slot, delivery.partition_key)
        if key not in held:
            held.add(key)
            heads.append({"slot": key[0], "partition_key": key[1], "released": False, **_fault(delivery.fault)})
    if heads:
        connection.execute(insert(parked_keys), heads)
    connection.execute(
        insert(parked),
        [
            {
                "slot": delivery.slot,
                "partition_key": delivery.partition_key,
                "message_type": delivery.message_type,
                "operation": delivery.operation,
                "idempotency_key": delivery.idempotency_key,
                "message_id": delivery.message_id,
                "publish_time_us": delivery.publish_time_us,
                "attributes": orjson.dumps(dict(delivery.message.attributes)).decode(),
                "body": delivery.message.data,
            }
            for delivery in deliveries
        ],
    )
    _set_outcome(connection, deliveries, InboxOutcome.PARKED)


def released_key(connection: Connection, active: Collection[int]) -> Key | None:
    """A key that may be applied now, taken alone until the transaction ends; one that another replica has is passed over."""
    query = (
        select(parked_keys.c.slot, parked_keys.c.partition_key)
        .where(parked_keys.c.released)
        .limit(RELEASES_LOOKED_AT)
        .with_for_update(skip_locked=True)
    )
    return next(((slot, key) for slot, key in connection.execute(query) if slot in active), None)


def waiting(connection: Connection, key: Key) -> list[tuple[int, Delivery]]:
    """The first messages of a parked key with their positions, in order."""
    query = select(parked).where(_of_key(key)).order_by(parked.c.position).limit(RELEASED_AT_ONCE)
    return [(row.position, _delivery(row)) for row in connection.execute(query)]


def unpark(connection: Connection, key: Key, done: Sequence[tuple[int, Delivery]], fault: NeverError | None) -> None:
    """Take out messages that were applied. With a fault the key waits again; with nothing left it is free."""
    if done:
        connection.execute(delete(parked).where(parked.c.position.in_([position for position, _ in done])))
        _set_outcome(connection, [delivery for _, delivery in done], InboxOutcome.APPLIED)
    head = and_(parked_keys.c.slot == key[0], parked_keys.c.partition_key == key[1])
    if fault:
        connection.execute(update(parked_keys).where(head).values(released=False, **_fault(fault)))
    elif not connection.scalar(select(func.count()).select_from(parked).where(_of_key(key))):
        connection.execute(delete(parked_keys).where(head))


def _of_key(key: Key) -> ColumnElement[bool]:
    return and_(parked.c.slot == key[0], parked.c.partition_key == key[1])


def _fault(fault: NeverError | None) -> dict[str, str]:
    return {"reason": fault.reason, "detail": fault.detail} if fault else {"reason": "", "detail": ""}


def _set_outcome(connection: Connection, deliveries: Iterable[Delivery], outcome: InboxOutcome) -> None:
    identities = [and_(inbox.c.slot == d.slot, inbox.c.idempotency_key == d.idempotency_key) for d in deliveries]
    if identities:
        connection.execute(update(inbox).where(or_(*identities)).values(outcome=outcome))


def _delivery(row: Any) -> Delivery:
    message = SimpleNamespace(data=bytes(row.body), attributes=orjson.loads(row.attributes), ordering_key="")
    return Delivery(
        "", "", message, row.message_id, row.publish_time_us, len(row.body), 0.0, row.slot, row.partition_key,
        row.message_type, row.operation, row.idempotency_key,
    )  # fmt: skip
