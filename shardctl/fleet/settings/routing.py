"""`routing` of `shards.yaml`: how many slots and topics there are, and which attributes carry a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from shardctl.fleet.filters import FilterAttributes
from shardctl.fleet.keyspace import MAX_SLOT_BITS, MIN_SLOT_BITS, SlotRule
from shardctl.fleet.model import Model
from shardctl.fleet.scalars import AttributeName

_TAKEN_BY_CLIENT = frozenset({"self", "topic", "data", "ordering_key", "retry", "timeout"})


class Attributes(Model):
    """The Pub/Sub attribute that carries each part of a message."""

    slot: AttributeName = "slot"
    partition_key: AttributeName = "partition_key"
    message_type: AttributeName = "message_type"
    operation: AttributeName = "operation"
    timestamp: AttributeName = "timestamp"
    idempotency_key: AttributeName = "idempotency_key"
    caller: AttributeName = "caller"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = list(self.model_dump().values())
        if len(set(names)) != len(names):
            raise ValueError("two parts of a message share one attribute name")
        for name in set(names) & _TAKEN_BY_CLIENT:
            raise ValueError(f"the Pub/Sub client takes {name!r} for itself, so no attribute can have that name")
        return self

    @property
    def in_filters(self) -> FilterAttributes:
        return FilterAttributes(self.slot, self.message_type)


ATTRIBUTE_PRESETS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "cloudevents": {
        "partition_key": "ce-partitionkey",
        "message_type": "ce-type",
        "timestamp": "ce-time",
        "idempotency_key": "ce-id",
        "caller": "ce-source",  # an id is one source's own
    },
}


def _read_attributes(value: object) -> object:
    if isinstance(value, str):
        if value not in ATTRIBUTE_PRESETS:
            raise ValueError(f"no preset {value!r}; presets: {', '.join(ATTRIBUTE_PRESETS)}")
        return dict(ATTRIBUTE_PRESETS[value])
    return value


class Routing(Model):
    slot_bits: Annotated[
        int, Field(ge=MIN_SLOT_BITS, le=MAX_SLOT_BITS, description="2^n slots; fixed for the fleet's life.")
    ] = 10
    topic_bits: Annotated[
        int, Field(ge=0, le=8, description="Spread the fleet over 2^n topics; fixed for its life.")
    ] = 0
    modulo: Annotated[
        int,
        Field(
            ge=0,
            le=1 << (MAX_SLOT_BITS - 3),
            description="For a fleet that was sharded by `key % N`: N. Keys are whole numbers and stay together as they were; "
            "0 is by hash alone. Fixed for the fleet's life.",
        ),
    ] = 0
    attributes: Annotated[
        Attributes,
        BeforeValidator(_read_attributes),
        WithJsonSchema(
            {
                "anyOf": [
                    {"enum": list(ATTRIBUTE_PRESETS)},
                    {
                        "type": "object",
                        "additionalProperties": {"type": "string"},
                        "propertyNames": {"enum": list(Attributes.model_fields)},
                    },
                ]
            }
        ),
    ] = Attributes()

    @model_validator(mode="after")
    def _topics_hold_slots(self) -> Self:
        if self.topic_bits > self.slot_bits:
            raise ValueError(f"topic_bits {self.topic_bits} exceeds slot_bits {self.slot_bits}")
        return self

    @model_validator(mode="after")
    def _slots_hold_remainders(self) -> Self:
        if self.modulo == 1:
            raise ValueError("modulo 1 puts every key together; leave it out")
        if self.modulo and self.rule.grains > 1 << self.slot_bits:
            raise ValueError(f"modulo {self.modulo} needs slot_bits {self.rule.grains.bit_length() - 1} or more")
        return self

    @property
    def rule(self) -> SlotRule:
        return SlotRule(self.slot_bits, self.modulo)
