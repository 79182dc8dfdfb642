"""A letter: a message on a dead-letter or a strays subscription, and what it says of itself. Pure.

Anyone who may publish to a topic may put anything into a message, so nothing here raises for what one holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256

from shardctl.deadletter.place import Place, Unfit, excess, place_of
from shardctl.fleet import topology
from shardctl.fleet.keyspace import digits_of, slot_of_digits
from shardctl.fleet.spec import Fleet
from shardctl.wire import barrier, deadletters, identity
from shardctl.wire.message import is_key

GIVEN_UP = "max_delivery_attempts"  # the reason of Pub/Sub's own policy
UNKNOWN = "unknown"  # neither a consumer nor Pub/Sub put it there
NOTE = "shardctl-letter:"  # what the name of a letter's note begins with, here as in 0.1.0
KEPT_DETAIL = 300  # characters: thousands of letters are held at once
LAST_MOMENT_US = 253_370_764_800 * 1_000_000  # 9999-01-01; later ones may not be shown as times


class Origin(StrEnum):
    """Who dead-lettered it."""

    CONSUMER = "consumer"
    PUBSUB = "pubsub"
    UNKNOWN = "unknown"
    STRAY = "stray"


@dataclass(frozen=True, slots=True)
class Message:
    """As it lies in a subscription or an archive. Times are microseconds since 1970."""

    id: str
    publish_time_us: int
    ordering_key: str
    attributes: Mapping[str, str]
    data: bytes


@dataclass(frozen=True, slots=True)
class Letter:
    """What is known of a letter without its body.

    `shard` is where it failed; of a stray, where it belongs. `written_us` is when the write was published first, known to
    `precision_us`. A `keyless` write is known by the id of the message that carried it first, which is its `idempotency_key`
    here. `has_own_key` is false where Pub/Sub dead-lettered it and that id is unknown; it is then made up, the same each time.
    `write_identity` is what the inbox knows the write by, `fingerprint` what the write says: see `shardctl.wire.identity`.
    `failed_slot` is the slot whose inbox says that it is dead.
    """

    subscription: str
    origin: Origin
    id: str
    dead_lettered_us: int
    reason: str
    detail: str
    shard: str
    slot_text: str
    type: str
    key: str
    operation: str
    original_id: str
    written_us: int
    precision_us: int
    idempotency_key: str
    has_own_key: bool
    keyless: bool
    write_identity: bytes
    fingerprint: int
    failed_slot: int | None
    size: int
    place: Place | None
    unfit: Unfit | None

    @property
    def identity(self) -> tuple[str, str]:
        """No other letter has it: an id is unique on its topic."""
        return self.subscription, self.id

    @property
    def order(self) -> tuple[int, int, int, str]:
        """By slot, and there as the writes were published first."""
        number = self.original_id or self.id
        slot = self.place.slot if self.place else -1
        return slot, self.written_us, int(number) if number.isdecimal() and number.isascii() else 0, number

    @property
    def repaired(self) -> bool:
        """Whether a replay gives it another slot than it came with."""
        return self.place is not None and self.place.digits != self.slot_text


def read(fleet: Fleet, subscription: str, message: Message, *, stray: bool) -> Letter:
    """What a message of the subscription with that name says."""
    names, origin = fleet.routing.attributes, _origin(message.attributes, stray=stray)
    attributes = message.attributes if origin == Origin.CONSUMER else deadletters.of_others(message.attributes)
    written_us, precision_us = _written(origin, message)
    original_id = (
        attributes.get(deadletters.MESSAGE_ID, "") if origin == Origin.CONSUMER else message.id if stray else ""
    )
    known_by = _known_by(fleet, origin, message, original_id)
    place = place_of(fleet, attributes, message.data)
    reason, detail = _reason(fleet, origin, subscription, attributes)
    type_name = attributes.get(names.message_type, "")
    kind = fleet.message_types.get(type_name)
    letter = Letter(
        subscription=subscription,
        origin=origin,
        id=message.id,
        dead_lettered_us=message.publish_time_us,
        reason=reason,
        detail=detail[:KEPT_DETAIL],
        shard=_shard(fleet, origin, attributes, place),
        slot_text=attributes.get(names.slot, ""),
        type=type_name,
        key=attributes.get(names.partition_key, ""),
        operation=attributes.get(names.operation) or (kind.operation if kind else ""),
        original_id=original_id,
        written_us=written_us,
        precision_us=precision_us,
        idempotency_key=known_by.name,
        has_own_key=known_by.surely,
        keyless=known_by.keyless,
        write_identity=identity.in_slot(known_by.identity, place.slot)
        if isinstance(place, Place)
        else known_by.identity,
        fingerprint=identity.fingerprint(
            attributes.get(names.operation, ""), attributes.get(names.partition_key, ""), message.data
        ),
        failed_slot=_number(attributes.get(deadletters.SLOT, "")) if origin == Origin.CONSUMER else None,
        size=len(message.data) + sum(len(name) + len(value) for name, value in attributes.items()),
        place=place if isinstance(place, Place) else None,
        unfit=place if isinstance(place, Unfit) else None,
    )
    if letter.place is None:
        return letter
    copy = copy_of(fleet, letter, message)
    too_large = excess(copy.attributes, copy.data, copy.ordering_key)
    return _unfit(letter, too_large) if too_large else letter


def copy_of(fleet: Fleet, letter: Letter, message: Message) -> Message:
    """The write as it is published again: its own attributes under the slot of its key, and its own identity."""
    if letter.place is None:
        raise ValueError(f"letter {letter.id} belongs nowhere")
    names = fleet.routing.attributes
    attributes = deadletters.original(message.attributes)
    attributes[names.slot] = letter.place.digits
    if letter.keyless:
        attributes.pop(names.idempotency_key, None)  # one that no consumer takes for a key
        attributes[identity.COPY_OF] = letter.idempotency_key
    return Message("", 0, letter.place.digits, attributes, message.data)


def _unfit(letter: Letter, why: Unfit) -> Letter:
    return replace(letter, place=None, unfit=why)


def _origin(attributes: Mapping[str, str], *, stray: bool) -> Origin:
    if stray:
        return Origin.STRAY
    # First: Pub/Sub sets its attributes itself, and sends along what a producer wrote in a consumer's name. No consumer's letter
    # has Pub/Sub's.
    if deadletters.SOURCE_SUBSCRIPTION in attributes:
        return Origin.PUBSUB
    return Origin.CONSUMER if deadletters.by_consumer(attributes) else Origin.UNKNOWN


def _written(origin: Origin, message: Message) -> tuple[int, int]:
    """When the write was published first, and to how many microseconds that is known."""
    if origin == Origin.CONSUMER:
        written_us = _number(message.attributes[deadletters.PUBLISH_TIME_US])
        if written_us is not None and 0 < written_us < LAST_MOMENT_US:
            return written_us, 1
    if origin == Origin.PUBSUB:
        text = message.attributes.get(deadletters.SOURCE_PUBLISH_TIME, "")
        try:
            moment = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            return message.publish_time_us, 1
        digits = len(match[1]) if (match := re.search(r"\.([0-9]+)", text)) else 0
        written_us = int(moment.timestamp()) * 1_000_000 + moment.microsecond
        if 0 < written_us < LAST_MOMENT_US:
            return written_us, 10 ** max(0, 6 - digits)
    return message.publish_time_us, 1


@dataclass(frozen=True, slots=True)
class _KnownBy:
    """By what the inbox knows a write, or would know it, and whether that is known for sure. As `consumer.delivery` has it."""

    name: str
    identity: bytes
    keyless: bool
    surely: bool = True


def _known_by(fleet: Fleet, origin: Origin, message: Message, original_id: str) -> _KnownBy:
    names, attributes = fleet.routing.attributes, message.attributes
    key = attributes.get(names.idempotency_key, "")
    if is_key(key):
        its_identity = identity.of_key(attributes.get(names.caller, ""), attributes.get(names.message_type, ""), key)
        return _KnownBy(key, its_identity, keyless=False)
    first_id = attributes.get(identity.COPY_OF) or original_id
    name = first_id or f"letter-{message.id[:200]}"
    return _KnownBy(name, identity.of_message(name), keyless=True, surely=bool(first_id) or origin == Origin.UNKNOWN)


def _reason(fleet: Fleet, origin: Origin, subscription: str, attributes: Mapping[str, str]) -> tuple[str, str]:
    match origin:
        case Origin.CONSUMER:
            return attributes[deadletters.REASON] or UNKNOWN, attributes.get(deadletters.ERROR, "")
        case Origin.PUBSUB:
            count = attributes.get(deadletters.SOURCE_DELIVERIES, "?")
            return GIVEN_UP, f"{count[:10]} deliveries by {attributes[deadletters.SOURCE_SUBSCRIPTION]} came to no end"
        case Origin.STRAY:
            return _why_stray(fleet, subscription, attributes)
    return UNKNOWN, "neither a consumer nor Pub/Sub's own policy put it there"


def _why_stray(fleet: Fleet, subscription: str, attributes: Mapping[str, str]) -> tuple[str, str]:
    """Why no shard's filter takes it, by the file as it is today."""
    bits, names = fleet.routing.slot_bits, fleet.routing.attributes
    text = attributes.get(names.slot, "")
    if not text:
        return "no_slot", f"there is no attribute {names.slot}"
    slot = slot_of_digits(text, bits)
    if slot is None:
        return "bad_slot", f"the slot {text[:40]!r} isn't {bits} binary digits"
    name = attributes.get(names.message_type, "")
    if (
        not any(shard.takes(name) and slot in shard.slots for shard in fleet.shards)
        and barrier.read(attributes) is None
    ):
        return "unknown_type", f"no shard takes type {name[:100]!r}"
    topic = topic_of_strays(fleet, subscription)
    if topic is not None and slot not in topic.slots:
        return "wrong_topic", f"slot {slot} doesn't belong on topic {topic.id}"
    return "taken_now", "a shard takes it by the file as it is now; none did when it was published"


def topic_of_strays(fleet: Fleet, subscription: str) -> topology.Topic | None:
    """The topic of a subscription for strays; its name says which, also where it is an earlier one."""
    topics = topology.topics(fleet)
    if not fleet.routing.topic_bits:
        return topics[0]
    match = re.match(re.escape(f"{fleet.fleet}-strays-t") + "([0-9]+)", subscription)
    return topics[int(match[1])] if match and int(match[1]) < len(topics) else None


def _shard(fleet: Fleet, origin: Origin, attributes: Mapping[str, str], place: Place | Unfit) -> str:
    if origin == Origin.CONSUMER:
        return attributes[deadletters.SHARD]
    if origin == Origin.PUBSUB:
        name = re.fullmatch(
            re.escape(fleet.fleet) + "-(.+)-g[0-9]+(-t[0-9]+)?", attributes[deadletters.SOURCE_SUBSCRIPTION]
        )
        return name[1] if name else ""
    return place.shards[0] if isinstance(place, Place) else ""


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def note_of(letter: Letter) -> bytes:
    """The identity under which a shard's database notes that this letter is being replayed.

    A broker that starts again may give an id twice, but not with the same write.
    """
    note = identity.of_note(f"{NOTE}{sha256(f'{letter.id} {letter.idempotency_key}'.encode()).hexdigest()}")
    return identity.in_slot(note, letter.place.slot) if letter.place else note


def slot_shown(fleet: Fleet, letter: Letter) -> str:
    """A slot as people write it, with what it was before a repair."""
    if letter.place is None:
        return letter.slot_text[:40]
    was = f", came as {letter.slot_text[:40]!r}" if letter.repaired else ""
    return f"{letter.place.slot} ({digits_of(letter.place.slot, fleet.routing.slot_bits)}){was}"
