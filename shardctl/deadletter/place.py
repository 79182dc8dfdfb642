"""Where a write belongs by its routing key and its type, whatever slot it came with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from shardctl.fleet import topology
from shardctl.fleet.keyspace import digits_of
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec import Fleet
from shardctl.wire import barrier, deadletters
from shardctl.wire.message import (
    MAX_ATTRIBUTES,
    MAX_KEY_CHARACTERS,
    MAX_MESSAGE_BYTES,
    MAX_NAME_BYTES,
    MAX_VALUE_BYTES,
    OPERATIONS,
    InvalidWriteError,
    is_key,
    slot_for,
)


@dataclass(frozen=True, slots=True)
class Place:
    """`shards` may own the slot for this type, the newest generation first: more than one only while slots move."""

    slot: int
    digits: str
    topic: str
    shards: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a message can't be published again, as a stable word and for a person."""

    code: str
    why: str


KEY_REUSED = (
    "its idempotency key belongs to another write, so a copy would be refused again: have the write published again under a key "
    "of its own, and drop this"
)


class _UnfitError(Exception):
    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.unfit = Unfit(code, why)


def place_of(fleet: Fleet, attributes: Mapping[str, str], data: bytes) -> Place | Unfit:
    """Where the write belongs today, or why it can't go anywhere."""
    try:
        return _place(fleet, attributes, data)
    except _UnfitError as error:
        return error.unfit


def _place(fleet: Fleet, attributes: Mapping[str, str], data: bytes) -> Place:
    names = fleet.routing.attributes
    if barrier.read(attributes) is not None:
        if data or attributes.get(names.partition_key):
            raise _UnfitError(
                "reserved_attribute",
                f"a write may not have the attribute {barrier.REBALANCE}: publish it again without, and drop this",
            )
        raise _UnfitError(
            "barrier", "it is a rebalance's marker, which `shardctl rebalance run` publishes again: drop it"
        )
    if missing := attributes.get(deadletters.SHORTENED):
        raise _UnfitError("shortened", f"it isn't whole ({missing}): have the write published again, and drop this")
    if attributes.get(deadletters.REASON) == deadletters.KEY_REUSED:
        raise _UnfitError(deadletters.KEY_REUSED, KEY_REUSED)
    name = attributes.get(names.message_type, "")
    kind = fleet.message_types.get(name)
    if kind is None:
        known = ", ".join(fleet.message_types)
        raise _UnfitError(
            "unknown_type", f"type {name[:100]!r} isn't among message_types ({known}): add it, or drop this"
        )
    key = attributes.get(names.partition_key, "")
    if not is_key(key):
        raise _UnfitError(
            "bad_key",
            f"the routing key must have 1 to {MAX_KEY_CHARACTERS} characters: have the write published again, and drop this",
        )
    operation = attributes.get(names.operation) or kind.operation
    if operation not in OPERATIONS:
        raise _UnfitError("bad_operation", f"the operation {operation[:40]!r} isn't one of {', '.join(OPERATIONS)}")
    try:
        slot = slot_for(kind, key, _body(kind, data), fleet.routing.rule)
    except (InvalidWriteError, orjson.JSONDecodeError) as error:
        raise _UnfitError(
            "bad_time" if kind.time_bucket else "bad_key", f"its slot can't be determined: {error}"
        ) from error
    shards = _owners(fleet, name, slot)
    if not shards:
        raise _UnfitError("unknown_type", f"no shard takes type {name!r}: give it one in the file, and deploy it first")
    return Place(slot, digits_of(slot, fleet.routing.slot_bits), topology.topic_of(fleet, slot).id, shards)


def _body(kind: MessageType, data: bytes) -> Mapping[str, object]:
    """Read only where the slot depends on it."""
    if kind.time_bucket is None:
        return {}
    body = orjson.loads(data)
    return body if isinstance(body, dict) else {}


def _owners(fleet: Fleet, message_type: str, slot: int) -> tuple[str, ...]:
    owners = [
        (generation.generation, shard.name)
        for shard in fleet.shards
        if shard.takes(message_type)
        for generation in topology.generations(shard)
        if slot in generation.slots
    ]
    return tuple(dict.fromkeys(name for _, name in sorted(owners, reverse=True)))


def excess(attributes: Mapping[str, str], data: bytes, ordering_key: str) -> Unfit | None:
    """What Pub/Sub would refuse of a message for its size."""
    if len(attributes) > MAX_ATTRIBUTES:
        return Unfit(
            "too_large", f"with its slot and key it has {len(attributes)} attributes, and {MAX_ATTRIBUTES} are allowed"
        )
    total = len(data) + len(ordering_key) + 100
    for name, value in attributes.items():
        name_bytes, value_bytes = len(name.encode()), len(value.encode())
        if not 1 <= name_bytes <= MAX_NAME_BYTES or value_bytes > MAX_VALUE_BYTES:
            return Unfit("too_large", f"the attribute {name[:40]!r} is longer than Pub/Sub allows")
        total += name_bytes + value_bytes + 12  # what protobuf puts around them, at most
    if total > MAX_MESSAGE_BYTES:
        return Unfit("too_large", f"it takes {total:,} bytes, and Pub/Sub allows 10,000,000 with all around it")
    return None
