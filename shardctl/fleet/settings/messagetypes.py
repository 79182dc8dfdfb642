"""`message_types` of `shards.yaml`: where the writes of a type land, and what happens to those that can't."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, cast, get_args

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
from pydantic_core import CoreSchema, core_schema

from shardctl.fleet.keyspace import TimeUnit
from shardctl.fleet.model import Model, OrJust
from shardctl.fleet.scalars import Identifier, SinkPath, TableName, Text, one_or_many, shown
from shardctl.fleet.settings.http import HttpBackend

ColumnType = Literal["text", "integer", "bigint", "number", "decimal", "boolean", "timestamp", "json"]
Operation = Literal["insert", "upsert", "update", "delete"]

MAX_PRECISION, MAX_SCALE = 65, 30  # MariaDB's and MySQL's, the smallest among the databases
_NUMERIC = re.compile(r"numeric\(([0-9]{1,2})(?:, ?([0-9]{1,2}))?\)")

# What databases and languages call the types. A UUID's column takes its text.
_MEANT = {
    other: name
    for name, others in {
        "text": "text varchar char character nvarchar string str uuid citext enum bpchar tinytext mediumtext longtext",
        "integer": "integer int int2 int4 smallint mediumint tinyint int32 serial smallserial",
        "bigint": "bigint int8 int64 long bigserial",
        "number": "number float float4 float8 double real",
        "decimal": "decimal money",
        "numeric(p,s)": "numeric",
        "boolean": "boolean bool bit",
        "timestamp": "timestamp timestamptz datetime",
        "json": "json jsonb",
    }.items()
    for other in others.split()
}


def _column(value: Any, handler: Callable[[Any], Any]) -> str:
    match = _NUMERIC.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        meant = _MEANT.get(value.partition("(")[0].strip().lower()) if isinstance(value, str) else None
        if meant is not None and meant != value:
            raise ValueError(f"{shown(value)} isn't a type of this file; write {meant}")
        return str(handler(value))
    precision, scale = int(match[1]), int(match[2] or 0)
    if not 1 <= precision <= MAX_PRECISION or scale > min(precision, MAX_SCALE):
        raise ValueError(
            f"{value} can't be: a precision is 1 to {MAX_PRECISION} digits, and a scale at most {MAX_SCALE} of them"
        )
    return f"numeric({precision},{scale})"


def type_of(column: str) -> ColumnType:
    """What a column of `columns` holds."""
    return "decimal" if column.startswith("numeric(") else cast("ColumnType", column)


class _ColumnText(Text):
    """A ColumnType, or `numeric(p,s)`: a decimal whose digits the file states."""

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        known = core_schema.literal_schema(list(get_args(ColumnType)))
        return core_schema.no_info_wrap_validator_function(
            _column, known, serialization=core_schema.to_string_ser_schema()
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: object) -> dict[str, Any]:
        return {
            "anyOf": [
                {"type": "string", "enum": list(get_args(ColumnType))},
                {"type": "string", "pattern": rf"^{_NUMERIC.pattern}$"},
            ]
        }


_NAMED = get_args(ColumnType)
Column = Annotated[
    str,
    _ColumnText(
        f"{'|'.join(_NAMED)}|{_NUMERIC.pattern}",
        f"one of {', '.join(f'`{name}`' for name in _NAMED)}, or `numeric(p,s)`: p digits, s of them behind the point",
        20,
    ),
]


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
        if self.slot_column in self.columns:
            raise ValueError(
                f"slot_column {self.slot_column!r} is also among columns; bodies don't set it, so name it otherwise"
            )
        if len(set(self.key)) != len(self.key):
            raise ValueError("the key names a column twice")
        for column in self.key:
            if self.columns[column] == "json":
                raise ValueError(f"the key column {column!r} is json, which databases can't index")
        return self

    @model_serializer(mode="wrap")
    def _without_what_was_left_out(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A type without a table: read again from its JSON, an empty name would be refused."""
        written = write(self)
        return written if self.table else {name: written[name] for name in written if written[name]}

    @property
    def types(self) -> dict[str, ColumnType]:
        """What each column holds; `precisions` says with how many digits."""
        return {name: type_of(column) for name, column in self.columns.items()}

    @property
    def precisions(self) -> dict[str, tuple[int, int]]:
        """Precision and scale of each column whose digits are stated."""
        matches = {name: _NUMERIC.fullmatch(column) for name, column in self.columns.items()}
        return {name: (int(match[1]), int(match[2] or 0)) for name, match in matches.items() if match}

    @property
    def routing_field(self) -> str:
        return self.routing_key or self.key[0]
