"""The fleet's instance of Memorystore: its name, its port, and the Secret that holds its authority's certificate. Pure."""

from __future__ import annotations

from shardctl.fleet.settings.memorystore import Memorystore
from shardctl.fleet.settings.secrets import SecretRef
from shardctl.fleet.spec import Fleet

PORT, TLS_PORT = 6379, 6378  # Valkey listens on the first of them alone, with TLS or without
VALKEY_PORTS = (PORT, "11000-13047")  # of its endpoints of Private Service Connect: all must be open


def name_of(fleet: Fleet) -> str:
    own = fleet.redis.memorystore and fleet.redis.memorystore.name
    return own or f"{fleet.fleet}-redis"


def ports_of(memorystore: Memorystore) -> tuple[int | str, ...]:
    """What a NetworkPolicy must open."""
    if memorystore.engine == "valkey":
        return VALKEY_PORTS
    return (TLS_PORT if memorystore.tls else PORT,)


def only_instance(fleet: Fleet, memorystore: Memorystore) -> str:
    """The condition, as IAM writes it, that keeps a grant on the project to this instance."""
    return f"resource.name == 'projects/{fleet.project}/locations/{memorystore.region}/instances/{name_of(fleet)}'"


def authority(fleet: Fleet) -> SecretRef | None:
    """The Secret that every consumer mounts, for the URL to name; None without TLS of Memorystore's."""
    memorystore = fleet.redis.memorystore
    if not memorystore or not memorystore.tls:
        return None
    return SecretRef.model_construct(name=f"{fleet.fleet}-redis-ca", key="ca.crt")
