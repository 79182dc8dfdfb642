"""Names that tests give to writes: the inbox holds only what `shardctl.wire.identity` makes of them."""

from __future__ import annotations

from sqlalchemy import select, update

from shardctl.shard import schema
from shardctl.wire import identity

_names: dict[bytes, str] = {}


def keyed(kind: str, key: str, slot: int, caller: str = "") -> bytes:
    """The identity of a write of that type and idempotency key, as the inbox has it in a slot."""
    return _known(_in_slot(identity.of_key(caller, kind, key), slot), key)


def keyless(message_id: str, slot: int) -> bytes:
    return _known(_in_slot(identity.of_message(message_id), slot), message_id)


def known(delivery) -> None:
    """So that `name_of` knows it, and its refusal if it comes to that."""
    _known(delivery.identity, delivery.idempotency_key)
    if delivery.slot >= 0:
        refusal = identity.in_slot(identity.of_refusal(delivery.message_id), delivery.slot)
        _known(refusal, f"refusal of {delivery.message_id}")


def name_of(its_identity: bytes) -> str:
    """Its idempotency key or message id; a number where no test gave it a name."""
    identity = bytes(its_identity)
    return _names.get(identity, identity.hex())


def age(engine, seconds: int, *names: str) -> None:
    """Make these rows of the inbox, or all, those of messages that were published so long ago, by the database's clock."""
    with engine.begin() as connection:
        moment = schema.published_now(connection) - seconds
        for its_identity in connection.scalars(select(schema.inbox.c.identity)).all():
            if not names or name_of(its_identity) in names:
                row = schema.inbox.c.identity == its_identity
                connection.execute(update(schema.inbox).where(row).values(published=moment))


def _in_slot(its_identity: bytes, slot: int) -> bytes:
    """As a message without a slot has it, its own."""
    return identity.in_slot(its_identity, slot) if slot >= 0 else its_identity


def _known(its_identity: bytes, name: str) -> bytes:
    _names[its_identity] = name
    return its_identity
