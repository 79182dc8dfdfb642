"""A message as a consumer holds it: leased, decoded, and either fit to apply or at fault for good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from consumer.errors import PermanentError
from shardctl.fleet.keyspace import lane_of, slot_of_digits
from shardctl.fleet.settings.messagetypes import Operation
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.wire import barrier, identity
from shardctl.wire.barrier import Barrier
from shardctl.wire.message import MAX_KEY_CHARACTERS, OPERATIONS, InvalidWriteError, is_key, slot_for

NO_SLOT = -1  # a message without a valid slot: it has no order and no inbox row


@dataclass(slots=True, eq=False)
class Delivery:
    """One delivery of one message. The same message delivered again is another Delivery with another `ack_id`.

    `publish_time_us` is the service's publish time in microseconds since 1970. `fault` says why the write can never succeed;
    `body` and `row` are the sink's, set when it accepts the write. `dead_lettered` is set once the dead-letter topic has it.
    `lane` is the slot in the generation of the subscription that it came by. `identity`, one `in_slot`, and `fingerprint` are
    those of `shardctl.wire.identity`; a `keyless` write has the id of the message that carried it first as its `idempotency_key`.
    """

    ack_id: str
    subscription: str
    message: Any  # the protobuf PubsubMessage
    message_id: str
    publish_time_us: int
    size: int  # bytes, for flow control
    leased_at: float = 0.0  # on the consumer's monotonic clock, in seconds
    slot: int = NO_SLOT
    partition_key: str = ""
    message_type: str = ""
    operation: Operation = "upsert"
    idempotency_key: str = ""
    identity: bytes = b""
    fingerprint: int = 0
    keyless: bool = False
    body: dict[str, Any] = field(default_factory=dict)
    row: tuple[Any, ...] = ()
    fault: PermanentError | None = None
    dead_lettered: bool = False
    parks: bool = False  # when it can't succeed, it waits in the database and later writes of its key behind it
    generation: int = 0
    lane: int = NO_SLOT
    attempt: int = 0  # how often Pub/Sub has tried to deliver it, counted from 1; 0 where Pub/Sub doesn't say
    barrier: Barrier | None = None  # no write, but what says that it is a rebalance's barrier
    ends_lane: bool = False  # a barrier that names this lane; whether it counts is for the database to say

    def keep(self) -> None:
        """Make this fit to be held for long: a message that came in a response keeps the memory of the whole response alive."""
        own = type(self.message)()
        own.CopyFrom(self.message)
        self.message = own


def decode(received: Any, subscription: str, generation: int, config: ShardConfig, now: float) -> Delivery:
    """Read a `ReceivedMessage` of a generation's subscription. Never raises: what can't be read carries its fault."""
    message = received.message
    published = message.publish_time
    delivery = Delivery(
        received.ack_id,
        subscription,
        message,
        message.message_id,
        published.seconds * 1_000_000 + published.nanos // 1_000,
        received.ByteSize(),
        now,
        generation=generation,
        attempt=received.delivery_attempt,
    )
    attributes = message.attributes
    _identify(delivery, attributes, config)
    try:
        _read_attributes(delivery, attributes, config)
    except PermanentError as fault:
        delivery.fault = fault
    if delivery.slot != NO_SLOT:
        delivery.identity = identity.in_slot(delivery.identity, delivery.slot)
    return delivery


def _identify(delivery: Delivery, attributes: Any, config: ShardConfig) -> None:
    """Which write it is, by what its producer gave: nothing here depends on what this shard makes of the message."""
    names, value = config.attributes, attributes.get
    key = value(names.idempotency_key, "")
    delivery.message_type = value(names.message_type, "")
    delivery.partition_key = value(names.partition_key, "")
    if is_key(key):
        delivery.idempotency_key = key
        delivery.identity = identity.of_key(value(names.caller, ""), delivery.message_type, key)
    else:
        delivery.keyless = True
        delivery.idempotency_key = value(identity.COPY_OF) or delivery.message_id
        delivery.identity = identity.of_message(delivery.idempotency_key)
    delivery.fingerprint = identity.fingerprint(
        value(names.operation, ""), delivery.partition_key, delivery.message.data
    )


def _read_attributes(delivery: Delivery, attributes: Any, config: ShardConfig) -> None:
    """What this shard makes of an identified message. Raises PermanentError."""
    names = config.attributes
    digits = attributes.get(names.slot, "")
    slot = slot_of_digits(digits, config.slot_bits)
    if slot is None:
        raise PermanentError("bad_slot", f"the slot {digits!r} isn't {config.slot_bits} binary digits")
    delivery.slot, delivery.lane = slot, lane_of(slot, delivery.generation)
    marker, key = barrier.read(attributes), delivery.partition_key
    if marker and not (key or delivery.message.data):
        delivery.barrier = marker
        # The executor gives it the slot's ordering key. A copy without one could overtake what was published before it.
        in_order = delivery.message.ordering_key == digits
        delivery.ends_lane = in_order and (marker.shard, marker.generation) == (config.shard, delivery.generation)
        return
    if not is_key(key):
        raise PermanentError("bad_key", f"the routing key must have 1 to {MAX_KEY_CHARACTERS} characters")
    if delivery.keyless and attributes.get(names.idempotency_key):
        raise PermanentError("bad_key", f"the idempotency key has over {MAX_KEY_CHARACTERS} characters, or a NUL")
    if marker:  # acked as a barrier, it would be lost without a trace
        raise PermanentError("reserved_attribute", f"a write may not have the attribute {barrier.REBALANCE}")
    kind = config.message_types.get(delivery.message_type)
    if kind is None:
        raise PermanentError("unknown_type", f"type {delivery.message_type!r} isn't one this shard takes")
    delivery.parks = kind.on_poison == "park"
    operation = attributes.get(names.operation) or kind.operation
    if operation not in OPERATIONS:
        raise PermanentError("bad_operation", f"{operation!r} isn't one of {', '.join(OPERATIONS)}")
    delivery.operation = operation


def check_slot(delivery: Delivery, config: ShardConfig) -> None:
    """Raise PermanentError where the slot isn't the one its key or its time gives: the producer routed it wrong.

    Applying such a write would put one entity's rows on two shards.
    """
    kind = config.message_types[delivery.message_type]
    try:
        expected = slot_for(kind, delivery.partition_key, delivery.body, config.rule)
    except (InvalidWriteError, UnicodeEncodeError) as error:
        raise PermanentError("bad_time" if kind.time_bucket else "bad_key", str(error)) from error
    if expected != delivery.slot:
        raise PermanentError(
            "wrong_slot", f"key {delivery.partition_key!r} belongs to slot {expected}, not {delivery.slot}"
        )


def read_anew(delivery: Delivery, check: Callable[[Delivery], None], config: ShardConfig) -> None:
    """Read a stored message as on arrival; `check` is the sink's. Raises PermanentError."""
    _read_attributes(delivery, delivery.message.attributes, config)
    check(delivery)
    check_slot(delivery, config)
