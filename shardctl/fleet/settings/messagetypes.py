"""`message_types` of `shards.yaml`: where the writes of a type land, and what happens to those that can't."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema

from shardctl.fleet.keyspace import TimeUnit
from shardctl.fleet.model import Model, OrJust
from shardctl.fleet.scalars import Identifier, SinkPath, TableName, TypeName, one_or_many
from shardctl.fleet.settings.columns import Column, ColumnType, length_of, precision_of, type_of
from shardctl.fleet.settings.http import HttpBackend

Operation = Literal["insert", "upsert", "update", "delete"]

MAX_KEY_CHARACTERS = 650  # of four bytes each, in an index of PostgreSQL
_NO_KEYS = frozenset(("json", "bytes"))
_NO_VERSIONS = frozenset(("uuid", "bytes"))

_NAME_SCHEMA = TypeAdapter(Identifier).json_schema()


class TimeBucket(Model):
    """Route by time: the slot is the number of the bucket that holds `field`, modulo the slot count."""

    field: Annotated[Identifier, Field(description="The body's field: RFC 3339 text, or seconds since 1970.")]
    unit: TimeUnit


class SlotTable(Model):
    """A table that no message type is mapped to, and whose rows belong to slots."""

    slot: Annotated[Identifier, Field(description="The column that holds each row's slot.")]
    routing_key: Annotated[
        Identifier | None,
        Field(
            description="The column that holds the routing key of the write that each row is of, best with an index. With it a "
            "slot of any size moves with a short pause; without it, in one that grows with the slot."
        ),
    ] = None

    @model_serializer(mode="wrap")
    def _as_written(self, write: SerializerFunctionWrapHandler) -> Any:
        return write(self) if self.routing_key else self.slot


class _OrItsSlotColumn(OrJust):
    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [_NAME_SCHEMA, handler(schema)]}


class MessageType(Model):
    """Where writes of one type land: in a table, whose columns a JSON body names, at an HTTP backend, or wherever your own
    sink puts them.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["table", "key", "columns"]},
                {"required": ["sink", "routing_key"]},
                {"required": ["http", "routing_key"]},
            ]
        }
    )

    table: TableName = ""
    key: Annotated[
        tuple[Identifier, ...],
        Field(max_length=16),
        BeforeValidator(one_or_many),
        WithJsonSchema(
            {"anyOf": [_NAME_SCHEMA, {"type": "array", "items": _NAME_SCHEMA, "minItems": 1, "maxItems": 16}]}
        ),
    ] = ()
    columns: Annotated[
        dict[Identifier, Column],
        Field(description="Every column a body may set. `shardctl provision` creates the table from these."),
    ] = {}
    sink: Annotated[
        SinkPath | None,
        Field(description="Your own sink instead of a table: `package.module:factory` on the consumer's Python path."),
    ] = None
    emits: Annotated[
        tuple[TypeName, ...],
        BeforeValidator(one_or_many),
        Field(description="Types of the writes that your own sink emits by `shardctl.emit`: the consumers relay them."),
    ] = ()
    http: Annotated[
        HttpBackend | None, Field(description="A backend of yours instead of a table: each write is posted to it.")
    ] = None
    on_poison: Annotated[
        Literal["dead_letter", "park"],
        Field(
            description="What happens to a write that can't succeed: the dead-letter topic takes it, or it stays in the "
            "shard's database and the later writes of its routing key wait behind it."
        ),
    ] = "dead_letter"
    routing_key: Annotated[
        Identifier | None,
        Field(
            description="The body's field that names the entity whose writes stay in order; by default `key`'s first."
        ),
    ] = None
    operation: Annotated[Operation, Field(description="Used when a message names no operation.")] = "upsert"
    version_column: Annotated[
        Identifier | None,
        Field(description="Optimistic locking: a write whose version isn't higher than the row's is stale."),
    ] = None
    slot_column: Annotated[
        Identifier, Field(description="Holds the row's slot, so that a slot's rows can be found and moved.")
    ] = "slot"
    slot_tables: Annotated[
        dict[TableName, Annotated[SlotTable, _OrItsSlotColumn("slot", ())]],
        Field(
            description="Other tables whose rows belong to slots, such as what a sink of yours fills: "
            "`{audit: {slot: slot, routing_key: order_id}}`, or `{audit: slot}` alone. A rebalance moves their rows too."
        ),
    ] = {}
    time_bucket: TimeBucket | None = None

    @model_validator(mode="after")
    def _lands_somewhere(self) -> Self:
        places = [name for name in ("sink", "http") if getattr(self, name) is not None]
        if not places and not (self.table and self.key and self.columns):
            raise ValueError("needs a table, a key and columns, or else a sink or an http backend, and a routing_key")
        if len(places) > 1:
            raise ValueError("sink and http exclude each other")
        if places and (self.table or self.key or self.columns):
            raise ValueError(f"{places[0]} takes the place of table, key and columns")
        if self.emits and self.sink is None:
            raise ValueError("emits is for a type with a sink: only your own code emits writes")
        if places and self.routing_key is None:
            raise ValueError(f"a type with {'a sink' if self.sink else 'an http backend'} needs a routing_key")
        return self

    @model_validator(mode="after")
    def _columns_exist(self) -> Self:
        if not self.table:
            return self
        named = [*self.key, *(column for column in (self.routing_key, self.version_column) if column)]
        if self.time_bucket:
            named.append(self.time_bucket.field)
        for column in named:
            if column not in self.columns:
                raise ValueError(f"{column!r} isn't among columns")
        if self.version_column and self.columns[self.version_column] in _NO_VERSIONS:
            raise ValueError(
                f"the version column {self.version_column!r} is {self.columns[self.version_column]}: no order of versions that "
                "all databases share"
            )
        if self.slot_column in self.columns:
            raise ValueError(
                f"slot_column {self.slot_column!r} is also among columns; bodies don't set it, so name it otherwise"
            )
        return self

    @model_validator(mode="after")
    def _key_can_be_indexed(self) -> Self:
        if len(set(self.key)) != len(self.key):
            raise ValueError("the key names a column twice")
        for column in self.key:
            if self.columns[column] in _NO_KEYS:
                raise ValueError(f"the key column {column!r} is {self.columns[column]}, which databases can't index")
            if (self.lengths.get(column) or 0) > MAX_KEY_CHARACTERS:
                raise ValueError(
                    f"the key column {column!r} is {self.columns[column]}: databases index {MAX_KEY_CHARACTERS} characters"
                )
        return self

    @model_serializer(mode="wrap")
    def _without_what_was_left_out(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A type without a table: read again from its JSON, an empty name would be refused."""
        written = write(self)
        return written if self.table else {name: written[name] for name in written if written[name]}

    @property
    def types(self) -> dict[str, ColumnType]:
        """What each column holds; `precisions` and `lengths` say how much of it."""
        return {name: type_of(column) for name, column in self.columns.items()}

    @property
    def precisions(self) -> dict[str, tuple[int, int]]:
        """Precision and scale of each column whose digits are stated."""
        return {name: size for name, column in self.columns.items() if (size := precision_of(column))}

    @property
    def lengths(self) -> dict[str, int]:
        """The most characters of each text column that states them."""
        return {name: length for name, column in self.columns.items() if (length := length_of(column))}

    @property
    def routing_field(self) -> str:
        return self.routing_key or self.key[0]
