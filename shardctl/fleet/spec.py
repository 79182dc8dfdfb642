"""`shards.yaml` as frozen models, and `load`, whose errors name file, line, path, fault and fix."""

from __future__ import annotations

import re
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic.json_schema import GenerateJsonSchema

from shardctl.errors import UsageError
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.model import INHERITED, Inherited, Model
from shardctl.fleet.scalars import (
    Cron,
    Image,
    Label,
    LabelKey,
    LabelValue,
    ObjectName,
    ProjectId,
    ProjectNumber,
    Region,
    SecretKey,
    ShortName,
    Slots,
    TimeZone,
    TypeName,
    as_tuple,
    shown,
    written_duration,
)
from shardctl.fleet.settings.cloudsql import CloudSqlDefaults, Database
from shardctl.fleet.settings.cluster import (
    Autoscaling,
    AutoscalingSetting,
    NetworkPolicy,
    Placement,
    Probes,
    ResourceQuota,
    Resources,
    Workload,
    WorkloadSetting,
)
from shardctl.fleet.settings.consuming import Batching, Subscriptions
from shardctl.fleet.settings.databases import DEFAULT_KINDS, DatabaseKinds
from shardctl.fleet.settings.delivery import Delivery, DeliverySetting
from shardctl.fleet.settings.gateway import Gateway
from shardctl.fleet.settings.leader import Leader, LeaderSetting
from shardctl.fleet.settings.messagetypes import MessageType, Operation
from shardctl.fleet.settings.monitoring import Monitoring, MonitoringSetting
from shardctl.fleet.settings.operator import Operator
from shardctl.fleet.settings.redis import Redis
from shardctl.fleet.settings.relay import Relay
from shardctl.fleet.settings.routing import Routing
from shardctl.fleet.settings.secrets import Secrets, SecretsSetting
from shardctl.fleet.settings.topic import Topic, TopicSetting
from shardctl.fleet.settings.tracing import Tracing
from shardctl.fleet.settings.traffic import Traffic, TrafficSetting
from shardctl.fleet.suggestion import suggestion

DEFAULT_PATH = Path("shards.yaml")
SCHEMA_ID = "urn:shardctl:shards.yaml"


class Schedule(Model):
    """A write that Cloud Scheduler publishes at each of its times, the same each time."""

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
    """One shard. The fleet gives it the settings that it leaves out."""

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
    database: Annotated[Database | None, Field(description="By default key `url` of the Secret `FLEET-SHARD-db`.")] = (
        None
    )
    consumer: Annotated[Batching, Inherited(), Field(description="What differs from the fleet's `consumer`.")] = (
        INHERITED
    )
    autoscaling: Annotated[
        AutoscalingSetting, Inherited(), Field(description="What differs from the fleet's `autoscaling`.")
    ] = INHERITED
    resources: Annotated[Resources, Inherited(), Field(description="What differs from the fleet's `resources`.")] = (
        INHERITED
    )
    workload: Annotated[
        WorkloadSetting, Inherited(), Field(description="What differs from the fleet's `workload`.")
    ] = INHERITED
    network_policy: Annotated[
        NetworkPolicy | None, Field(description="What differs from the fleet's `network_policy`.")
    ] = None
    leader: Annotated[LeaderSetting, Inherited(), Field(description="What differs from the fleet's `leader`.")] = (
        INHERITED
    )

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
        """Whether the shard's filters let that type through, whatever the slot."""
        return message_type in self.types if self.types else message_type not in self.except_types


def _with_kinds(data: dict[str, Any]) -> dict[str, Any]:
    """`workload: statefulset` written out, so that what a shard says can be laid over what the fleet says."""
    short = {
        name: {"kind": data[name]} for name in ("autoscaling", "workload", "leader") if isinstance(data.get(name), str)
    }
    return {**data, **short}


def _laid_over(shared: Any, own: Any) -> Any:
    """A mapping of the file over one that it inherits from, level by level."""
    if not isinstance(shared, dict) or not isinstance(own, dict):
        return own
    return {**shared, **{name: _laid_over(shared.get(name), value) for name, value in own.items()}}


FREE = "x-"  # begins the keys of the file that are the user's own, such as for values that others refer to
SHARD_OVERRIDES = ("consumer", "autoscaling", "resources", "workload", "network_policy", "leader")


class Fleet(Model):
    """Every shard fed by one topic: the whole of `shards.yaml`. Keys here that begin with `x-` are yours, for YAML's anchors."""

    fleet: ShortName
    project: ProjectId
    project_number: Annotated[
        ProjectNumber | None,
        Field(
            description="In quotes. Lets `render` grant Pub/Sub's service agent what dead-lettering and `topic.kms_key` need."
        ),
    ] = None
    namespace: Label = "default"
    create_namespace: Annotated[
        bool,
        Field(
            description="Render the namespace too, with the labels that enforce the restricted Pod Security Standard."
        ),
    ] = False
    sync_waves: Annotated[
        bool, Field(description="Annotate every object with Argo CD's sync wave, by the stages of `shardctl apply`.")
    ] = False
    image: Image
    topic: TopicSetting = Topic()
    labels: Annotated[dict[LabelKey, LabelValue], Field(description="Put on every rendered object.")] = {}
    routing: Routing = Routing()
    message_types: Annotated[dict[TypeName, MessageType], Field(min_length=1)]
    databases: DatabaseKinds = DEFAULT_KINDS
    cloud_sql: CloudSqlDefaults = CloudSqlDefaults()
    subscription: Subscriptions = Subscriptions()
    redis: Redis = Redis()
    consumer: Batching = Batching()
    autoscaling: AutoscalingSetting = Autoscaling()
    resources: Resources = Resources()
    probes: Probes = Probes()
    workload: WorkloadSetting = Workload()
    placement: Placement = Placement()
    secrets: SecretsSetting = Secrets()
    certificates: Annotated[
        dict[ObjectName, Annotated[tuple[SecretKey, ...], Field(min_length=1), BeforeValidator(as_tuple)]],
        Field(
            description="Secrets with certificates and keys for TLS, by name, each with the keys to mount into every consumer: "
            "`/var/run/secrets/shardctl/NAME/KEY` is what a URL names."
        ),
    ] = {}
    network_policy: Annotated[
        NetworkPolicy | None,
        Field(description="Rendered when given, if only as `{}`; without it nothing is restricted."),
    ] = None
    resource_quota: Annotated[
        ResourceQuota | None,
        Field(description="Rendered when given, if only as `{}`; it applies to the whole namespace."),
    ] = None
    monitoring: MonitoringSetting = Monitoring()
    tracing: Annotated[
        Tracing | None, Field(description="Spans for the writes that producers trace; off when left out.")
    ] = None
    traffic: TrafficSetting = Traffic()
    gateway: Annotated[Gateway | None, Field(description="The HTTP API that accepts writes. Rendered when given.")] = (
        None
    )
    relay: Annotated[
        Relay | None, Field(description="What publishes an application's outbox. Rendered when given.")
    ] = None
    operator: Annotated[
        Operator | None,
        Field(description="Who runs commands in the cluster, by `shardctl job`. Rendered when given, if only as `{}`."),
    ] = None
    delivery: DeliverySetting = Delivery()
    leader: LeaderSetting = Leader()
    provisioner: Annotated[
        Literal["config-connector", "terraform", "gcloud", "api"],
        Field(
            description="What makes topics, subscriptions, accounts, grants, schedules, alert policies and SQL instances: "
            "Config Connector's objects among the manifests; `render --format terraform`; `render --format gcloud`; or `shardctl "
            "provision`, which makes topics and subscriptions alone."
        ),
    ] = "config-connector"
    schedules: Annotated[
        tuple[Schedule, ...],
        BeforeValidator(as_tuple),
        Field(description="Writes that Cloud Scheduler publishes into the fleet."),
    ] = ()
    local: Local = Local()
    shards: Annotated[tuple[Shard, ...], Field(min_length=1), BeforeValidator(as_tuple)]

    @model_validator(mode="after")
    def _a_namespace_of_its_own(self) -> Self:
        if self.create_namespace and self.namespace == "default":
            raise ValueError(
                "create_namespace would put the restricted pod-security labels on the namespace default, which others share; "
                "give `namespace` a name of the fleet's own"
            )
        return self

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
    def _lay_shards_over_the_fleet(cls, data: Any) -> Any:
        """Merge a shard's own settings into the fleet's, so that a shard names only what differs."""
        if not isinstance(data, dict):
            return data
        data = {name: value for name, value in data.items() if not str(name).startswith(FREE)}
        if not isinstance(data.get("shards"), list):
            return data
        data = _with_kinds(data)

        def inherit(shard: Any) -> Any:
            if not isinstance(shard, dict):
                return shard
            shard = _with_kinds(shard)
            merged = {
                # A policy's ports and addresses are one value: the addresses of others don't belong to a shard's own ports.
                name: {**data[name], **shard[name]} if name == "network_policy" else _laid_over(data[name], shard[name])
                for name in SHARD_OVERRIDES
                if isinstance(shard.get(name), dict) and isinstance(data.get(name), dict)
            }
            database = shard.get("database")
            if isinstance(database, dict) and isinstance(database.get("cloud_sql"), dict):
                cloud_sql = _laid_over(data.get("cloud_sql"), database["cloud_sql"])
                merged["database"] = {**database, "cloud_sql": cloud_sql}
            return {**shard, **merged}

        return {**data, "shards": [inherit(shard) for shard in data["shards"]]}

    @field_validator("shards")
    @classmethod
    def _shards_inherit(cls, shards: tuple[Shard, ...], info: ValidationInfo) -> tuple[Shard, ...]:
        """Give each shard the fleet's settings that it leaves out. A setting with a fault of its own isn't there."""
        settings = {name: info.data[name] for name in SHARD_OVERRIDES if name in info.data}
        return tuple(
            shard.model_copy(update={name: value for name, value in settings.items() if getattr(shard, name) is None})
            for shard in shards
        )

    def emitted_by(self, shard: Shard) -> dict[str, MessageType]:
        """The types that the shard's sinks emit. Its consumers relay them."""
        kinds = [kind for name, kind in self.message_types.items() if shard.takes(name)]
        return {name: self.message_types[name] for kind in kinds for name in kind.emits}

    def new_shard(self, name: str, like: Shard) -> Shard:
        """A shard without slots that takes another's message types; its other settings are the fleet's."""
        settings: dict[str, Any] = {setting: getattr(self, setting) for setting in SHARD_OVERRIDES}
        settings |= {"name": name, "slots": SlotSet(), "types": like.types, "except_types": like.except_types}
        return Shard.model_construct(**settings)

    @property
    def rebalancing(self) -> bool:
        """Whether slots are moving: some shard has generations that may still own slots that another shard has received."""
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
        names = [shard.name for shard in self.shards]
        raise UsageError(
            f"no shard {name!r} in fleet {self.fleet}.{suggestion(name, names)} Shards: {', '.join(names)}."
        )


def json_schema() -> dict[str, Any]:
    """JSON Schema of `shards.yaml`, draft 2020-12. Only `load` checks rules that span several fields."""
    schema = _closed(Fleet.model_json_schema(schema_generator=_Schema))
    return {
        **schema,
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "shards.yaml of shardctl",
        "patternProperties": {f"^{FREE}": True},
    }


class _Schema(GenerateJsonSchema):
    def encode_default(self, dft: Any) -> Any:
        """Durations in this file's form, not in that of ISO 8601."""
        return written_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


def _closed(schema: Any) -> Any:
    """Pydantic leaves mappings open to keys that match no pattern, and `load` refuses them."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "patternProperties" in schema else {}
    return {name: _closed(part) for name, part in schema.items()} | closed
