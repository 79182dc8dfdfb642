"""A message as its producer sees it: what the oracle compares with what became of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from google.pubsub_v1 import PubsubMessage, ReceivedMessage

from shardctl.keyspace import digits_of, slot_of

PubsubMessagePb, ReceivedMessagePb = PubsubMessage.pb(), ReceivedMessage.pb()
SLOT_BITS = 3
EPOCH_SECONDS = 1_790_000_000


class Poison(StrEnum):
    """Why a message can never succeed, and so who notices."""

    REFUSED = "refused"  # the database
    UNREADABLE = "unreadable"  # the sink, before any transaction
    UNKNOWN_TYPE = "unknown_type"  # the decoder
    NO_SLOT = "no_slot"  # the decoder; such a message has no order and no inbox row


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    number: int  # in order of publishing
    key: str
    lane: str  # the ordering key
    slot: int | None
    idempotency_key: str
    poison: Poison | None
    repeats: bool  # the producer published this write before, under another message id
    body: Any  # the protobuf PubsubMessage

    @property
    def id(self) -> str:
        return f"m{self.number}"

    def received(self, ack_id: str) -> Any:
        return ReceivedMessagePb(ack_id=ack_id, message=self.body)

    def __repr__(self) -> str:
        return f"{self.id}({self.key}{', ' + self.poison if self.poison else ''}{', repeat' if self.repeats else ''})"


def message(number: int, key: str, *, poison: Poison | None = None, repeats: Message | None = None) -> Message:
    """A write of `key`, or a repeat of one, as the publisher would send it."""
    slot = slot_of(key, SLOT_BITS)
    lane = digits_of(slot, SLOT_BITS)
    given = repeats.idempotency_key if repeats else ""
    identity = f"{repeats.number if repeats else number}"
    entry = {"id": f"{key}-{identity}", "number": -1 if poison is Poison.REFUSED else int(identity)}
    attributes = {
        "slot": "none" if poison is Poison.NO_SLOT else lane,
        "partition_key": key,
        "message_type": "other" if poison is Poison.UNKNOWN_TYPE else "entry",
        "operation": "insert",
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
        given or f"m{number}",
        poison,
        repeats is not None,
        body,
    )


def key_of_slot(slot: int, which: int = 0) -> str:
    """The which-th short routing key that hashes to a slot."""
    return _KEYS[slot][which]


def _short_keys() -> dict[int, list[str]]:
    found: dict[int, list[str]] = {slot: [] for slot in range(1 << SLOT_BITS)}
    for number in range(400):
        found[slot_of(f"k{number}", SLOT_BITS)].append(f"k{number}")
    return found


_KEYS = _short_keys()
