"""What producers of a fleet on the move want written, and what of it lies on the topic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shardctl.fleet.keyspace import digits_of, slot_of
from shardctl.wire import barrier
from tests.sim.message import PubsubMessagePb, ReceivedMessagePb

SLOT_BITS = 2
SLOTS = range(1 << SLOT_BITS)
# An entry that can't be written is dead-lettered, a note parks its key; both only add rows. A balance is one row a key, which its
# writes change and delete.
ENTRY, NOTE, BALANCE = "entry", "note", "balance"


class Poison(StrEnum):
    """Why a write can never succeed."""

    REFUSED = "refused"  # by the database
    UNREADABLE = "unreadable"
    KEY_REUSED = "key_reused"  # its idempotency key stands for an earlier write


class Order(StrEnum):
    """What a slot's producers do about order."""

    KEPT = "kept"
    NONE = "none"  # they give no ordering key
    REGIONS = "regions"  # they publish in two regions, and order is kept only within each


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """`keyed`: under an idempotency key of the producer's, else under the id of its message.

    `key_of` is the number of an earlier write whose idempotency key it has: as another `caller`, or by an error.
    """

    number: int  # in order of publishing
    key: str
    slot: int
    kind: str = ENTRY
    poison: Poison | None = None
    keyed: bool = True
    key_of: int | None = None
    caller: str = ""
    operation: str = "insert"

    @property
    def row(self) -> str:
        """The id of the row that it makes."""
        return f"{self.key}-{self.number}"

    @property
    def attributes(self) -> dict[str, str]:
        attributes = {
            "slot": digits_of(self.slot, SLOT_BITS),
            "partition_key": self.key,
            "message_type": self.kind,
            "operation": self.operation,
        }
        if self.caller:
            attributes["caller"] = self.caller
        key = self.number if self.key_of is None else self.key_of
        return {**attributes, "idempotency_key": f"w{key}"} if self.keyed else attributes

    @property
    def data(self) -> bytes:
        number = -self.number - 1 if self.poison is Poison.REFUSED else self.number
        whole = json.dumps({"id": self.row, "number": number, "owner": self.key}).encode()
        return whole[:-1] if self.poison is Poison.UNREADABLE else whole

    def __repr__(self) -> str:
        return f"w{self.number}({self.key}{', ' + self.poison if self.poison else ''})"


@dataclass(frozen=True, slots=True, eq=False)
class Posted:
    """A message on the topic. `lane` is what is kept in order; a barrier is nobody's `write`."""

    id: str
    lane: str
    slot: int
    write: Write | None
    time_us: int
    body: Any  # the protobuf PubsubMessage
    note: str = ""

    def received(self, ack_id: str, attempt: int = 0) -> Any:
        return ReceivedMessagePb(ack_id=ack_id, message=self.body)

    def __repr__(self) -> str:
        return f"{self.id}:{self.write or self.note}"


def posted(number: int, write: Write | None, lane: str, time_us: int, data: bytes, sent: Mapping[str, str]) -> Posted:
    """As the service hands it out: with an id and a publish time of its own."""
    body = PubsubMessagePb(data=data, attributes=dict(sent), message_id=f"m{number}")
    if write is None:
        body.ordering_key = sent["slot"]
    body.publish_time.seconds, rest = divmod(time_us, 1_000_000)
    body.publish_time.nanos = rest * 1_000
    slot = int(sent["slot"], 2)
    note = f"barrier of slot {slot} in {sent[barrier.SHARD]} g{sent[barrier.GENERATION]}" if write is None else ""
    return Posted(f"m{number}", lane, slot, write, time_us, body, note)


def _short_keys() -> dict[int, list[str]]:
    keys: dict[int, list[str]] = {slot: [] for slot in SLOTS}
    for number in range(100):
        keys[slot_of(f"k{number}", SLOT_BITS)].append(f"k{number}")
    return keys


KEYS = _short_keys()  # by slot
