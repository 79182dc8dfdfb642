"""A message as its producer sees it: what the oracle compares with what became of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from google.pubsub_v1 import PubsubMessage, ReceivedMessage

from shardctl.fleet.keyspace import digits_of, slot_of
from shardctl.wire import identity

PubsubMessagePb, ReceivedMessagePb = PubsubMessage.pb(), ReceivedMessage.pb()
SLOT_BITS = 3
EPOCH_SECONDS = 1_790_000_000


class Poison(StrEnum):
    """Why a message can never succeed, and so who notices."""

    REFUSED = "refused"  # the database
    UNREADABLE = "unreadable"  # the sink, before any transaction
    UNKNOWN_TYPE = "unknown_type"  # the decoder
    DEADLY = "deadly"  # nobody: it kills the process that writes it
    NO_SLOT = "no_slot"  # the decoder; such a message has no order and no inbox row
    KEY_REUSED = "key_reused"  # the store: its idempotency key stands for an earlier write


class Twin(StrEnum):
    """What makes a write another one than the earlier one whose key, or message id, it has as its key."""

    CALLER = "caller"
    TYPE = "type"
    MESSAGE_ID = "message_id"  # the earlier one has no key, and this is its bare id


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    number: int  # in order of publishing
    key: str
    lane: str  # the ordering key
    slot: int | None
    identity: bytes
    poison: Poison | None
    repeats: bool  # the producer published this write before, under another message id
    given: str  # the idempotency key, if it has one
    body: Any  # the protobuf PubsubMessage

    @property
    def id(self) -> str:
        return f"m{self.number}"

    def received(self, ack_id: str, attempt: int = 0) -> Any:
        return ReceivedMessagePb(ack_id=ack_id, message=self.body, delivery_attempt=attempt)

    def __repr__(self) -> str:
        return f"{self.id}({self.key}{', ' + self.poison if self.poison else ''}{', repeat' if self.repeats else ''})"


def message(
    number: int,
    key: str,
    *,
    poison: Poison | None = None,
    repeats: Message | None = None,
    earlier: Message | None = None,
    twin: Twin | None = None,
) -> Message:
    """A write of `key`, or a repeat of one, as its producer would send it. Every other one has an idempotency key.

    With `earlier` it has the key of that earlier write, and is refused for it unless it is a `twin`.
    """
    slot = slot_of(key, SLOT_BITS)
    lane = digits_of(slot, SLOT_BITS)
    given = repeats.given if repeats else f"w{number}" if number % 2 else ""
    if earlier:
        given = earlier.given or earlier.id
    which = repeats.number if repeats else number
    entry = {"id": f"{key}-{which}", "owner": key, "number": -1 if poison is Poison.REFUSED else which}
    kind = "twin" if twin is Twin.TYPE else "other" if poison is Poison.UNKNOWN_TYPE else "entry"
    caller = "somebody" if twin is Twin.CALLER else ""
    attributes = {
        "slot": "none" if poison is Poison.NO_SLOT else lane,
        "partition_key": key,
        "message_type": kind,
        "operation": "insert",
        "caller": caller,
    }
    if given:
        attributes["idempotency_key"] = given
    body = PubsubMessagePb(
        data=b"{" if poison is Poison.UNREADABLE else json.dumps(entry).encode(),
        attributes=attributes,
        message_id=f"m{number}",
        ordering_key=lane,
    )
    body.publish_time.seconds = EPOCH_SECONDS + number
    return Message(
        number,
        key,
        lane,
        None if poison is Poison.NO_SLOT else slot,
        identity.in_slot(identity.of_key(caller, kind, given) if given else identity.of_message(f"m{number}"), slot),
        poison,
        repeats is not None,
        given,
        body,
    )


def key_of_slot(slot: int, which: int = 0) -> str:
    """The which-th short routing key that hashes to a slot."""
    return _KEYS[slot][which]


def _short_keys() -> dict[int, list[str]]:
    keys: dict[int, list[str]] = {slot: [] for slot in range(1 << SLOT_BITS)}
    for number in range(400):
        keys[slot_of(f"k{number}", SLOT_BITS)].append(f"k{number}")
    return keys


_KEYS = _short_keys()
