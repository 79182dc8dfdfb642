"""A write as it travels: attributes, ordering key and body. Pure; producers and consumers share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol, get_args

from shardctl.fleet.keyspace import SlotRule, digits_of, slot_of_time
from shardctl.fleet.settings.databases import DatabaseKind
from shardctl.fleet.settings.messagetypes import MessageType, Operation
from shardctl.fleet.settings.routing import Routing
from shardctl.wire import bodies
from shardctl.wire.bodies import BodyError, Rules, routing_key_in
from shardctl.wire.jsontext import JsonBody, JsonError, read_object, written
from shardctl.wire.values import base64_of, strictest

MAX_KEY_CHARACTERS = 255  # what every database can index; in UTF-8 never over the 1,024 bytes of an attribute
OPERATIONS = get_args(Operation)
MAX_BODY_BYTES = 9 * 1024**2  # leaves room for attributes inside Pub/Sub's 10 MB request
# Pub/Sub's own limits of one message.
MAX_ATTRIBUTES, MAX_NAME_BYTES, MAX_VALUE_BYTES = 100, 256, 1024
MAX_MESSAGE_BYTES = 9_999_000  # what the topic's name leaves of the 10 MB


class InvalidWriteError(ValueError):
    """The write is invalid and can't be sent; the message says what is wrong with it."""


class Routes(Protocol):
    """What is needed of a fleet to encode its writes."""

    @property
    def message_types(self) -> Mapping[str, MessageType]: ...
    @property
    def databases(self) -> tuple[DatabaseKind, ...]: ...
    @property
    def routing(self) -> Routing: ...


@dataclass(frozen=True, slots=True)
class Write:
    """One insert, upsert, update or delete of one entity. `key` and `operation` default to what the type says.

    `body` may hold whole numbers of any size, Decimal, times and UUIDs; a `JsonBody` travels as the text that it came as.
    """

    type: str
    body: Mapping[str, Any]
    key: str | None = None
    operation: Operation | None = None
    idempotency_key: str | None = None
    timestamp: datetime | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A write ready for `Publish`: its topic is that of `slot`, its ordering key is the slot's digits."""

    slot: int
    ordering_key: str
    data: bytes
    attributes: dict[str, str] = field(default_factory=dict)


def slot_for(kind: MessageType | None, routing_key: str, body: Mapping[str, Any], rule: SlotRule) -> int:
    """The slot of a write: by its key, or by the time bucket its type names. Raises InvalidWriteError."""
    if kind is None or kind.time_bucket is None:
        try:
            return rule.slot_of(routing_key)
        except UnicodeEncodeError:
            raise  # half a surrogate pair, which the caller has refused or reports itself
        except ValueError as error:
            raise InvalidWriteError(str(error)) from error
    return slot_of_time(moment_in(body, kind.time_bucket.field), kind.time_bucket.unit, rule.bits)


def moment_in(body: Mapping[str, Any], name: str) -> datetime:
    """The time in a field by which a type is routed, in UTC. Raises InvalidWriteError."""
    value = body.get(name)
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidWriteError(f"{name}: {value!r} is no time: {error}") from error
    raise InvalidWriteError(f"{name}: a time is wanted (RFC 3339 text or seconds since 1970), not {value!r}")


def encode(fleet: Routes, write: Write, now: datetime) -> Encoded:
    """Encode a write with the fleet's attributes. Raises InvalidWriteError where no consumer could apply it."""
    kind = fleet.message_types.get(write.type)
    if kind is None:
        raise InvalidWriteError(f"type {write.type!r} isn't among message_types: {', '.join(fleet.message_types)}")
    key, body, data = _read(fleet, kind, write)
    if write.idempotency_key is not None:
        check_key("the idempotency key", write.idempotency_key)
    if write.operation is not None and write.operation not in OPERATIONS:
        raise InvalidWriteError(f"the operation {write.operation!r} isn't one of {', '.join(OPERATIONS)}")
    if write.timestamp is not None and write.timestamp.tzinfo is None:
        raise InvalidWriteError("the timestamp has no time zone: end it with Z for UTC")
    try:
        timestamp = time_text(write.timestamp or now)
    except OverflowError as error:
        raise InvalidWriteError("the timestamp doesn't lie in the years 1 to 9999 of UTC") from error
    slot = slot_for(kind, key, body, _rule(fleet.routing.slot_bits, fleet.routing.modulo))
    digits = digits_of(slot, fleet.routing.slot_bits)
    names = fleet.routing.attributes
    attributes = {
        names.slot: digits,
        names.partition_key: key,
        names.message_type: write.type,
        names.operation: write.operation or kind.operation,
        names.timestamp: timestamp,
    }
    if write.idempotency_key is not None:
        attributes[names.idempotency_key] = write.idempotency_key
    return Encoded(slot, digits, data, attributes)


_rule = lru_cache(SlotRule)  # a fleet builds its rule at each call


def time_text(moment: datetime) -> str:
    """RFC 3339 in UTC, as the attribute `timestamp` has it. Raises OverflowError at the ends of time."""
    return moment.astimezone(UTC).isoformat()[: -len("+00:00")] + "Z"


def _read(fleet: Routes, kind: MessageType, write: Write) -> tuple[str, Mapping[str, Any], bytes]:
    """The write's routing key, and its body as a consumer reads it and as it travels. Raises InvalidWriteError."""
    operation = write.operation or kind.operation
    if not isinstance(write.body, dict | JsonBody | Mapping):
        raise InvalidWriteError(f"the body must be an object, not {type(write.body).__name__}")
    try:
        data = written(_with_base64(kind, write.body))
        if len(data) > MAX_BODY_BYTES:
            raise InvalidWriteError(f"the body takes {len(data):,} bytes, and {MAX_BODY_BYTES:,} are allowed")
        body = write.body.data if isinstance(write.body, JsonBody) else read_object(data)
        key = _key_in(body, data, kind.routing_field) if write.key is None else write.key
        check_key("the routing key", key)
        rules = _rules_of(kind, fleet.databases)
        rules.check(body, data, operation)
        bodies.check_key(kind, body, data, key)
    except JsonError as error:
        raise InvalidWriteError(f"{'.'.join(error.where)}: {error}" if error.where else str(error)) from None
    except BodyError as error:
        raise InvalidWriteError(str(error)) from None
    return key, body, data


def _with_base64(kind: MessageType, body: Any) -> Any:
    """Python's bytes as their column has them in JSON, which has none of its own."""
    if isinstance(body, JsonBody) or "bytes" not in kind.columns.values():
        return body
    return {
        name: base64_of(value) if isinstance(value, bytes) and kind.columns.get(name) == "bytes" else value
        for name, value in body.items()
    }


# By a type's identity: models aren't hashable, and building the rules again would cost as much as the write. The entry keeps the
# type alive, so no other one takes its place.
_known_rules: dict[tuple[int, tuple[DatabaseKind, ...]], tuple[MessageType, Rules]] = {}
_MAX_KNOWN_RULES = 1_000


def _rules_of(kind: MessageType, databases: tuple[DatabaseKind, ...]) -> Rules:
    known = _known_rules.get((id(kind), databases))
    if known is None:
        if len(_known_rules) >= _MAX_KNOWN_RULES:
            _known_rules.clear()
        known = _known_rules[id(kind), databases] = (kind, Rules(kind, strictest(databases), at_entry=True))
    return known[1]


def _key_in(body: Mapping[str, Any], data: bytes, name: str) -> str:
    key = routing_key_in(name, body, data)
    if key is not None and (type(body[name]) is not float or key.lstrip("-").isdecimal()):
        return key
    raise InvalidWriteError(
        f"the body's {name!r} gives no routing key: text or a whole number is wanted, not {body.get(name)!r}"
    )


def is_key(text: str) -> bool:
    """Whether a consumer takes it for a routing or an idempotency key."""
    return 0 < len(text) <= MAX_KEY_CHARACTERS and "\x00" not in text


def check_key(what: str, key: str) -> None:
    """Raise InvalidWriteError unless `key` can be a routing or an idempotency key."""
    if key.isprintable() and 0 < len(key) <= MAX_KEY_CHARACTERS:  # nearly every key, at a fraction of the cost
        return
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise InvalidWriteError(f"{what} must have 1 to {MAX_KEY_CHARACTERS} characters, and has {len(key)}")
    if any(ord(character) < 32 for character in key):
        raise InvalidWriteError(f"{what} holds a control character")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidWriteError(f"{what} holds half a surrogate pair, which isn't text") from error
