"""The URL of Redis, of which everything but the place may change while the process runs.

    redis://user:password@redis.example.com:6379/0
    rediss://user:password@redis.example.com:6379/0?ssl_ca_certs=/path/ca.crt
    rediss://user:password@/?ssl_ca_certs=/path/ca.crt                          a cluster, whose nodes the configuration names
    redis://user:password@/0?sentinel_username=user&sentinel_password=password  Sentinels, likewise

Passwords stand in it, so no error repeats any of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import Connection, parse_url
from redis.exceptions import RedisError

from shardctl.errors import UsageError
from shardctl.fleet.shardconfig import ShardConfig

Login = tuple[str | None, str | None]  # user and password
Kind = Literal[
    "server", "cluster", "sentinel"
]  # who says where the server is: the URL, the cluster's nodes, or Sentinels

EXAMPLE = "redis://:password@host:6379/0"
EXAMPLE_WITHOUT_HOST = "redis://:password@/0"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    options: Mapping[str, Any]  # of a connection, without any login
    login: Login
    sentinel_login: Login


def kind_of(config: ShardConfig) -> Kind:
    if config.redis_cluster:
        return "cluster"
    return "sentinel" if config.redis_sentinel else "server"


def parse(text: str, kind: Kind = "server") -> RedisUrl:
    """Raises UsageError."""
    try:
        options: dict[str, Any] = dict(parse_url(text))
    except ValueError:
        example = EXAMPLE if kind == "server" else EXAMPLE_WITHOUT_HOST
        raise UsageError(f"REDIS_URL isn't a Redis URL such as {example}") from None
    login = options.pop("username", None), options.pop("password", None)
    sentinel_login = options.pop("sentinel_username", None), options.pop("sentinel_password", None)
    if kind != "server" and not {"host", "port", "path"}.isdisjoint(options):
        raise UsageError(
            f"REDIS_URL names a server, and shards.yaml names the nodes, in `redis.{kind}`. Leave the host out: "
            f"{EXAMPLE_WITHOUT_HOST}"
        )
    if kind == "cluster" and options.get("db"):
        raise UsageError(
            "REDIS_URL names a database by its number, and a Redis Cluster has number 0 alone: leave it out"
        )
    if kind != "sentinel" and any(sentinel_login):
        raise UsageError("REDIS_URL has a login for Sentinels, and shards.yaml has no `redis.sentinel`")
    _check_parameters(options)
    return RedisUrl(options, login, sentinel_login)


def _check_parameters(options: Mapping[str, Any]) -> None:
    """Make a connection, without opening it: otherwise the first batch would meet what is wrong."""
    try:
        ConnectionPool(**{"connection_class": Connection, **options}).make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RedisError):
        raise UsageError(
            "REDIS_URL has a parameter after its ? that redis-py doesn't know, or not with this value: see docs/tls.md"
        ) from None
