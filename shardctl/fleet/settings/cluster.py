"""How a fleet runs on its cluster: the settings of `shards.yaml` that only rendering reads."""

from __future__ import annotations

import re
from datetime import timedelta
from ipaddress import ip_network
from typing import Annotated, Literal, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from shardctl.fleet.model import Model, OrJust
from shardctl.fleet.scalars import Between, Label, LabelValue, ObjectName, Quantity, Text, as_tuple, shown

NodeLabelKey = Annotated[
    str,
    Text(
        r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?",
        "a node's label or taint key, such as cloud.google.com/gke-nodepool",
        317,
    ),
]


def _check_cidr(value: str) -> str:
    try:
        ip_network(value)
    except ValueError as error:
        raise ValueError(f"{shown(value)} isn't a range of addresses: {error}") from None
    return value


Cidr = Annotated[
    str,
    Text(r"[0-9a-f:.]+/[0-9]{1,3}", "a range of addresses such as 10.0.0.0/8 or fd00::/8", 50),
    AfterValidator(_check_cidr),
]


# --- pods -------------------------------------------------------------------------------------------------------------


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


class Storage(Model):
    """A disk for each pod of a StatefulSet, at /var/lib/shardctl."""

    size: Quantity
    storage_class: Annotated[ObjectName | None, Field(description="By default the cluster's own default.")] = None


class Workload(Model):
    kind: Annotated[
        Literal["deployment", "statefulset"],
        Field(description="A StatefulSet gives each replica a name, and a disk, that outlive its pods."),
    ] = "deployment"
    storage: Storage | None = None
    max_surge: Annotated[
        int, Field(ge=1, le=100, description="How many pods a Deployment's rollout adds before it takes any away.")
    ] = 1
    pre_stop: Annotated[
        timedelta,
        Between("0s", "300s"),
        Field(description="How long a pod runs on before SIGTERM: time for Services to stop sending it requests."),
    ] = timedelta()

    @model_validator(mode="after")
    def _storage_has_a_set(self) -> Self:
        if self.storage and self.kind != "statefulset":
            raise ValueError("storage needs kind: statefulset; a Deployment's pods have no disk of their own")
        return self


WorkloadSetting = Annotated[Workload, OrJust("kind", ("deployment", "statefulset"))]


class Toleration(Model):
    """One taint of nodes that the pods tolerate; every value of `key` when `value` is left out."""

    key: NodeLabelKey
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


Spread = Literal["prefer", "require"]


class Placement(Model):
    """On which nodes the pods run. With `require` a pod waits for a suitable node; with `prefer` it runs on another one."""

    hosts: Annotated[Spread, Field(description="A shard's replicas on different nodes.")] = "prefer"
    zones: Annotated[Spread, Field(description="A shard's replicas spread evenly over zones.")] = "prefer"
    node_selector: dict[NodeLabelKey, LabelValue] = {}
    tolerations: Annotated[tuple[Toleration, ...], BeforeValidator(as_tuple)] = ()
    priority_class: ObjectName | None = None


# --- how many ---------------------------------------------------------------------------------------------------------


class Keda(Model):
    """How KEDA watches the backlog; for `kind: keda`."""

    activation_backlog: Annotated[
        int, Field(ge=0, description="A shard at zero replicas wakes when its backlog is over this.")
    ] = 0
    polling: Annotated[timedelta, Between("5s", "10m")] = timedelta(seconds=30)
    cooldown: Annotated[
        timedelta, Between("0s", "24h"), Field(description="How long a shard stays up, without work, before zero.")
    ] = timedelta(minutes=5)


class Autoscaling(Model):
    kind: Annotated[
        Literal["hpa", "keda", "none"],
        Field(description="What sets the number of replicas; with `none` it is `min`, in the manifest itself."),
    ] = "hpa"
    min: Annotated[
        int,
        Field(ge=0, le=1_000, description="0 is for `kind: keda`, and for `kind: hpa` on Kubernetes 1.37 or newer."),
    ] = 2
    max: Annotated[int, Field(ge=1, le=1_000)] = 10
    cpu_percent: Annotated[int, Field(ge=1, le=100)] = 70
    backlog_per_replica: Annotated[int, Field(ge=1)] = 100
    keda: Keda = Keda()

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min > self.max and self.kind != "none":
            raise ValueError(f"min {self.min} exceeds max {self.max}")
        if self.min == 0 and self.kind == "none":
            raise ValueError(
                "min 0 needs kind: keda, or hpa on Kubernetes 1.37; nothing else wakes a shard without pods"
            )
        return self

    @property
    def most(self) -> int:
        """The maximum number of replicas, regardless of the number of slots."""
        return self.min if self.kind == "none" else self.max


AutoscalingSetting = Annotated[Autoscaling, OrJust("kind", ("hpa", "keda", "none"))]


# --- limits -----------------------------------------------------------------------------------------------------------


def _check_ports(value: object) -> int | str:
    bounds = [value] if type(value) is int else []
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,5}-[0-9]{1,5}", value):
        bounds = [int(bound) for bound in value.split("-")]
    if not bounds or not 0 < bounds[0] <= bounds[-1] < 65_536:
        raise ValueError(f"{shown(value)} isn't a port from 1 to 65535, or a range of ports such as 11000-13047")
    return cast("int | str", value)


Ports = Annotated[
    int | str,
    PlainValidator(_check_ports),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 65_535},
                {"type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,5}$"},
            ]
        }
    ),
]


class Reach(Model):
    """Ports that pods may connect to, at these addresses; anywhere when none are given."""

    ports: Annotated[tuple[Ports, ...], BeforeValidator(as_tuple)]
    cidrs: Annotated[tuple[Cidr, ...], BeforeValidator(as_tuple)] = ()


def _to(*ports: int | str) -> Reach:
    return Reach(ports=ports)


class PushedFrom(Model):
    """Who may connect to the port for pushes: these addresses, and pods of these namespaces; anybody when both are empty."""

    # Where Google's load balancers connect from.
    cidrs: Annotated[tuple[Cidr, ...], BeforeValidator(as_tuple)] = ("35.191.0.0/16", "130.211.0.0/22")
    namespaces: Annotated[
        tuple[Label, ...], BeforeValidator(as_tuple), Field(description="Such as an ingress controller's.")
    ] = ()


class NetworkPolicy(Model):
    """What a shard's pods may connect to, and who may connect to them. Nothing else passes."""

    database: Annotated[
        Reach | None,
        Field(description="By default ports 5432 and 3306 anywhere, or 3307 for an instance of Cloud SQL."),
    ] = None
    redis: Annotated[
        Reach | None,
        Field(
            description="By default, anywhere: port 6379, the ports of Memorystore, those of a cluster's nodes, or those of the "
            "Sentinels and 6379."
        ),
    ] = None
    google_apis: Reach = _to(443)
    kubernetes_api: Annotated[
        Reach,
        Field(
            description="The cluster's own API, which `leader: kubernetes` and `operator` need: its Service and its endpoints."
        ),
    ] = _to(443, 6443)
    dns: Reach = _to(53)
    backends: Annotated[
        Reach | None,
        Field(description="Where the shard's HTTP backends are; by default the ports of their URLs, anywhere."),
    ] = None
    also: Annotated[
        tuple[Reach, ...], BeforeValidator(as_tuple), Field(description="What sinks of your own connect to.")
    ] = ()
    push_from: Annotated[
        PushedFrom, Field(description="For `delivery: push`: the load balancer or ingress that connects.")
    ] = PushedFrom()
    from_namespaces: Annotated[
        tuple[Label, ...],
        BeforeValidator(as_tuple),
        Field(description="Whose pods may connect to port 8080: to scrape, or to send requests."),
    ] = ("gke-gmp-system", "gmp-system", "monitoring")


class ResourceQuota(Model):
    """A cap on the namespace: what the fleet needs at its largest, during a rollout, plus headroom."""

    headroom_percent: Annotated[int, Field(ge=0, le=1_000, description="For pods that aren't the fleet's.")] = 0
