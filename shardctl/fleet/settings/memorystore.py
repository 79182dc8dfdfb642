"""`redis.memorystore` of `shards.yaml`: an instance of Memorystore for Redis that is made for the fleet."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shardctl.fleet.model import Model
from shardctl.fleet.scalars import Network, Region, Text


class Memorystore(Model):
    """A Redis that is made, and never deleted. Its URL, with the AUTH string, still comes from the Secret."""

    name: Annotated[
        Annotated[str, Text(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "an instance's id", 40)] | None,
        Field(description="By default `FLEET-redis`."),
    ] = None
    region: Region
    memory_gb: Annotated[int, Field(ge=1, le=300)] = 1
    tier: Annotated[
        Literal["standard", "basic"], Field(description="`standard` has a replica in another zone that takes over.")
    ] = "standard"
    version: Annotated[str, Text(r"REDIS_[0-9]+_[0-9X]+", "a version of Memorystore, such as REDIS_7_2", 20)] = (
        "REDIS_7_2"
    )
    tls: Annotated[
        bool, Field(description="Its authority's certificate is key `ca.crt` of the Secret `FLEET-redis-ca`.")
    ] = True
    auth: Annotated[bool, Field(description="Clients need the AUTH string.")] = True
    network: Annotated[Network | None, Field(description="By default the project's network `default`.")] = None
    connect: Literal["direct-peering", "private-service-access"] = "direct-peering"
