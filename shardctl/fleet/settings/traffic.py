"""`traffic` of `shards.yaml`: how synchronous HTTP requests find the pods of their shard."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from shardctl.fleet.model import Model, OrJust
from shardctl.fleet.scalars import Between, Label, ObjectName, Port, Text, as_tuple

Form = Literal["none", "services", "session-affinity", "istio", "kong", "gateway-api"]

# Kong's annotations carry the name in lower case, and a name in lower case means the same to all the others.
HeaderName = Annotated[
    str, Text(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", "a header's name: lower-case letters, digits and '-'", 60)
]
Host = Annotated[
    str,
    Text(
        r"(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+",
        "a host name such as api.example.com",
        253,
    ),
]
PathPrefix = Annotated[str, Text(r"/[-A-Za-z0-9/_.]*", "a path that begins with '/'", 200)]
MeshGateway = Annotated[
    str, Text(r"mesh|([a-z0-9][-a-z0-9]*/)?[a-z0-9][-a-z0-9.]*", "an Istio gateway, namespace/name, or mesh", 253)
]


class GatewayRef(Model):
    """The Gateway of the Gateway API that the routes attach to."""

    name: ObjectName
    namespace: Label | None = None
    listener: Annotated[Label | None, Field(description="One listener of it; all when left out.")] = None


class Traffic(Model):
    form: Form = "none"
    app: Annotated[
        Label | None,
        Field(
            description="Whose pods: those labelled `app: <this>` and `shard: <the shard's name>`; the fleet's own "
            "consumers when left out."
        ),
    ] = None
    port: Annotated[Port, Field(description="The Services' port.")] = 80
    target_port: Annotated[Port, Field(description="The pods' port.")] = 8080
    slot_header: Annotated[
        HeaderName, Field(description="The request header that carries the slot, as the messages' attribute does.")
    ] = "x-shard-slot"
    type_header: Annotated[
        HeaderName, Field(description="The request header that carries the message type, where shards differ by it.")
    ] = "x-message-type"
    path_prefix: Annotated[PathPrefix, Field(description="Route these paths only.")] = "/"
    hosts: Annotated[
        tuple[Host, ...],
        Field(max_length=16, description="Route these hosts only; any when left out (for Istio, the mesh's own name)."),
        BeforeValidator(as_tuple),
    ] = ()
    gateway: Annotated[GatewayRef | None, Field(description="gateway-api: the Gateway to attach to.")] = None
    istio_gateways: Annotated[
        tuple[MeshGateway, ...], Field(min_length=1, max_length=16), BeforeValidator(as_tuple)
    ] = ("mesh",)
    ingress_class: Annotated[ObjectName, Field(description="kong: the class of the Ingresses.")] = "kong"
    affinity_timeout: Annotated[
        timedelta,
        Between("1s", "1d"),
        Field(description="session-affinity: how long a client that sends nothing keeps its pod."),
    ] = timedelta(hours=1)

    @model_validator(mode="after")
    def _fits_its_form(self) -> Self:
        if self.form == "gateway-api" and self.gateway is None:
            raise ValueError("the form gateway-api needs a gateway: {name: …}, to which its routes attach")
        if self.slot_header == self.type_header:
            raise ValueError("slot_header and type_header are the same header")
        if set(self.istio_gateways) != {"mesh"} and not self.hosts:
            raise ValueError("istio_gateways other than mesh need hosts, for which they accept requests")
        return self


TrafficSetting = Annotated[Traffic, OrJust("form", get_args(Form))]
