"""Which server a client connects to, asked of real nodes and Sentinels of which some are gone, stand still or know too little."""

from __future__ import annotations

import asyncio
import functools
import threading

import pytest
import redis_kit
from patience import PATIENCE_SECONDS
from redis.exceptions import RedisError

from consumer.observability.metrics import Metrics
from consumer.process.credentials import Credentials
from consumer.process.settings import _parsed_redis, _parsed_sentinels
from consumer.redis.breaker import LAST_RETRY_SECONDS, RedisBreaker
from consumer.redis.client import connect
from consumer.redis.discovery import Directory, OwnerOf, PrimaryNamed
from consumer.redis.iam import IamLogins
from consumer.redis.lock import SlotLocks
from consumer.redis.url import parse
from shardctl.local.servers.process import HOST, free_port, wait_until

pytestmark = pytest.mark.slow

KEY = "{f:s}:x"
SEVERAL = pytest.mark.parametrize("made_place", ["cluster", "sentinel"], indirect=True)


def only(kind):
    return pytest.mark.parametrize("made_place", [kind], indirect=True)


def client_of(place, *nodes, timeout_seconds=PATIENCE_SECONDS):
    """A consumer's, whose configuration names `nodes`."""
    directory = Directory(nodes, place.directory.question, place.directory.beside)
    return connect(parse(place.url, place.kind), timeout_seconds, directory)


def places(servers):
    return [(HOST, server.port) for server in servers]


@SEVERAL
def test_a_node_that_is_gone_costs_nothing(place):
    async def run():
        async with client_of(place, (HOST, free_port()), *place.directory.nodes) as client:
            assert await client.set(KEY, "1")

    asyncio.run(run())


@SEVERAL
def test_a_node_that_stands_still_costs_its_time_out_once(place):
    """It is not asked again before all others were. Every node but one of the cluster's may be the one with the key."""
    asked = place.sentinels or [server for server in place.servers if server is not place.primary()]
    asked[0].pause()

    async def run():
        async with client_of(place, *places(asked), timeout_seconds=0.5) as client:
            with pytest.raises(RedisError, match=r"didn't answer in 0\.5 s"):
                await client.set(KEY, "1")
            faults = []
            for _ in range(20):  # the time-out is short for a machine that is busy
                await client.connection_pool.disconnect()
                try:
                    return await client.set(KEY, "1"), faults
                except RedisError as error:
                    faults.append(str(error))
        return False, faults

    try:
        reached, faults = asyncio.run(run())
        assert reached
        assert not any(str(asked[0].port) in fault for fault in faults)
    finally:
        asked[0].resume()


class Stale:
    """What the nodes answer where the first one, HOST, still names a server that is gone."""

    def __init__(self, port):
        self.gone, self.port = free_port(), port

    async def __call__(self, client):
        return HOST, self.gone if client.connection_pool.connection_kwargs["host"] == HOST else self.port


@only("server")
def test_a_node_whose_answer_led_nowhere_is_not_asked_again_first(place):
    port = place.servers[0].port
    directory = Directory(((HOST, port), ("localhost", port)), Stale(port), beside=False)

    async def run():
        async with connect(parse(place.url), PATIENCE_SECONDS, directory) as client:
            with pytest.raises(RedisError):
                await client.set(KEY, "1")
            assert await client.set(KEY, "1")

    asyncio.run(run())


@SEVERAL
def test_without_any_node_the_error_names_each(place):
    nodes = [(HOST, free_port()), (HOST, free_port())]

    async def run():
        async with client_of(place, *nodes) as client:
            with pytest.raises(RedisError) as refused:
                await client.get(KEY)
        assert all(f"{host}:{port}" in str(refused.value) for host, port in nodes)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("made_place", "directory", "says"),
    [
        pytest.param(
            "sentinel",
            lambda place: Directory(place.directory.nodes, PrimaryNamed("other"), beside=True),
            "knows no primary named 'other'",
            id="another name",
        ),
        pytest.param(
            "server",
            lambda place: Directory(tuple(places(place.servers)), OwnerOf("f:s"), beside=False),
            "cluster support disabled",
            id="no cluster",
        ),
    ],
    indirect=["made_place"],
)
def test_a_wrong_configuration_is_said(made_place, directory, says):
    """Not by `place`: a server that is no cluster's hasn't given the right to ask."""
    url = made_place.url_of(redis_kit.ADMINISTRATOR, made_place.logins.administrator)

    async def run():
        async with connect(parse(url, made_place.kind), PATIENCE_SECONDS, directory(made_place)) as client:
            with pytest.raises(RedisError, match=says):
                await client.get(KEY)

    asyncio.run(run())


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


class Replica:
    """A replica's locks, and a clock by which its breaker waits."""

    def __init__(self, place):
        self.client, self.clock, metrics = place.client(), Clock(), Metrics()
        self.gate = RedisBreaker(self.clock, metrics)
        self.locks = SlotLocks(self.client, self.gate, "f:s", 600_000, metrics)

    async def until_it_locks(self):
        """Every connection that it had led to the old server, and each must fail once."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                taken = await self.locks.take([7])
                await self.locks.release([7])
                if not self.gate.shut:
                    return taken
                self.clock.now += LAST_RETRY_SECONDS
                await asyncio.sleep(0.01)


@only("sentinel")
def test_after_a_fail_over_locks_are_on_the_new_primary(place):
    old = place.primary()
    (new,) = (server for server in place.servers if server is not old)

    async def run():
        replica = Replica(place)
        async with replica.client:
            await asyncio.gather(*(replica.locks.take([number]) for number in range(3)))
            with redis_kit.administer(place.sentinels[0], place.logins.administrator) as sentinel:
                sentinel.execute_command("SENTINEL FAILOVER", redis_kit.MASTER)
            assert wait_until(lambda: is_primary(place, new), timeout_seconds=PATIENCE_SECONDS)
            with redis_kit.administer(old, place.logins.administrator) as client:
                client.replicaof(HOST, new.port)  # as the Sentinels do some seconds later
            assert await replica.until_it_locks() == {7}
            assert await replica.locks.take([8]) == {8}
        with redis_kit.administer(new, place.logins.administrator) as client:
            assert client.exists("{f:s}:lock:g0:8")

    asyncio.run(run())


def is_primary(place, server):
    with redis_kit.administer(server, place.logins.administrator) as client:
        return client.execute_command("ROLE")[0] == "master"


@only("cluster")
def test_locks_follow_a_hash_slot_that_moves(place):
    """While it moves, the keys that aren't there yet can't be used, and batches go on without locks."""
    source = place.primary()
    target = next(server for server in place.servers if server is not source)
    hash_slot = place.directory.question._slot

    async def run(at_source, at_target):
        ids = [client.execute_command("CLUSTER MYID") for client in (at_source, at_target)]
        replica = Replica(place)
        async with replica.client:
            assert await replica.locks.take([1]) == {1}
            at_target.execute_command("CLUSTER SETSLOT", hash_slot, "IMPORTING", ids[0])
            at_source.execute_command("CLUSTER SETSLOT", hash_slot, "MIGRATING", ids[1])
            assert await replica.locks.take([2]) == {2}
            assert replica.gate.shut
            migrate(place, at_source, target, hash_slot)
            for client in (at_target, at_source):
                client.execute_command("CLUSTER SETSLOT", hash_slot, "NODE", ids[1])
            assert await replica.until_it_locks() == {7}
            assert place.primary() is target
            assert at_target.exists("{f:s}:lock:g0:1")

    password = place.logins.administrator
    with redis_kit.administer(source, password) as at_source, redis_kit.administer(target, password) as at_target:
        asyncio.run(run(at_source, at_target))


def migrate(place, at_source, target, hash_slot):
    while keys := at_source.execute_command("CLUSTER GETKEYSINSLOT", hash_slot, 100):
        login = ("AUTH2", redis_kit.ADMINISTRATOR, place.logins.administrator)
        at_source.execute_command("MIGRATE", HOST, target.port, "", 0, 60_000, *login, "KEYS", *keys)


@pytest.mark.parametrize("made_place", ["server", "cluster", "sentinel"], indirect=True)
def test_a_rotated_password_is_taken_for_new_connections_to_nodes_and_servers(place, tmp_path):
    file, old, new = tmp_path / "url", place.logins.consumer, "another-password"
    file.write_text(place.url)
    logins = [
        Credentials("REDIS_URL_FILE", file, functools.partial(parsed, place.kind))
        for parsed in (_parsed_redis, _parsed_sentinels)
    ]
    url = parse(place.url, place.kind)
    client = connect(url, PATIENCE_SECONDS, place.directory, logins=logins[0], sentinel_logins=logins[1])

    def change(*rules):
        for administrator in place.administrators():
            administrator.execute_command("ACL SETUSER", redis_kit.USER, *rules)
            administrator.client_kill_filter(user=redis_kit.USER)

    async def run():
        async with client:
            assert await client.set(KEY, "1")
            change(f">{new}", f"<{old}")
            with pytest.raises(RedisError):  # of the connection that was ended, or of a new one
                await client.get(KEY)
            with pytest.raises(RedisError, match="invalid username-password pair"):
                await client.get(KEY)
            file.write_text(place.url_of(redis_kit.USER, new))
            assert await client.get(KEY) == b"1"

    try:
        asyncio.run(run())
    finally:
        change(f">{old}", f"<{new}")
        place.empty()  # of the refused logins


class Tokens:
    """Google's credentials: the first token is no longer valid, the second one is the server's password."""

    def __init__(self, password):
        self.token, self.valid, self._password = "ended", True, password

    def refresh(self, _request):
        self.token, self.valid = self._password, True


@only("server")
def test_a_token_of_iam_is_the_password_of_each_new_connection(made_place):
    server = made_place.servers[0]
    tokens = Tokens(server.password)

    async def run():
        url = parse(f"redis://{HOST}:{server.port}/0")
        async with connect(url, PATIENCE_SECONDS, logins=IamLogins(tokens)) as client:
            with pytest.raises(RedisError, match="invalid username-password pair"):
                await client.get(KEY)
            tokens.valid = False
            assert await client.set(KEY, "1")

    asyncio.run(run())


@only("server")
def test_a_login_that_never_comes_ends_in_time(made_place):
    server = made_place.servers[0]
    ending = threading.Event()

    async def run():
        url = parse(f"redis://{HOST}:{server.port}/0")
        try:
            async with connect(url, 0.2, logins=lambda: ending.wait() and (None, None)) as client:
                with pytest.raises(RedisError, match=r"no login within 0\.2 s"):
                    await client.get(KEY)
        finally:
            ending.set()

    asyncio.run(run())
