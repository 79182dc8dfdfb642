"""Which server to connect to: in a Redis Cluster the one that owns this shard's keys, behind Sentinels the primary.

All keys of a shard share a hash tag, `{fleet:shard}`, so all of them are in one hash slot of a cluster, on one server at a time.
A consumer therefore needs no client that follows each key: its connections go to that server, and a script may name several keys.

Each new connection asks a node where that is. A server that was demoted, or that gave the hash slot away, answers READONLY or
MOVED; the client closes the connection, and the next one asks again. A node that doesn't answer, or whose answer led nowhere, is
the last to be asked next time: it may be cut off, and know only how things were.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from consumer.redis.certificates import TlsConnection
from shardctl.fleet.settings.redis import host_and_port
from shardctl.fleet.shardconfig import ShardConfig

Node = tuple[str, int]  # host and port
UNNAMED = {"", "?"}  # what a node of a cluster says where it doesn't know by which name it is reached: as it was


class Question(Protocol):
    """What a node is asked. `str` of one says what a node was asked for."""

    async def __call__(self, client: Redis) -> Node | None:
        """Where the server is, as the node at the other end of `client` knows; None if it knows none. Raises RedisError."""
        ...


class OwnerOf:
    """Asks a node of a cluster who owns the hash slot of `key`."""

    def __init__(self, key: str) -> None:
        self._slot = key_slot(key.encode())

    def __str__(self) -> str:
        return f"owner of hash slot {self._slot}"

    async def __call__(self, client: Redis) -> Node | None:
        for first, last, owner, *_replicas in await client.execute_command("CLUSTER SLOTS"):  # type: ignore[no-untyped-call]
            if first <= self._slot <= last:
                return _text(owner[0]), int(owner[1])
        return None


class PrimaryNamed:
    """Asks a Sentinel for the primary of that name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return f"primary named {self._name!r}"

    async def __call__(self, client: Redis) -> Node | None:
        place = await client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self._name)  # type: ignore[no-untyped-call]
        return (_text(place[0]), int(place[1])) if place else None


@dataclass(frozen=True, slots=True)
class Directory:
    """The nodes that know which server to use, and what they are asked."""

    nodes: tuple[Node, ...]
    question: Question
    beside: bool  # the nodes are no servers themselves, and have a login of their own


def directory_of(config: ShardConfig) -> Directory | None:
    """None where the URL itself names the server."""
    if config.redis_cluster:
        nodes = tuple(map(host_and_port, config.redis_cluster))
        return Directory(nodes, OwnerOf(config.redis_prefix), beside=False)
    if config.redis_sentinel:
        nodes = tuple(map(host_and_port, config.redis_sentinel.nodes))
        return Directory(nodes, PrimaryNamed(config.redis_sentinel.master), beside=True)
    return None


class Discovery:
    """Answers for all connections of a client, within `timeout_seconds`."""

    def __init__(
        self,
        directory: Directory,
        open_client: Callable[[Node], AbstractAsyncContextManager[Redis]],
        timeout_seconds: float,
    ) -> None:
        self._nodes, self._question = deque(directory.nodes), directory.question
        self._open_client, self._timeout_seconds = open_client, timeout_seconds

    async def find(self) -> tuple[Node, Node]:
        """The server, and the node that named it. Raises RedisError when no node could in that time."""
        faults: list[str] = []
        try:
            async with asyncio.timeout(self._timeout_seconds):
                for _ in range(len(self._nodes)):
                    node = self._nodes[0]
                    try:
                        return await self._ask(node), node
                    except (RedisError, OSError) as error:
                        faults.append(str(error))
                    self.doubt(node)
        except TimeoutError:
            self.doubt(node)
            faults.append(f"{_shown(node)} didn't answer in {self._timeout_seconds:g} s")
            raise RedisTimeoutError("; ".join(faults)) from None
        raise RedisConnectionError("; ".join(faults))

    def doubt(self, node: Node) -> None:
        """Ask another node first from now on, if `node` would be the next."""
        if self._nodes[0] == node:
            self._nodes.rotate(-1)

    async def _ask(self, node: Node) -> Node:
        async with self._open_client(node) as client:
            try:
                place = await self._question(client)
            except RedisError as error:
                raise RedisConnectionError(f"{_shown(node)}: {error}") from error
        if place is None:
            raise RedisConnectionError(f"{_shown(node)} knows no {self._question}")
        host, port = place
        return (node[0] if host in UNNAMED else host), port


class DiscoveredConnection(Connection):
    """Goes where its pool's discovery says at that moment."""

    def __init__(self, *, discovery: Discovery, **options: Any) -> None:
        super().__init__(**options)
        self._discovery = discovery
        self._named_by: Node | None = None

    async def _connect(self) -> None:
        (self.host, self.port), self._named_by = await self._discovery.find()
        await super()._connect()  # type: ignore[no-untyped-call]

    async def disconnect(self, *arguments: Any, **options: Any) -> None:
        """Also after each error, so that an answer that led to a wrong server isn't taken from the same node again."""
        if self._named_by is not None:
            self._discovery.doubt(self._named_by)
        await super().disconnect(*arguments, **options)


class DiscoveredTlsConnection(DiscoveredConnection, TlsConnection):
    """The same over TLS."""


def _shown(node: Node) -> str:
    host, port = node
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
