"""`redis` of `shards.yaml`: one server, a cluster, a primary that Sentinels watch, or an instance of Memorystore."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shardctl.fleet.model import Model
from shardctl.fleet.scalars import Text, as_tuple, shown
from shardctl.fleet.settings.memorystore import Memorystore
from shardctl.fleet.settings.secrets import SecretRef

_ENDPOINT = re.compile(r"(?:\[(?P<address>[^]]+)\]|(?P<name>[^]:]+)):(?P<port>[0-9]+)")


def host_and_port(endpoint: str) -> tuple[str, int]:
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        raise ValueError(f"{shown(endpoint)} isn't host:port")
    return match["address"] or match["name"], int(match["port"])


def _check_port(endpoint: str) -> str:
    if not 0 < host_and_port(endpoint)[1] < 65_536:
        raise ValueError(f"the port of {shown(endpoint)} isn't a number from 1 to 65535")
    return endpoint


Endpoint = Annotated[
    str,
    Text(
        r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?):[0-9]{1,5}",
        "host:port, such as redis-0.redis:6379 or [fd00::1]:6379",
        260,
    ),
    AfterValidator(_check_port),
]


def _each_once(nodes: tuple[str, ...]) -> tuple[str, ...]:
    for number, node in enumerate(nodes):
        if node in nodes[:number]:
            raise ValueError(f"{shown(node)} is named twice")
    return nodes


Nodes = Annotated[tuple[Endpoint, ...], Field(min_length=1, max_length=100), AfterValidator(_each_once)]


class Sentinel(Model):
    """A primary with its replicas, and the Sentinels that say which of the servers is the primary now."""

    master: Annotated[
        str,
        Text(r"[-._A-Za-z0-9]+", "a name of letters, digits and - . _, as `sentinel monitor` has it", 100),
        Field(description="The name by which the Sentinels know the primary."),
    ]
    nodes: Annotated[Nodes, BeforeValidator(as_tuple), Field(description="The Sentinels, each as host:port.")]


class Redis(Model):
    secret: Annotated[SecretRef | None, Field(description="Of the URL. By default key `url` of `FLEET-redis`.")] = None
    cluster: Annotated[
        Nodes | None,
        BeforeValidator(as_tuple),
        Field(
            description="A Redis Cluster: some of its nodes, each as host:port; they name the others. The URL has no host then."
        ),
    ] = None
    sentinel: Annotated[
        Sentinel | None, Field(description="Sentinels name the server to use. The URL has no host then.")
    ] = None
    memorystore: Annotated[
        Memorystore | None, Field(description="Makes the Redis, by what `provisioner` names; without it, it is there.")
    ] = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [name for name in ("cluster", "sentinel", "memorystore") if getattr(self, name)]
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(kinds)} exclude each other; keep the one that the fleet's Redis is")
        return self
