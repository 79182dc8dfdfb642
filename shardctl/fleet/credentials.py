"""Which Kubernetes Secrets a fleet's pods read, and which secrets of Secret Manager fill them. Pure; holds no value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from shardctl.fleet import backends, topology
from shardctl.fleet.settings.secrets import SecretRef
from shardctl.fleet.spec import Fleet, Shard
from shardctl.fleet.spec_errors import Fault

_SECRET_ID = re.compile(r"[-A-Za-z0-9_]{1,255}")  # as `scalars.SecretId` has it

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Credential:
    """One Secret and the secret that fills each of its keys. `shard` is None where more than one shard reads it."""

    name: str
    keys: tuple[tuple[str, str], ...]
    shard: Shard | None


def redis_secret(fleet: Fleet) -> SecretRef:
    """Where the Redis URL is kept: as the file says, or in `orders-redis`."""
    return fleet.redis.secret or SecretRef.model_construct(name=f"{fleet.fleet}-redis")


def credentials(fleet: Fleet) -> tuple[Credential, ...]:
    """Every Secret once, in the file's order, Redis's first."""
    keys: dict[str, dict[str, str]] = {}
    readers: dict[str, list[Shard | None]] = {}
    for _, ref, shard in _references(fleet):
        keys.setdefault(ref.name, {}).setdefault(ref.key, _remote(ref))
        if shard not in readers.setdefault(ref.name, []):
            readers[ref.name].append(shard)
    return tuple(
        Credential(name, tuple(remote_by_key.items()), readers[name][0] if len(readers[name]) == 1 else None)
        for name, remote_by_key in keys.items()
    )


def faults(fleet: Fleet) -> list[Fault]:
    """Why External Secrets couldn't fill the Secrets as the file names them."""
    if fleet.secrets.kind != "external-secrets":
        return []
    problems: list[Fault] = []
    filled: dict[tuple[str, str], str] = {}  # what fills each key of each Secret
    for path, ref, _ in _references(fleet):
        remote = _remote(ref)
        if not _SECRET_ID.fullmatch(remote):
            fix = "shorten its name." if path[0] == "message_types" else "name the secret's id there with `remote`."
            problems.append(Fault(path, f"Secret Manager has no id such as {remote!r}.", fix))
        if filled.setdefault((ref.name, ref.key), remote) != remote:
            problems.append(
                Fault(path, f"key {ref.key} of Secret {ref.name} is filled from {filled[ref.name, ref.key]} elsewhere.")
            )
        if any(name == ref.name and key != ref.key and filled[name, key] == remote for name, key in filled):
            problems.append(
                Fault(
                    path,
                    f"Secret {ref.name} has another key that is filled from {remote} too.",
                    "give each key a secret of its own with `remote`.",
                )
            )
    return problems


def _references(fleet: Fleet) -> Iterator[tuple[Path, SecretRef, Shard | None]]:
    yield ("redis", "secret"), redis_secret(fleet), None
    if fleet.gateway and fleet.gateway.auth.secret:
        yield ("gateway", "auth", "secret"), fleet.gateway.auth.secret, None
    if fleet.relay:
        yield ("relay", "database"), fleet.relay.database, None
    for number, shard in enumerate(fleet.shards):
        if database := topology.database_secret(fleet, shard):
            yield ("shards", number, "database"), database, shard
    for shard in fleet.shards:
        for name, backend in backends.of_shard(fleet, shard).items():
            for secret, keys in backend.secrets.items():
                for key in keys:
                    yield ("message_types", name, "http"), _file(secret, key), shard


def _file(secret: str, key: str) -> SecretRef:
    """A key that pods read as a file; in Secret Manager a secret of its own: key `token` of `erp-login` is `erp-login-token`."""
    return SecretRef.model_construct(name=secret, key=key, remote=f"{secret}-{key}".replace(".", "-"))


def _remote(ref: SecretRef) -> str:
    return ref.remote or ref.name
