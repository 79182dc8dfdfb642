"""Names that tests give to writes: the inbox holds only what `shardctl.wire.identity` makes of them."""

from __future__ import annotations

from shardctl.wire import identity

_names: dict[bytes, str] = {}


def keyed(kind: str, key: str, caller: str = "") -> bytes:
    """The identity of a write of that type and idempotency key."""
    return _known(identity.of_key(caller, kind, key), key)


def keyless(message_id: str) -> bytes:
    return _known(identity.of_message(message_id), message_id)


def known(delivery) -> None:
    """So that `name_of` knows it, and its refusal if it comes to that."""
    _known(delivery.identity, delivery.idempotency_key)
    _known(identity.of_refusal(delivery.message_id), f"refusal of {delivery.message_id}")


def name_of(its_identity: bytes) -> str:
    """Its idempotency key or message id; a number where no test gave it a name."""
    found = bytes(its_identity)
    return _names.get(found, found.hex())


def _known(its_identity: bytes, name: str) -> bytes:
    _names[its_identity] = name
    return its_identity
