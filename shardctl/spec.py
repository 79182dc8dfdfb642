"""`shards.yaml` as frozen models, and `load`, whose errors name file, line, path, fault and fix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from shardctl import yamlfile
from shardctl.errors import UsageError
from shardctl.filters import FilterAttributes
from shardctl.keyspace import MAX_SLOT_BITS, MIN_SLOT_BITS, SlotSet, TimeUnit
from shardctl.yamlfile import YamlFile

DEFAULT_PATH = Path("shards.yaml")
MAX_FAULTS_SHOWN = 20
SCHEMA_ID = "urn:shardctl:shards.yaml"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a file: where in it, what, and how to mend it."""

    path: tuple[str | int, ...]
    fault: str
    fix: str = ""


class SpecError(UsageError):
    """`shards.yaml` can't be used. Nothing was done."""

    def __init__(self, file: YamlFile, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(_fault_lines(file, self.faults)))


def _fault_lines(file: YamlFile, faults: Sequence[Fault]) -> list[str]:
    lines = []
    for fault in faults[:MAX_FAULTS_SHOWN]:
        line = file.line_of(fault.path)
        where = f"{file.path}:{line}" if line else file.path
        lines.append(f"{where}: {path_text(fault.path)}: {fault.fault}" + (f" Fix: {fault.fix}" if fault.fix else ""))
    if len(faults) > MAX_FAULTS_SHOWN:
        lines.append(f"{file.path}: … and {len(faults) - MAX_FAULTS_SHOWN} more.")
    return lines


def path_text(path: Sequence[str | int]) -> str:
    """`("shards", 2, "slots")` as people write it: `shards[2].slots`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "(the whole file)"


# --- scalars ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Text:
    """Text that matches `pattern` as a whole; `rule` says so in words."""

    pattern: str
    rule: str
    max_length: int

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        compiled = re.compile(self.pattern, re.ASCII)

        def check(value: str) -> str:
            if len(value) > self.max_length:
                raise ValueError(f"{_shown(value)} has {len(value)} characters, and {self.max_length} are allowed")
            if not compiled.fullmatch(value):
                raise ValueError(f"{_shown(value)} isn't {self.rule}")
            return value

        return core_schema.no_info_after_validator_function(check, core_schema.str_schema(strict=True))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: object) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": f"^({self.pattern})$",
            "maxLength": self.max_length,
            "description": f"{self.rule}.",
        }


_LABEL_RULE = (
    "a Kubernetes name: lower-case letters, digits and '-', beginning with a letter, ending with a letter or digit"
)
Label = Annotated[str, _Text(r"[a-z]([-a-z0-9]*[a-z0-9])?", _LABEL_RULE, 63)]
# Two of them and `-g999999-t255` make a subscription's name, which must fit a label value: autoscalers select by it.
ShortName = Annotated[str, _Text(r"[a-z]([-a-z0-9]*[a-z0-9])?", _LABEL_RULE, 24)]
ObjectName = Annotated[
    str,
    _Text(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", "the name of a Kubernetes object", 253),
]
SecretKey = Annotated[
    str, _Text(r"[-._a-zA-Z0-9]+", "a key of a Kubernetes Secret: letters, digits, '-', '_' and '.'", 253)
]
TopicId = Annotated[
    str,
    _Text(
        r"(?!goog)[A-Za-z][-A-Za-z0-9_.~+%]{2,}",
        "a Pub/Sub id: 3 to 250 letters, digits or - _ . ~ + %, beginning with a letter and not with 'goog'",
        250,
    ),
]
ProjectId = Annotated[
    str,
    _Text(
        r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]",
        "a Google Cloud project id: 6 to 30 lower-case letters, digits and '-'",
        80,
    ),
]
ProjectNumber = Annotated[str, _Text(r"[1-9][0-9]{3,19}", "a Google Cloud project's number", 20)]
Image = Annotated[
    str,
    _Text(
        r"[a-z0-9][-a-zA-Z0-9._/:]*(:(?!latest$)[\w][\w.-]{0,127}|@sha256:[0-9a-f]{64})",
        "an image with a tag other than 'latest', or a digest",
        500,
    ),
]
Identifier = Annotated[
    str, _Text(r"[A-Za-z_][A-Za-z0-9_]*", "a column name: letters, digits and '_', not beginning with a digit", 63)
]
TableName = Annotated[
    str, _Text(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?", "a table name, `table` or `schema.table`", 127)
]
AttributeName = Annotated[
    str, _Text(r"(?!goog)[^\s\x00-\x1f]{1,256}", "a Pub/Sub attribute name (no blanks, not beginning with 'goog')", 256)
]
SinkPath = Annotated[
    str,
    _Text(
        r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*",
        "the path of a Python factory, such as package.module:factory",
        200,
    ),
]
TypeName = Annotated[
    str,
    _Text(
        r"[A-Za-z0-9][-A-Za-z0-9_./]*",
        "a message type: letters, digits and - _ . /, beginning with a letter or digit",
        100,
    ),
]
# Config Connector copies every label without a '/' onto the Google Cloud resource, where only this much is allowed.
_RESERVED_LABELS = r"(?!(app|shard)$)(?!([a-z0-9.-]*\.)?(kubernetes|k8s)\.io/)"
LabelKey = Annotated[
    str,
    _Text(
        _RESERVED_LABELS
        + r"([a-z]([-_a-z0-9]{0,61}[a-z0-9])?"
        + r"|(?=[^/]{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
        + r"/[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)",
        "a label key of your own: up to 63 lower-case letters, digits, '-' and '_', or with a domain, example.com/Team "
        "(app, shard and kubernetes.io are taken)",
        317,
    ),
]
LabelValue = Annotated[
    str, _Text(r"([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?", "a label value: letters, digits and - _ . inside", 63)
]
Quantity = Annotated[
    str, _Text(r"[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?", "a Kubernetes quantity such as 500m or 512Mi", 20)
]

_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _read_duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise ValueError("a duration is a whole number with a unit: 30s, 10m, 12h or 7d")
    return timedelta(seconds=int(match[1]) * _UNIT_SECONDS[match[2]])


def _write_duration(value: timedelta) -> str:
    return f"{int(value.total_seconds())}s"


@dataclass(frozen=True, slots=True)
class _Between:
    """A duration written `30s`, `10m`, `12h` or `7d`, within bounds written the same way."""

    least: str
    most: str

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        low, high = _read_duration(self.least), _read_duration(self.most)

        def check(value: object) -> timedelta:
            duration = _read_duration(value)
            if not low <= duration <= high:
                raise ValueError(f"{_shown(value)} doesn't lie between {self.least} and {self.most}")
            return duration

        writes = core_schema.plain_serializer_function_ser_schema(_write_duration)
        return core_schema.no_info_plain_validator_function(check, serialization=writes)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: object) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": r"^\d+(s|m|h|d)$",
            "description": f"A duration from {self.least} to {self.most}.",
        }


Duration = Annotated[timedelta, _Between("0s", "3650d")]


def _read_slots(value: object) -> SlotSet:
    if isinstance(value, SlotSet):
        return value
    if isinstance(value, str | int) and not isinstance(value, bool):
        return SlotSet.parse(str(value))
    raise ValueError("slots are a number or ranges: 5, or 0-341, or 0-99,200-299")


Slots = Annotated[
    SlotSet,
    BeforeValidator(_read_slots),
    PlainSerializer(str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": r"^\s*\d+\s*(-\s*\d+\s*)?(,\s*\d+\s*(-\s*\d+\s*)?)*$"},
            ]
        }
    ),
]


class Model(BaseModel):
    """Strict, frozen, and closed to fields it doesn't know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else _as_tuple(value)


# --- routing and message types ----------------------------------------------------------------------------------------


_TAKEN_BY_CLIENT = frozenset({"self", "topic", "data", "ordering_key", "retry", "timeout"})


class Attributes(Model):
    """The Pub/Sub attribute that carries each part of a message."""

    slot: AttributeName = "slot"
    partition_key: AttributeName = "partition_key"
    message_type: AttributeName = "message_type"
    operation: AttributeName = "operation"
    timestamp: AttributeName = "timestamp"
    idempotency_key: AttributeName = "idempotency_key"

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


ColumnType = Literal["text", "integer", "bigint", "number", "decimal", "boolean", "timestamp", "json"]
Operation = Literal["insert", "upsert", "update", "delete"]


_NAME_SCHEMA = TypeAdapter(Identifier).json_schema()


class TimeBucket(Model):
    """Route by time: the slot is the number of the bucket that holds `field`, modulo the slot count."""

    field: Annotated[Identifier, Field(description="The body's field: RFC 3339 text, or seconds since 1970.")]
    unit: TimeUnit


class MessageType(Model):
    """Where writes of one type land: in a table, whose columns a JSON body names, or wherever your own sink puts them."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["table", "key", "columns"]}, {"required": ["sink", "routing_key"]}]}
    )

    table: TableName = ""
    key: Annotated[
        tuple[Identifier, ...],
        Field(max_length=16),
        BeforeValidator(_one_or_many),
        WithJsonSchema(
            {"anyOf": [_NAME_SCHEMA, {"type": "array", "items": _NAME_SCHEMA, "minItems": 1, "maxItems": 16}]}
        ),
    ] = ()
    columns: Annotated[
        dict[Identifier, ColumnType],
        Field(description="Every column a body may set. `shardctl provision` creates the table from these."),
    ] = {}
    sink: Annotated[
        SinkPath | None,
        Field(description="Your own sink instead of a table: `package.module:factory` on the consumer's Python path."),
    ] = None
    on_poison: Annotated[
        Literal["dead_letter", "park"],
        Field(
            description="What becomes of a write that can't succeed: the dead-letter topic takes it, or it stays in the "
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
    time_bucket: TimeBucket | None = None

    @model_validator(mode="after")
    def _lands_somewhere(self) -> Self:
        if self.sink is None and not (self.table and self.key and self.columns):
            raise ValueError("needs a table, a key and columns, or else a sink and a routing_key")
        if self.sink is not None and (self.table or self.key or self.columns):
            raise ValueError("sink takes the place of table, key and columns")
        if self.sink is not None and self.routing_key is None:
            raise ValueError("a type with a sink needs a routing_key")
        return self

    @model_validator(mode="after")
    def _columns_exist(self) -> Self:
        if self.sink is not None:
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

    @property
    def routing_field(self) -> str:
        return self.routing_key or self.key[0]


# --- platform ---------------------------------------------------------------------------------------------------------


class SecretRef(Model):
    """A key of a Kubernetes Secret. The value itself never stands in this file or in anything rendered from it."""

    name: ObjectName
    key: SecretKey = "url"


class Subscriptions(Model):
    """Settings of every subscription the fleet reads from."""

    ack_deadline: Annotated[timedelta, _Between("10s", "600s")] = timedelta(seconds=60)
    retention: Annotated[timedelta, _Between("10m", "31d")] = timedelta(days=7)
    retry_minimum: Annotated[timedelta, _Between("0s", "600s")] = timedelta(seconds=10)
    retry_maximum: Annotated[timedelta, _Between("0s", "600s")] = timedelta(seconds=600)
    max_delivery_attempts: Annotated[int, Field(ge=5, le=100)] = 5

    @model_validator(mode="after")
    def _backoff_grows(self) -> Self:
        if self.retry_minimum > self.retry_maximum:
            raise ValueError("retry_minimum exceeds retry_maximum")
        return self


class Redis(Model):
    secret: SecretRef | None = None


class Batching(Model):
    """How the consumer works; a shard may override any of it."""

    batch_max_rows: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    batch_max_bytes: Annotated[int, Field(ge=1_024, le=64 * 1024**2)] = 4 * 1024**2
    batch_max_age_ms: Annotated[int, Field(ge=0, le=10_000, description="How long a message may wait for company.")] = (
        20
    )
    concurrency: Annotated[int, Field(ge=1, le=64, description="Transactions at once, each on slots of its own.")] = 2
    max_outstanding_messages: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    max_outstanding_bytes: Annotated[int, Field(ge=1_024, le=4 * 1024**3)] = 64 * 1024**2
    lease: Annotated[
        timedelta,
        _Between("10s", "600s"),
        Field(description="The stream's ack deadline: how soon a dead replica's messages go elsewhere."),
    ] = timedelta(seconds=20)
    lock_ttl: Annotated[timedelta, _Between("1s", "600s")] = timedelta(seconds=15)
    redis_timeout_ms: Annotated[int, Field(ge=10, le=60_000)] = 500
    statement_timeout: Annotated[timedelta, _Between("1s", "600s")] = timedelta(seconds=30)
    drain_timeout: Annotated[timedelta, _Between("1s", "600s")] = timedelta(seconds=20)
    rate_limit: Annotated[
        int | None, Field(ge=1, le=1_000_000, description="Writes a second, of all the shard's replicas together.")
    ] = None
    inbox_retention: Annotated[
        Annotated[timedelta, _Between("1h", "365d")] | None,
        Field(description="How long an applied message is remembered; by default as long as it can be replayed."),
    ] = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Autoscaling(Model):
    min: Annotated[int, Field(ge=1, le=1_000)] = 2
    max: Annotated[int, Field(ge=1, le=1_000)] = 10
    cpu_percent: Annotated[int, Field(ge=1, le=100)] = 70
    backlog_per_replica: Annotated[int, Field(ge=1)] = 100

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} exceeds max {self.max}")
        return self


class Resources(Model):
    cpu: Quantity = "500m"
    cpu_limit: Quantity = "2"
    memory: Quantity = "512Mi"
    memory_limit: Quantity = "512Mi"
    ephemeral_storage: Quantity = "64Mi"
    ephemeral_storage_limit: Quantity = "128Mi"


class Probes(Model):
    """Timing of the HTTP probes on port 8080."""

    period_seconds: Annotated[int, Field(ge=1, le=300)] = 5
    timeout_seconds: Annotated[int, Field(ge=1, le=60)] = 2
    liveness_failures: Annotated[int, Field(ge=1, le=100)] = 6
    readiness_failures: Annotated[int, Field(ge=1, le=100)] = 2
    startup_failures: Annotated[int, Field(ge=1, le=100)] = 24


class Local(Model):
    """What `shardctl up` and `shardctl demo` start on this machine. Nothing here is rendered."""

    database: Literal["postgresql", "sqlite"] = "postgresql"
    replicas: Annotated[int, Field(ge=1, le=8)] = 2


class Shard(Model):
    name: ShortName
    slots: Slots
    types: Annotated[
        tuple[TypeName, ...],
        BeforeValidator(_as_tuple),
        Field(description="Only these message types; all when left out."),
    ] = ()
    except_types: Annotated[
        tuple[TypeName, ...], BeforeValidator(_as_tuple), Field(description="All message types but these.")
    ] = ()
    generation: Annotated[
        int, Field(ge=1, le=999_999, description="Grows by one each time the shard's slots change.")
    ] = 1
    database: SecretRef | None = None
    consumer: Annotated[Batching | None, Field(description="What differs from the fleet's `consumer`.")] = None
    autoscaling: Annotated[Autoscaling | None, Field(description="What differs from the fleet's `autoscaling`.")] = None
    resources: Annotated[Resources | None, Field(description="What differs from the fleet's `resources`.")] = None

    @model_validator(mode="after")
    def _types_make_sense(self) -> Self:
        if self.types and self.except_types:
            raise ValueError("types and except_types exclude each other")
        for names in (self.types, self.except_types):
            if len(set(names)) != len(names):
                raise ValueError("a message type is named twice")
        return self

    def takes(self, message_type: str) -> bool:
        """Whether the shard's filters let that type through; of slots they decide apart."""
        return message_type in self.types if self.types else message_type not in self.except_types


SHARD_OVERRIDES = ("consumer", "autoscaling", "resources")


class Fleet(Model):
    """Every shard fed by one topic: the whole of `shards.yaml`."""

    fleet: ShortName
    project: ProjectId
    project_number: Annotated[
        ProjectNumber | None,
        Field(description="In quotes. Lets `render` grant Pub/Sub's service agent what dead-lettering needs."),
    ] = None
    namespace: Label = "default"
    image: Image
    topic: TopicId = "data-writes"
    labels: Annotated[dict[LabelKey, LabelValue], Field(description="Put on every rendered object.")] = {}
    routing: Routing = Routing()
    message_types: Annotated[dict[TypeName, MessageType], Field(min_length=1)]
    subscription: Subscriptions = Subscriptions()
    redis: Redis = Redis()
    consumer: Batching = Batching()
    autoscaling: Autoscaling = Autoscaling()
    resources: Resources = Resources()
    probes: Probes = Probes()
    local: Local = Local()
    shards: Annotated[tuple[Shard, ...], Field(min_length=1), BeforeValidator(_as_tuple)]

    @field_validator("labels")
    @classmethod
    def _labels_fit_google_cloud(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            if "/" not in key and not re.fullmatch(r"[-_a-z0-9]*", value):
                raise ValueError(
                    f"{key}: {_shown(value)} isn't lower-case letters, digits, '-' and '_', as Google Cloud's labels "
                    "are; a key with a domain, such as example.com/team, stays in Kubernetes and may have others"
                )
        return labels

    @model_validator(mode="before")
    @classmethod
    def _shards_inherit(cls, data: Any) -> Any:
        """Lay a shard's own settings over the fleet's, so that a shard names only what differs."""
        if not isinstance(data, dict) or not isinstance(data.get("shards"), list):
            return data

        def inherit(shard: Any) -> Any:
            if not isinstance(shard, dict):
                return shard
            merged = {
                name: {**data[name], **shard[name]}
                for name in SHARD_OVERRIDES
                if isinstance(shard.get(name), dict) and isinstance(data.get(name), dict)
            }
            return {**shard, **merged}

        return {**data, "shards": [inherit(shard) for shard in data["shards"]]}

    def consumer_of(self, shard: Shard) -> Batching:
        return shard.consumer or self.consumer

    def autoscaling_of(self, shard: Shard) -> Autoscaling:
        return shard.autoscaling or self.autoscaling

    def resources_of(self, shard: Shard) -> Resources:
        return shard.resources or self.resources

    def shard(self, name: str) -> Shard:
        """The shard of that name. Raises UsageError that lists the names there are."""
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise UsageError(f"no shard {name!r} in fleet {self.fleet}; shards: {', '.join(s.name for s in self.shards)}")


# --- loading ----------------------------------------------------------------------------------------------------------


def load(path: Path = DEFAULT_PATH) -> Fleet:
    """Read `shards.yaml` and prove that it makes a fleet.

    Raises YamlError, or SpecError with every fault it found.
    """
    return of_file(yamlfile.read(path))


def of_file(file: YamlFile) -> Fleet:
    from shardctl import coverage  # coverage reads the models above

    if not isinstance(file.data, dict):
        raise SpecError(file, [Fault((), "holds no settings.", "`shardctl init` writes a file to start from.")])
    try:
        fleet = Fleet.model_validate(file.data)
    except ValidationError as error:
        raise SpecError(file, [_explain(file, fault) for fault in error.errors()]) from error
    faults = coverage.faults(fleet)
    if faults:
        raise SpecError(file, faults)
    return fleet


def json_schema() -> dict[str, Any]:
    """JSON Schema of `shards.yaml`, draft 2020-12. What only shows across fields, `load` alone checks."""
    schema = _closed(Fleet.model_json_schema())
    return {
        **schema,
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "shards.yaml of shardctl",
    }


def _closed(schema: Any) -> Any:
    """Pydantic leaves mappings open to keys that match no pattern, and `load` refuses them."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "patternProperties" in schema else {}
    return {name: _closed(part) for name, part in schema.items()} | closed


def _explain(file: YamlFile, error: Any) -> Fault:
    """Pydantic's finding in this file's words."""
    path = tuple(part for part in error["loc"] if part != "[key]")
    given = error["input"]
    match error["type"]:
        case "extra_forbidden":
            known = _known_fields(path)
            fix = f"fields here: {', '.join(known)}." if known else "remove it."
            fault = Fault(path, f"there is no such field.{_nearest(str(path[-1]), known)}", fix)
        case "missing":
            fault = Fault(path, "is missing.", "add it; `shardctl schema` describes it.")
        case "string_type":
            fault = _not_text(file, path, given)
        case "value_error":
            fault = Fault(path, f"{error['ctx']['error']}.")
        case "literal_error":
            expected = error["ctx"]["expected"]
            close = _nearest(str(given), re.findall(r"'([^']+)'", expected))
            fault = Fault(path, f"{_shown(given)} isn't one of {expected}.{close}")
        case "model_type" | "dict_type" | "model_attributes_type":
            fault = Fault(path, f"a mapping of fields is wanted, not {_yaml_kind(given)}.")
        case "tuple_type":
            fault = Fault(path, f"a list is wanted, not {_yaml_kind(given)}.", "begin each item with `- `.")
        case _:
            message = error["msg"].replace("Input should be", "must be")
            message = message.replace("Tuple", "The list").replace("Dictionary", "The mapping")
            fault = Fault(path, f"{message[0].lower()}{message[1:]}, and is {_shown(given)}.")
    return fault


def _not_text(file: YamlFile, path: tuple[str | int, ...], given: object) -> Fault:
    written = file.written(path)
    if isinstance(given, bool | int | float) and written is not None:
        what = f"YAML reads {written} as {_yaml_kind(given)}, and text is wanted."
        return Fault(path, what, f'write "{written}" in quotes.')
    return Fault(path, f"text is wanted, not {_yaml_kind(given)}.")


def _yaml_kind(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"the value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    names: dict[type, str] = {str: "text", list: "a list", tuple: "a list", dict: "a mapping"}
    return names.get(type(value), type(value).__name__)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _known_fields(path: Sequence[str | int]) -> list[str]:
    """The fields of the model that holds the field at `path`."""
    model: type[BaseModel] = Fleet
    in_dict = False
    for part in path[:-1]:
        if isinstance(part, int) or in_dict:  # a list's item, or a dict's: such as a message type's name
            in_dict = False
            continue
        field = model.model_fields.get(part)
        within = _model_within(field.annotation) if field else None
        if field is None or within is None:
            return []
        model, in_dict = within, getattr(field.annotation, "__origin__", None) is dict
    return list(model.model_fields)


def _model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_within(argument):
            return found
    return None


def _nearest(word: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, known, 1)
    return f" Did you mean {close[0]}?" if close else ""
