"""Redis as one server, as a cluster and behind Sentinels, where consumers have the rights that docs/redis.md gives them."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from patience import PATIENCE_SECONDS
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from consumer.redis.client import connect
from consumer.redis.discovery import Directory, Node, OwnerOf, PrimaryNamed
from consumer.redis.url import parse
from shardctl.fleet.settings.redis import Sentinel
from shardctl.local.servers import RedisServer
from shardctl.local.servers.account import temporary_folder, unprivileged
from shardctl.local.servers.process import HOST, Server, free_port, wait_until
from shardctl.local.servers.redis import ADMINISTRATOR

DOC = Path(__file__).parents[1] / "docs/redis.md"
USER = "orders-consumer"  # as the page names it
MASTER = "mymaster"
FOLLOWS = (
    "repl-diskless-sync yes",
    "repl-diskless-sync-delay 0",
    "repl-diskless-load swapdb",
    "repl-ping-replica-period 1",
)


def rights(kind: str, fleet: str) -> str:
    """What the page gives the consumer's user on a server of that kind, for the keys of `fleet`, or on a Sentinel."""
    text = DOC.read_text()
    servers, sentinels = re.findall(rf"^ACL SETUSER {USER} on '>PASSWORD' (.*)$", text, re.MULTILINE)
    if kind == "sentinel":
        return sentinels
    more = re.findall(r"^In a cluster add `(.*?)`", text, re.MULTILINE) if kind == "cluster" else []
    return " ".join((servers.replace("{orders:", f"{{{fleet}:").replace("'", ""), *more))


class Logins:
    """The passwords that all servers of a place share."""

    def __init__(self) -> None:
        self.consumer, self.administrator = secrets.token_hex(16), secrets.token_hex(16)

    def server(self, folder: Path, fleet: str, *settings: str, kind: str = "server") -> RedisServer:
        """One server more, not started."""
        user = f"user {USER} on >{self.consumer} {rights(kind, fleet)}"
        follows = (f"masteruser {ADMINISTRATOR}", f"masterauth {self.administrator}", *FOLLOWS)
        server = RedisServer(folder, settings=(user, *follows, *settings))
        server._admin_password = self.administrator
        return server


def administer(server: Server, password: str) -> Redis:
    return Redis(host=HOST, port=server.port, username=ADMINISTRATOR, password=password, decode_responses=True)


class Place:
    """What a consumer of fleet `fleet` reaches by `url` and the nodes of its configuration."""

    def __init__(self, kind, logins, servers, directory=None, sentinels=()):
        self.kind, self.logins, self.servers, self.directory, self.sentinels = (
            kind,
            logins,
            servers,
            directory,
            sentinels,
        )

    @property
    def url(self) -> str:
        return self.url_of(USER, self.logins.consumer)

    def url_of(self, user: str, password: str) -> str:
        if self.kind == "server":
            return f"redis://{user}:{password}@{HOST}:{self.servers[0].port}/0"
        login = f"?sentinel_username={user}&sentinel_password={password}" if self.kind == "sentinel" else ""
        return f"redis://{user}:{password}@/0{login}"

    def client(self, timeout_seconds: float = PATIENCE_SECONDS) -> AsyncRedis:
        """As a consumer has it."""
        return connect(parse(self.url, self.kind), timeout_seconds, self.directory)

    def administrator(self) -> AsyncRedis:
        """The same way, with all rights."""
        url = self.url_of(ADMINISTRATOR, self.logins.administrator)
        return connect(parse(url, self.kind), PATIENCE_SECONDS, self.directory)

    def administrators(self) -> Iterator[Redis]:
        """An administrator's client of each process that runs."""
        for server in (*self.servers, *self.sentinels):
            if server.running:
                with administer(server, self.logins.administrator) as client:
                    yield client

    def configuration(self) -> dict[str, Any]:
        """What the consumer's configuration says of it."""
        nodes = tuple(f"{host}:{port}" for host, port in self.directory.nodes) if self.directory else ()
        if self.kind == "cluster":
            return {"redis_cluster": nodes}
        return {"redis_sentinel": Sentinel(master=MASTER, nodes=nodes)} if self.kind == "sentinel" else {}

    def primary(self) -> RedisServer:
        """The server that owns the fleet's keys, as that server itself says."""
        (server,) = self._primaries()
        return server

    def has_primary(self) -> bool:
        return len(self._primaries()) == 1

    def follows(self, server: RedisServer, primary: RedisServer) -> bool:
        with administer(server, self.logins.administrator) as client:
            replication = client.info("replication")
        return replication["role"] == "slave" and replication["master_port"] == primary.port

    def _primaries(self) -> list[RedisServer]:
        primaries = []
        for server in filter(lambda server: server.running, self.servers):
            with administer(server, self.logins.administrator) as client:
                if client.execute_command("ROLE")[0] == "master" and self._owns(client):
                    primaries.append(server)
        return primaries

    def _owns(self, client: Redis) -> bool:
        if self.kind != "cluster":
            return True
        me = client.execute_command("CLUSTER MYID")
        asked = self.directory.question._slot
        return any(
            first <= asked <= last and owner[2] == me
            for first, last, owner, *_ in client.execute_command("CLUSTER SLOTS")
        )

    def empty(self) -> None:
        for client in self.administrators():
            if client.execute_command("ROLE")[0] == "master":
                client.flushall()
            client.acl_log_reset()

    def refusals(self) -> list[str]:
        """What the consumer's user tried and had no right to."""
        return [
            f"{entry['reason']} {entry['object']}" for client in self.administrators() for entry in client.acl_log()
        ]


@contextmanager
def one_server(folder: Path, prefix: str) -> Iterator[Place]:
    logins = Logins()
    with logins.server(folder / "one", prefix.partition(":")[0]) as server:
        yield Place("server", logins, [server])


@contextmanager
def own_folder() -> Iterator[Path]:
    """One that the servers' account may write to."""
    folder = temporary_folder(unprivileged(), "shardctl-redis-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def cluster(folder: Path, prefix: str, *, replica: bool = False, node_timeout_ms: int = 15_000) -> Iterator[Place]:
    """Three servers, each with a third of the hash slots; with `replica` a fourth, which follows the owner of `prefix`."""
    logins, size = Logins(), 3 + replica
    with ExitStack() as closing:
        servers = []
        for number in range(size):
            own = closing.enter_context(own_folder())
            settings = (
                "cluster-enabled yes",
                f"cluster-port {free_port()}",
                f"cluster-node-timeout {node_timeout_ms}",
                "cluster-replica-validity-factor 0",
                f"dir {own}",
            )
            server = logins.server(folder / f"node-{number}", prefix.partition(":")[0], *settings, kind="cluster")
            servers.append(closing.enter_context(server))
        clients = [closing.enter_context(administer(server, logins.administrator)) for server in servers]
        _form(clients, servers, key_slot(prefix.encode()))
        yield Place("cluster", logins, servers, Directory(_nodes(servers[:3]), OwnerOf(prefix), beside=False))


def _form(clients, servers, hash_slot):
    bounds = [REDIS_CLUSTER_HASH_SLOTS * number // 3 for number in range(4)]
    for client, first, end in zip(clients, bounds, bounds[1:], strict=False):
        client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
    _wait(lambda: _know_each_other(clients, servers), "the nodes know each other")
    if len(clients) > 3:
        owner = next(number for number in range(3) if bounds[number] <= hash_slot < bounds[number + 1])
        owner_id = clients[owner].execute_command("CLUSTER MYID")
        clients[3].execute_command("CLUSTER REPLICATE", owner_id)
        _wait(lambda: clients[3].info("replication")["master_link_status"] == "up", "the replica follows")
    _wait(lambda: all(_complete(client, len(clients)) for client in clients), "the cluster is complete")


def _know_each_other(clients, servers):
    """Else they are introduced, once more if need be: a handshake that takes longer than the node's time-out is forgotten."""
    known = [{node["node_id"] for node in client.execute_command("CLUSTER NODES").values()} for client in clients]
    missing = [
        (client, other, server)
        for client, its_known in zip(clients, known, strict=True)
        for other, server in zip(clients, servers, strict=True)
        if other.execute_command("CLUSTER MYID") not in its_known
    ]
    for client, other, server in missing:
        bus = other.config_get("cluster-port")["cluster-port"]
        client.execute_command("CLUSTER MEET", HOST, server.port, bus)
    return not missing


def _complete(client, size):
    info = client.execute_command("CLUSTER INFO")
    slots = client.execute_command("CLUSTER SLOTS")
    replicas = sum(len(row) - 3 for row in slots)
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == size and replicas == size - 3


@contextmanager
def sentinels(
    folder: Path,
    prefix: str,
    *,
    down_after_ms: int = 30_000,
    front: Callable[[int], AbstractContextManager[Node]] | None = None,
) -> Iterator[Place]:
    """A primary, its replica, and three Sentinels, of which two agree on a fail-over.

    With `front`, all of them are reached at the places that it makes before their ports, and the servers announce these.
    """
    logins, fleet = Logins(), prefix.partition(":")[0]
    with ExitStack() as closing:

        def started(server: RedisServer) -> RedisServer:
            return closing.enter_context(server)

        def place_of(server: Server) -> Node:
            return closing.enter_context(front(server.port)) if front else (HOST, server.port)

        servers = [started(logins.server(folder / name, fleet)) for name in ("primary", "replica")]
        places = list(map(place_of, servers))
        primary, replica = (closing.enter_context(administer(server, logins.administrator)) for server in servers)
        for client, (host, port) in zip((primary, replica), places, strict=True):
            client.config_set("replica-announce-ip", host, "replica-announce-port", port)
        replica.replicaof(*places[0])
        _wait(lambda: replica.info("replication")["master_link_status"] == "up", "the replica follows")
        watching = [
            started(SentinelServer(folder / f"sentinel-{number}", logins, places[0], down_after_ms))
            for number in range(3)
        ]
        for sentinel in watching:
            with administer(sentinel, logins.administrator) as client:
                _wait(lambda client=client: _sees_all(client), "the Sentinel knows the replica and the other Sentinels")
        directory = Directory(tuple(map(place_of, watching)), PrimaryNamed(MASTER), beside=True)
        yield Place("sentinel", logins, servers, directory, watching)


def _sees_all(client):
    state = client.execute_command("SENTINEL MASTER", MASTER)
    return (int(state["num-slaves"]), int(state["num-other-sentinels"])) == (1, 2)


class SentinelServer(RedisServer):
    """Watches a primary. It keeps what it learns in its own file."""

    program = "redis-sentinel"

    def __init__(self, data_dir: Path, logins: Logins, primary: Node, down_after_ms: int) -> None:
        super().__init__(data_dir)
        self._logins, self._primary, self._down_after_ms = logins, primary, down_after_ms
        self._admin_password = logins.administrator
        self._folder = temporary_folder(unprivileged(), "shardctl-sentinel-")

    def _command(self) -> list[str]:
        command = super()._command()
        file = self._folder / "sentinel.conf"
        if not file.exists():
            file.write_text(self._configuration())
            if account := unprivileged():
                shutil.chown(file, account.uid, account.gid)
        return [*command[:-1], str(file), "--sentinel"]

    def _input(self) -> str:
        return ""

    def _configuration(self) -> str:
        lines = (
            f"bind {HOST}",
            f"port {self.port}",
            f"dir {self._folder}",
            "user default off",
            f"user {ADMINISTRATOR} on >{self._logins.administrator} ~* &* +@all",
            f"user {USER} on >{self._logins.consumer} {rights('sentinel', 'any')}",
            f"sentinel sentinel-user {ADMINISTRATOR}",
            f"sentinel sentinel-pass {self._logins.administrator}",
            "sentinel resolve-hostnames yes",
            "sentinel announce-hostnames yes",
            "sentinel monitor {} {} {} 2".format(MASTER, *self._primary),
            f"sentinel auth-user {MASTER} {ADMINISTRATOR}",
            f"sentinel auth-pass {MASTER} {self._logins.administrator}",
            f"sentinel down-after-milliseconds {MASTER} {self._down_after_ms}",
            f"sentinel failover-timeout {MASTER} 5000",
        )
        return "".join(f"{line}\n" for line in lines)

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        shutil.rmtree(self._folder)


def _nodes(servers: list[Server]) -> tuple[tuple[str, int], ...]:
    return tuple((HOST, server.port) for server in servers)


def _wait(condition, what: str) -> None:
    assert wait_until(condition, timeout_seconds=PATIENCE_SECONDS), f"{what}: never came true"


KINDS = {"server": one_server, "cluster": cluster, "sentinel": sentinels}
