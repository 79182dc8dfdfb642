"""`redis.memorystore` of `shards.yaml`: an instance of Memorystore, for Redis or for Valkey, that is made for the fleet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shardctl.fleet.model import Model
from shardctl.fleet.scalars import Network, Region, Text, shown

Engine = Literal["redis", "valkey"]
_DEFAULT_VERSIONS: Mapping[Engine, str] = {"redis": "REDIS_7_2", "valkey": "VALKEY_8_0"}
_OTHERS: Mapping[Engine, frozenset[str]] = {  # settings of the other engine
    "redis": frozenset({"node_type"}),
    "valkey": frozenset({"memory_gb", "connect"}),
}


class Memorystore(Model):
    """A Redis that is made, and never deleted. Its URL still comes from the Secret."""

    engine: Annotated[Engine, Field(description="Memorystore for Redis, or Memorystore for Valkey.")] = "redis"
    name: Annotated[
        Annotated[str, Text(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "an instance's id", 40)] | None,
        Field(description="By default `FLEET-redis`."),
    ] = None
    region: Region
    memory_gb: Annotated[int, Field(ge=1, le=300, description="For `engine: redis`.")] = 1
    node_type: Annotated[
        Literal["shared-core-nano", "standard-small", "highmem-medium", "highmem-xlarge"],
        Field(description="For `engine: valkey`."),
    ] = "standard-small"
    tier: Annotated[
        Literal["standard", "basic"], Field(description="`standard` has a replica in another zone that takes over.")
    ] = "standard"
    version: Annotated[
        Annotated[str, Text(r"(REDIS|VALKEY)_[0-9]+_[0-9X]+", "a version of Memorystore, such as REDIS_7_2", 20)]
        | None,
        Field(description="By default REDIS_7_2 or VALKEY_8_0."),
    ] = None
    tls: Annotated[
        bool, Field(description="Its authority's certificate is key `ca.crt` of the Secret `FLEET-redis-ca`.")
    ] = True
    auth: Annotated[
        bool,
        Field(
            description="Clients must log in: with the AUTH string in the URL, or to Valkey by IAM, as their service account."
        ),
    ] = True
    network: Annotated[Network | None, Field(description="By default the project's network `default`.")] = None
    connect: Annotated[
        Literal["direct-peering", "private-service-access"],
        Field(description="For `engine: redis`. Valkey is always reached by Private Service Connect."),
    ] = "direct-peering"

    @property
    def engine_version(self) -> str:
        return self.version or _DEFAULT_VERSIONS[self.engine]

    @property
    def iam(self) -> bool:
        """Whether clients log in by IAM."""
        return self.engine == "valkey" and self.auth

    @model_validator(mode="after")
    def _settings_are_the_engines(self) -> Self:
        if others := sorted(self.model_fields_set & _OTHERS[self.engine]):
            raise ValueError(f"{' and '.join(others)}: engine {self.engine} has no such setting; leave it out")
        if not self.engine_version.startswith(f"{self.engine.upper()}_"):
            raise ValueError(f"{shown(self.version)} is no version of engine {self.engine}")
        return self
