"""The fleet's instance of Memorystore: its name, its port, and the Secret that holds its authority's certificate. Pure."""

from __future__ import annotations

from shardctl.fleet.settings.secrets import SecretRef
from shardctl.fleet.spec import Fleet

PORT, TLS_PORT = 6379, 6378


def name_of(fleet: Fleet) -> str:
    own = fleet.redis.memorystore and fleet.redis.memorystore.name
    return own or f"{fleet.fleet}-redis"


def port_of(fleet: Fleet) -> int:
    """Where the fleet's Redis listens, as far as the file says."""
    memorystore = fleet.redis.memorystore
    return TLS_PORT if memorystore and memorystore.tls else PORT


def authority(fleet: Fleet) -> SecretRef | None:
    """The Secret that every consumer mounts, for the URL to name; None without TLS of Memorystore's."""
    memorystore = fleet.redis.memorystore
    if not memorystore or not memorystore.tls:
        return None
    return SecretRef.model_construct(name=f"{fleet.fleet}-redis-ca", key="ca.crt")
