"""From a request to a message: checked, routed and written as it travels. Pure but for the key that a write without one gets.

What is published is what `shardctl.wire.message.encode` makes of the same write; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from shardctl.fleet.keyspace import digits_of
from shardctl.fleet.spec import Fleet
from shardctl.gateway import wire
from shardctl.gateway.claims import Claim
from shardctl.gateway.fields import FieldError, pointer
from shardctl.gateway.times import time_of
from shardctl.wire import bodies, identity
from shardctl.wire.bodies import BodyError, Rules, routing_key_in
from shardctl.wire.message import OPERATIONS, InvalidWriteError, check_key, slot_for, time_text
from shardctl.wire.values import strictest


class Message(NamedTuple):
    """A write ready to go: `wire` is one message of a PublishRequest. `claim` is what its client's idempotency key stands for.

    The other fields are what the message says, with what was left out of the request.
    """

    slot: int
    wire: bytes
    claim: Claim | None
    key: str
    idempotency_key: str
    operation: str


class Places(NamedTuple):
    """How a request names its parts, as kind and name, so that an error can say which is at fault."""

    key: tuple[str, str]
    operation: tuple[str, str]
    timestamp: tuple[str, str]
    idempotency_key: tuple[str, str]


REQUEST = Places(
    ("parameter", "key"), ("parameter", "operation"), ("parameter", "timestamp"), ("header", "Idempotency-Key")
)
LINE = Places(*(("pointer", pointer(name)) for name in Places._fields))


class MessageKind:
    """One message type: what its bodies are checked for, and what all its messages share."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.name, self.type = name, fleet.message_types[name]
        self.rules = Rules(self.type, strictest(fleet.databases), at_entry=True)
        self.routing_field = self.type.routing_field
        self.routing_place = ("pointer", pointer(self.routing_field))
        attributes = fleet.routing.attributes
        self.shared = {
            operation: wire.attributes({attributes.message_type: name, attributes.operation: operation})
            for operation in OPERATIONS
        }
        self._shards = _shards_of(fleet, name)
        self._placements: dict[int, bytes] = {}

    def placement(self, slot: int) -> bytes:
        """The end of an answer as JSON: the slot and its shard."""
        placement = self._placements.get(slot)
        if placement is None:
            placement = self._placements[slot] = orjson.dumps({"slot": slot, "shard": self._shards.get(slot)})[1:]
        return placement


class Encoder:
    def __init__(self, fleet: Fleet) -> None:
        self.kinds = {name: MessageKind(fleet, name) for name in fleet.message_types}
        self._rule, self._bits = fleet.routing.rule, fleet.routing.slot_bits
        names = fleet.routing.attributes
        self._slot = wire.Attribute(names.slot)
        self._key = wire.Attribute(names.partition_key)
        self._timestamp = wire.Attribute(names.timestamp)
        self._idempotency_key = wire.Attribute(names.idempotency_key)
        self._caller = wire.Attribute(names.caller)
        self._slots: dict[int, bytes] = {}  # ordering key and slot, by slot
        self._now: tuple[datetime, bytes] = (datetime.min.replace(tzinfo=UTC), b"")

    def encode(
        self,
        kind: MessageKind,
        body: Mapping[str, Any],
        data: bytes,
        now: datetime,
        parameters: Mapping[str, Any],
        places: Places = REQUEST,
        client: str = "",
    ) -> Message:
        """The message of a write; `data` is `body` as it came, `parameters` may hold key, operation, timestamp, idempotency_key.

        Raises FieldError. A write without an idempotency key gets one, so that publishing it again isn't a second write. `client`
        is the authenticated client, if there is one: the message carries it as the write's caller.
        """
        operation = parameters.get("operation")
        if operation is None:
            operation = kind.type.operation
        shared = kind.shared.get(operation)
        if shared is None:
            raise _at(places.operation, f"the operation {operation!r:.40} isn't one of {', '.join(OPERATIONS)}")
        try:
            kind.rules.check(body, data, operation)
            key, place = self._routing_key(kind, body, data, parameters.get("key"), places)
        except BodyError as error:
            raise FieldError.of_body(error) from None
        given_key = parameters.get("idempotency_key")
        if given_key is not None:
            _check_key("the idempotency key", given_key, places.idempotency_key)
        try:
            slot = slot_for(kind.type, key, body, self._rule)
        except InvalidWriteError as error:
            by_time = kind.type.time_bucket
            raise _at(("pointer", pointer(by_time.field)) if by_time else place, str(error)) from error
        idempotency_key = identity.new_key() if given_key is None else given_key
        described = b"%b%b%b%b%b%b" % (
            self._slots.get(slot) or self._of_slot(slot),
            shared,
            self._time(parameters.get("timestamp"), now, places),
            self._key(key),
            self._idempotency_key(idempotency_key),
            self._caller(client) if client else b"",
        )
        claim = None
        if given_key is not None:
            fingerprint = identity.fingerprint(operation, key, data)
            claim = Claim(identity.of_key(client, kind.name, given_key), fingerprint, places.idempotency_key)
        return Message(slot, wire.message(described, data), claim, key, idempotency_key, operation)

    def _routing_key(
        self, kind: MessageKind, body: Mapping[str, Any], data: bytes, given: str | None, places: Places
    ) -> tuple[str, tuple[str, str]]:
        """The routing key, and which part of the request it comes from. Raises FieldError, BodyError."""
        if given is None:
            key = self._key_in(kind, body, data)
            _check_key("the routing key", key, kind.routing_place)
            return key, kind.routing_place
        in_body = body.get(kind.routing_field)
        if type(in_body) is str:  # its schema in the OpenAPI document holds, whether it routes this write or not
            _check_key("the routing key", in_body, kind.routing_place)
        _check_key("the routing key", given, places.key)
        bodies.check_key(kind.type, body, data, given)
        return given, places.key

    def _key_in(self, kind: MessageKind, body: Mapping[str, Any], data: bytes) -> str:
        key = routing_key_in(kind.routing_field, body, data)
        if key is not None and (type(body[kind.routing_field]) is not float or key.lstrip("-").isdecimal()):
            return key
        raise FieldError(
            pointer(kind.routing_field),
            f"{kind.routing_field!r} gives no routing key: text or a whole number is wanted, or else `key`",
        )

    def _of_slot(self, slot: int) -> bytes:
        digits = digits_of(slot, self._bits)
        fields = self._slots[slot] = wire.ordering_key(digits) + self._slot(digits)
        return fields

    def _time(self, given: str | None, now: datetime, places: Places) -> bytes:
        if given is None:
            if self._now[0] is not now:  # of a batch's writes, many have the same
                self._now = now, self._timestamp(time_text(now))
            return self._now[1]
        try:
            return self._timestamp(time_text(time_of(given)))
        except ValueError as error:
            raise _at(places.timestamp, f"the timestamp {error}") from error


def _at(where: tuple[str, str], message: str) -> FieldError:
    return FieldError(where[1], message, where[0])


def _check_key(what: str, key: str, where: tuple[str, str]) -> None:
    try:
        check_key(what, key)
    except InvalidWriteError as error:
        raise _at(where, str(error)) from error


def _shards_of(fleet: Fleet, message_type: str) -> dict[int, str]:
    """The shard of each slot, for the answer alone: routing is by slot, wherever slots have moved meanwhile."""
    return {slot: shard.name for shard in fleet.shards if shard.takes(message_type) for slot in shard.slots}
