"""`shards.yaml` as frozen models, and `load`, whose errors name file, line, path, fault and fix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from shardctl import yamlfile
from shardctl.cluster import (
    Autoscaling,
    AutoscalingSetting,
    NetworkPolicy,
    Placement,
    Probes,
    ResourceQuota,
    Resources,
    Secrets,
    SecretsSetting,
    Workload,
    WorkloadSetting,
)
from shardctl.errors import UsageError
from shardctl.faults import Fault, SpecError, explain
from shardctl.filters import FilterAttributes
from shardctl.keyspace import MAX_SLOT_BITS, MIN_SLOT_BITS, TimeUnit
from shardctl.model import Model
from shardctl.monitoring import Monitoring, MonitoringSetting
from shardctl.scalars import (
    AttributeName,
    Between,
    Cron,
    Identifier,
    Image,
    Label,
    LabelKey,
    LabelValue,
    ObjectName,
    ProjectId,
    ProjectNumber,
    Region,
    SecretId,
    SecretKey,
    ShortName,
    SinkPath,
    Slots,
    TableName,
    TimeZone,
    TopicId,
    TypeName,
    as_tuple,
    one_or_many,
    shown,
)
from shardctl.traffic import Traffic, TrafficSetting
from shardctl.yamlfile import YamlFile

DEFAULT_PATH = Path("shards.yaml")
SCHEMA_ID = "urn:shardctl:shards.yaml"


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
        BeforeValidator(one_or_many),
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
    slot_tables: Annotated[
        dict[TableName, Identifier],
        Field(
            description="Other tables whose rows belong to slots, such as what a sink of yours fills, with the column "
            "that holds the slot. A rebalance moves their rows too."
        ),
    ] = {}
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

    @model_serializer(mode="wrap")
    def _without_what_was_left_out(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A type with a sink has no table, and read again from its JSON an empty name would be refused."""
        written = write(self)
        return written if self.sink is None else {name: written[name] for name in written if written[name]}

    @property
    def routing_field(self) -> str:
        return self.routing_key or self.key[0]


# --- platform ---------------------------------------------------------------------------------------------------------


class SecretRef(Model):
    """A key of a Kubernetes Secret. The value itself never stands in this file or in anything rendered from it."""

    name: ObjectName
    key: SecretKey = "url"
    remote: Annotated[
        SecretId | None,
        Field(description="Its id in Secret Manager, for `secrets: {kind: external-secrets}`; by default `name`."),
    ] = None


class Subscriptions(Model):
    """Settings of every subscription the fleet reads from."""

    ack_deadline: Annotated[timedelta, Between("10s", "600s")] = timedelta(seconds=60)
    retention: Annotated[timedelta, Between("10m", "31d")] = timedelta(days=7)
    retry_minimum: Annotated[timedelta, Between("0s", "600s")] = timedelta(seconds=10)
    retry_maximum: Annotated[timedelta, Between("0s", "600s")] = timedelta(seconds=600)
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
    # With the least back-off of the subscription, 10 s, a dead replica's messages are elsewhere within 30 s.
    lease: Annotated[
        timedelta,
        Between("10s", "600s"),
        Field(description="The stream's ack deadline: how soon a dead replica's messages go elsewhere."),
    ] = timedelta(seconds=15)
    lock_ttl: Annotated[timedelta, Between("1s", "600s")] = timedelta(seconds=15)
    redis_timeout_ms: Annotated[int, Field(ge=10, le=60_000)] = 500
    statement_timeout: Annotated[timedelta, Between("1s", "600s")] = timedelta(seconds=30)
    drain_timeout: Annotated[timedelta, Between("1s", "600s")] = timedelta(seconds=20)
    rate_limit: Annotated[
        int | None, Field(ge=1, le=1_000_000, description="Writes a second, of all the shard's replicas together.")
    ] = None
    inbox_retention: Annotated[
        Annotated[timedelta, Between("1h", "365d")] | None,
        Field(description="How long an applied message is remembered; by default as long as it can be replayed."),
    ] = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Schedule(Model):
    """A write that Cloud Scheduler publishes again and again, the same each time."""

    name: ShortName
    cron: Cron
    time_zone: TimeZone = "Etc/UTC"
    region: Annotated[Region, Field(description="Where the job lives; it can't be changed later.")]
    type: TypeName
    key: Annotated[
        str | None, Field(description="The routing key; by default the body's field that the type names.")
    ] = None
    operation: Annotated[Operation | None, Field(description="By default as the type says.")] = None
    body: dict[str, Any] = {}


class Local(Model):
    """What `shardctl up` and `shardctl demo` start on this machine. Nothing here is rendered."""

    database: Literal["postgresql", "sqlite"] = "postgresql"
    replicas: Annotated[int, Field(ge=1, le=8)] = 2


class Previous(Model):
    """A generation that a shard had before the rebalance under way, and that may still hold some of its slots active."""

    generation: Annotated[int, Field(ge=1, le=999_999)]
    slots: Slots


class Shard(Model):
    name: ShortName
    slots: Slots
    types: Annotated[
        tuple[TypeName, ...],
        BeforeValidator(as_tuple),
        Field(description="Only these message types; all when left out."),
    ] = ()
    except_types: Annotated[
        tuple[TypeName, ...], BeforeValidator(as_tuple), Field(description="All message types but these.")
    ] = ()
    generation: Annotated[
        int, Field(ge=1, le=999_999, description="Grows by one each time the shard's slots change.")
    ] = 1
    previous: Annotated[
        tuple[Previous, ...] | None,
        BeforeValidator(as_tuple),
        Field(
            description="Written by `shardctl rebalance` while slots move: the generations that may still own some, the "
            "oldest first; empty for a new shard."
        ),
    ] = None
    database: SecretRef | None = None
    consumer: Annotated[Batching | None, Field(description="What differs from the fleet's `consumer`.")] = None
    autoscaling: Annotated[
        AutoscalingSetting | None, Field(description="What differs from the fleet's `autoscaling`.")
    ] = None
    resources: Annotated[Resources | None, Field(description="What differs from the fleet's `resources`.")] = None
    workload: Annotated[WorkloadSetting | None, Field(description="What differs from the fleet's `workload`.")] = None
    network_policy: Annotated[
        NetworkPolicy | None, Field(description="What differs from the fleet's `network_policy`.")
    ] = None

    @model_validator(mode="after")
    def _types_make_sense(self) -> Self:
        if self.types and self.except_types:
            raise ValueError("types and except_types exclude each other")
        for names in (self.types, self.except_types):
            if len(set(names)) != len(names):
                raise ValueError("a message type is named twice")
        return self

    @model_validator(mode="after")
    def _generations_grow(self) -> Self:
        numbers = [*(before.generation for before in self.previous or ()), self.generation]
        if any(later <= earlier for earlier, later in pairwise(numbers)):
            raise ValueError("generations grow: those of `previous` in order, then the shard's own")
        return self

    def takes(self, message_type: str) -> bool:
        """Whether the shard's filters let that type through; of slots they decide apart."""
        return message_type in self.types if self.types else message_type not in self.except_types


def _with_kinds(data: dict[str, Any]) -> dict[str, Any]:
    """`workload: statefulset` written out, so that what a shard says can be laid over what the fleet says."""
    short = {name: {"kind": data[name]} for name in ("autoscaling", "workload") if isinstance(data.get(name), str)}
    return {**data, **short}


SHARD_OVERRIDES = ("consumer", "autoscaling", "resources", "workload", "network_policy")


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
    autoscaling: AutoscalingSetting = Autoscaling()
    resources: Resources = Resources()
    probes: Probes = Probes()
    workload: WorkloadSetting = Workload()
    placement: Placement = Placement()
    secrets: SecretsSetting = Secrets()
    network_policy: Annotated[
        NetworkPolicy | None, Field(description="Rendered when given, if only as `{}`; without it nothing is closed.")
    ] = None
    resource_quota: Annotated[
        ResourceQuota | None,
        Field(description="Rendered when given, if only as `{}`; it counts for the whole namespace."),
    ] = None
    monitoring: MonitoringSetting = Monitoring()
    traffic: TrafficSetting = Traffic()
    provisioner: Annotated[
        Literal["config-connector", "terraform", "gcloud", "api"],
        Field(
            description="What makes topics, subscriptions, service accounts, grants and schedules: Config Connector's objects "
            "among the manifests; `render --format terraform`; `render --format gcloud`; or `shardctl provision`, which makes "
            "topics and subscriptions alone."
        ),
    ] = "config-connector"
    schedules: Annotated[
        tuple[Schedule, ...],
        BeforeValidator(as_tuple),
        Field(description="Writes that Cloud Scheduler publishes into the fleet."),
    ] = ()
    local: Local = Local()
    shards: Annotated[tuple[Shard, ...], Field(min_length=1), BeforeValidator(as_tuple)]

    @field_validator("labels")
    @classmethod
    def _labels_fit_google_cloud(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            if "/" not in key and not re.fullmatch(r"[-_a-z0-9]*", value):
                raise ValueError(
                    f"{key}: {shown(value)} isn't lower-case letters, digits, '-' and '_', as Google Cloud's labels "
                    "are; a key with a domain, such as example.com/team, stays in Kubernetes and may have others"
                )
        return labels

    @model_validator(mode="before")
    @classmethod
    def _shards_inherit(cls, data: Any) -> Any:
        """Lay a shard's own settings over the fleet's, so that a shard names only what differs."""
        if not isinstance(data, dict) or not isinstance(data.get("shards"), list):
            return data
        data = _with_kinds(data)

        def inherit(shard: Any) -> Any:
            if not isinstance(shard, dict):
                return shard
            shard = _with_kinds(shard)
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

    def workload_of(self, shard: Shard) -> Workload:
        return shard.workload or self.workload

    def network_policy_of(self, shard: Shard) -> NetworkPolicy | None:
        return shard.network_policy or self.network_policy

    @property
    def rebalancing(self) -> bool:
        """Whether slots are on the move: some shard has generations that may still own what another has been given."""
        return any(shard.previous is not None for shard in self.shards)

    def settled(self) -> Fleet:
        """The fleet as it is once every slot has arrived."""
        shards = (shard.model_copy(update={"previous": None}) for shard in self.shards if shard.slots.ranges)
        return self.model_copy(update={"shards": tuple(shards)})

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
        raise SpecError(file, [explain(file, Fleet, fault) for fault in error.errors()]) from error
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
