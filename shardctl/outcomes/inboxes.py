"""What one database's inbox says of writes, in the snapshot that says which slots are active there.

Invariant: only the database in which a slot is active is believed, and only by what it has committed. So a write is never called
applied before its commit, nor unseen by a database that has handed its slot over.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, and_, select, tuple_
from sqlalchemy.exc import SQLAlchemyError

from shardctl.outcomes.effect import Effect, Sought, State
from shardctl.reader.owners import Owners
from shardctl.reader.view import View
from shardctl.shard import database
from shardctl.shard.schema import InboxOutcome, LaneState, inbox, parked, parked_keys
from shardctl.wire import identity
from shardctl.wire.deadletters import BEHIND_PARKED, KEY_REUSED

_STATES = {
    InboxOutcome.APPLIED: State.APPLIED,
    InboxOutcome.DEAD: State.DEAD,
    InboxOutcome.PARKED: State.PARKED,
}


def look(owners: Owners, shard: str, writes: Collection[Sought]) -> dict[Sought, Effect]:
    """What the shard knows of the writes whose slots are active there; the others are left out. Raises ShardctlError."""
    view = owners.primary(shard, tuple(sorted({write.slot for write in writes})))
    try:
        here = [write for write in writes if LaneState.ACTIVE in view.lanes.get(write.slot, ())]
        return _effects(view, shard, here) if here else {}
    except SQLAlchemyError as error:
        raise database.error_of(view.engine, error) from error
    finally:
        view.close()


def _effects(view: View, shard: str, writes: Collection[Sought]) -> dict[Sought, Effect]:
    connection = view.connection
    rows = {(row.slot, row.identity): row for row in connection.execute(select(inbox).where(_among(view, writes)))}
    effects: dict[Sought, Effect] = {}
    for write in writes:
        row = rows.get((write.slot, write.identity))
        if row is None:
            effects[write] = Effect(State.NOT_SEEN, shard=shard)
        elif not _is_of(write, row.key_hash, row.fingerprint):
            effects[write] = Effect(State.DEAD, KEY_REUSED, shard)
        else:
            state = _STATES[row.outcome]
            reason = _reason(connection, write) if state is State.PARKED else row.reason
            effects[write] = Effect(state, reason or "", shard)
    return effects


def _among(view: View, writes: Collection[Sought]) -> ColumnElement[bool]:
    """By the inbox's primary key, which on PostgreSQL is the identity alone."""
    if view.engine.dialect.name == "postgresql":
        slots = {write.slot for write in writes}
        return and_(inbox.c.identity.in_([write.identity for write in writes]), inbox.c.slot.in_(slots))
    return tuple_(inbox.c.slot, inbox.c.identity).in_([(write.slot, write.identity) for write in writes])


def _is_of(write: Sought, key_hash: int, fingerprint: int | None) -> bool:
    """As the consumer's inbox compares, with rows of 0.1.0 that have no fingerprint."""
    if fingerprint is None:
        return True
    same_body = write.fingerprint is None or write.fingerprint == fingerprint
    return same_body and key_hash == identity.key_hash(write.message_type, write.key)


def _reason(connection: Connection, write: Sought) -> str:
    """Of the key's first write alone: what it says of that one may be another client's."""
    key = (write.slot, write.message_type, write.key)
    of_key = (parked_keys.c.slot, parked_keys.c.message_type, parked_keys.c.partition_key)
    first = (
        select(parked.c.identity)
        .where(parked.c.slot == key[0], parked.c.message_type == key[1], parked.c.partition_key == key[2])
        .order_by(parked.c.position)
        .limit(1)
    )
    if connection.scalar(first) != write.identity:
        return BEHIND_PARKED
    reasons = select(parked_keys.c.reason).where(
        and_(*(column == value for column, value in zip(of_key, key, strict=True)))
    )
    return connection.scalar(reasons) or ""
