"""Parked keys as a person sees them: what waits in a shard's database behind a write that failed, and what to do about it.

A consumer does the work. Here a key is only allowed to go on (`replay`), with or without its first message (`drop`). Only keys
whose slots are active in the database are seen: what a slot left behind when it moved is nobody's any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, select, update

from shardctl.errors import ShardctlError
from shardctl.shard import changes, database, schema
from shardctl.shard.lanes import share_fence
from shardctl.shard.membership import Membership
from shardctl.shard.schema import InboxOutcome, LaneState, inbox, lanes, parked, parked_keys
from shardctl.wire.deadletters import BEHIND_PARKED


class ParkedError(ShardctlError):
    """A shard's database doesn't answer as it should. Never shows a password."""


@dataclass(frozen=True, slots=True)
class ParkedKey:
    """`reason` and `detail` are of its first message; `released` means that a consumer may go on with it."""

    shard: str
    slot: int
    message_type: str
    key: str
    reason: str
    detail: str
    released: bool
    parked_time: datetime
    messages: int


@dataclass(frozen=True, slots=True)
class ParkedMessage:
    message_id: str
    message_type: str
    operation: str
    idempotency_key: str  # or the id of the message that carried it first
    identity: bytes
    publish_time: datetime
    attributes: dict[str, str]
    body: bytes


@contextmanager
def opened(whose: Membership, url: str, *, reading: bool = False) -> Iterator[Connection]:
    """One transaction on a shard's database; one that only reads delays no consumer. Raises ParkedError."""
    try:
        engine = database.connect(url, whose=whose)
    except database.DatabaseError as error:
        raise ParkedError(f"shard {whose.shard}: {error}") from error
    try:
        with (database.snapshot if reading else database.writing)(engine) as connection:
            yield connection
    except database.DatabaseError as error:
        raise ParkedError(f"shard {whose.shard}: {error}") from error
    finally:
        engine.dispose()


def keys(connection: Connection, shard: str, key: str | None = None) -> tuple[ParkedKey, ...]:
    """All parked keys, or one, those that were parked first to begin with. A key is there once for each slot and type."""
    count = (
        select(func.count())
        .where(
            parked.c.slot == parked_keys.c.slot,
            parked.c.message_type == parked_keys.c.message_type,
            parked.c.partition_key == parked_keys.c.partition_key,
        )
        .scalar_subquery()
    )
    query = (
        select(parked_keys, count.label("messages"))
        .join(lanes, and_(lanes.c.slot == parked_keys.c.slot, lanes.c.state == LaneState.ACTIVE))
        .order_by(
            parked_keys.c.parked_time, parked_keys.c.slot, parked_keys.c.message_type, parked_keys.c.partition_key
        )
    )
    if key is not None:
        query = query.where(parked_keys.c.partition_key == key)
    return tuple(
        ParkedKey(
            shard,
            row.slot,
            row.message_type,
            row.partition_key,
            row.reason,
            row.detail,
            row.released,
            _utc(row.parked_time),
            row.messages,
        )
        for row in connection.execute(query)
    )


def messages(connection: Connection, parked_key: ParkedKey) -> tuple[ParkedMessage, ...]:
    """A key's messages in order."""
    query = select(parked).where(_its_messages(parked_key)).order_by(parked.c.position)
    return tuple(
        ParkedMessage(
            row.message_id,
            row.message_type,
            row.operation,
            row.idempotency_key,
            bytes(row.identity),
            datetime.fromtimestamp(row.publish_time_us / 1_000_000, UTC),
            json.loads(row.attributes),
            bytes(row.body),
        )
        for row in connection.execute(query)
    )


def replay(connection: Connection, parked_key: ParkedKey) -> bool:
    """Let a consumer apply the key's messages, in order. False when the key is gone."""
    return _take(connection, parked_key) and _release(connection, parked_key)


def drop(connection: Connection, parked_key: ParkedKey, *, every: bool = False) -> int:
    """Delete the key's first message, or every one, and let a consumer go on with the rest. How many were deleted.

    They stay known as dead, for the reason that they were parked for, so that a redelivery doesn't bring them back.
    """
    if not _take(connection, parked_key):
        return 0
    first = select(parked.c.position, parked.c.identity).where(_its_messages(parked_key)).order_by(parked.c.position)
    doomed = connection.execute(first if every else first.limit(1)).all()
    _log(connection, parked_key, [row.identity for row in doomed])
    for at in range(0, len(doomed), 500):
        some = doomed[at : at + 500]
        is_one = inbox.c.identity.in_([row.identity for row in some])
        # From now on it is forgotten by its time; a copy may have been published while it waited.
        dead = {"outcome": InboxOutcome.DEAD, "published": schema.published_now(connection)}
        reason = case((inbox.c.identity == doomed[0].identity, parked_key.reason), else_=BEHIND_PARKED)
        connection.execute(update(inbox).where(inbox.c.slot == parked_key.slot, is_one).values(**dead, reason=reason))
        connection.execute(delete(parked).where(parked.c.position.in_([row.position for row in some])))
    if connection.scalar(select(parked.c.position).where(_its_messages(parked_key)).limit(1)) is None:
        connection.execute(delete(parked_keys).where(_its_row(parked_key)))
    else:
        _release(connection, parked_key)
    return len(doomed)


def _take(connection: Connection, parked_key: ParkedKey) -> bool:
    """Take the key alone, as a consumer that applies it does. Shares the fence, so that its slot can't leave meanwhile."""
    share_fence(connection)
    active = select(lanes.c.slot).where(lanes.c.slot == parked_key.slot, lanes.c.state == LaneState.ACTIVE)
    its_row = select(parked_keys.c.slot).where(_its_row(parked_key)).with_for_update()
    return connection.scalar(active) is not None and connection.scalar(its_row) is not None


def _log(connection: Connection, parked_key: ParkedKey, identities: Sequence[bytes] = ()) -> None:
    """What is about to change, where the slot's changes are logged."""
    if changes.logged(connection, (parked_key.slot,)):
        rows = [changes.of_inbox(parked_key.slot, bytes(its_identity)) for its_identity in identities]
        changes.record(connection, [*rows, changes.of_parked(parked_key.slot, parked_key.message_type, parked_key.key)])


def _release(connection: Connection, parked_key: ParkedKey) -> bool:
    _log(connection, parked_key)
    connection.execute(update(parked_keys).where(_its_row(parked_key)).values(released=True))
    return True


def _its_row(parked_key: ParkedKey) -> ColumnElement[bool]:
    return and_(
        parked_keys.c.slot == parked_key.slot,
        parked_keys.c.message_type == parked_key.message_type,
        parked_keys.c.partition_key == parked_key.key,
    )


def _its_messages(parked_key: ParkedKey) -> ColumnElement[bool]:
    return and_(
        parked.c.slot == parked_key.slot,
        parked.c.message_type == parked_key.message_type,
        parked.c.partition_key == parked_key.key,
    )


def _utc(moment: datetime) -> datetime:
    """SQLite and MySQL keep UTC without saying so."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def as_json(parked_key: ParkedKey, its_messages: Sequence[ParkedMessage] | None = None) -> dict[str, Any]:
    """For a machine to read. A body that isn't text comes as hexadecimal digits."""
    fields: dict[str, Any] = {
        "shard": parked_key.shard, "slot": parked_key.slot, "type": parked_key.message_type, "key": parked_key.key,
        "reason": parked_key.reason, "detail": parked_key.detail, "released": parked_key.released,
        "parked_time": parked_key.parked_time.isoformat(), "messages": parked_key.messages,
    }  # fmt: skip
    if its_messages is not None:
        fields["messages"] = [
            {
                "message_id": message.message_id, "type": message.message_type, "operation": message.operation,
                "idempotency_key": message.idempotency_key, "publish_time": message.publish_time.isoformat(),
                "attributes": message.attributes, **_body(message.body),
            }
            for message in its_messages
        ]  # fmt: skip
    return fields


def _body(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_hex": body.hex()}
