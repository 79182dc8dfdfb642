"""Two real Redis servers behind one address that moves, while connections to the demoted primary live on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from urllib.parse import urlsplit

import pytest
from consumer_kit import raw
from redis.asyncio import Redis

from consumer.leader.election import Election, Times
from consumer.leader.leadership import Leadership
from consumer.leader.redis import RedisLease
from consumer.observability.metrics import Metrics
from consumer.redis import breaker
from consumer.redis.breaker import RedisBreaker
from consumer.redis.client import connect
from consumer.redis.lock import SlotLocks
from consumer.redis.ratelimit import RateLimit
from consumer.redis.seenfilter import SeenFilter
from consumer.redis.url import parse
from shardctl.local.servers import RedisServer

pytestmark = pytest.mark.slow

TRIES = 5  # after each of which Redis is left alone for a while


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


class Address:
    """A TCP forwarder: `target` is where the next connection goes. Those that are open stay where they are."""

    def __init__(self, target, password):
        self.target, self._password, self._writers = target, password, []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://:{self._password}@127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader, writer):
        there, to = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers += [writer, to]
        await asyncio.gather(_pipe(reader, to), _pipe(there, writer))


async def _pipe(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()


async def follow(replica, primary):
    """What `replica` is connected to copies the primary's keys from now on, and nothing goes to disk."""
    administrator = urlsplit(primary.admin_url)
    await replica.config_set("masteruser", administrator.username)
    await replica.config_set("masterauth", administrator.password)
    await replica.config_set("repl-diskless-load", "swapdb")
    async with Redis.from_url(primary.admin_url) as source:
        await source.config_set("repl-diskless-sync", "yes")
    await replica.replicaof("127.0.0.1", primary.port)


class Pair:
    """A primary and its replica, and the address of whichever is the primary."""

    def __init__(self, address, first, second):
        self.address, self._first, self._second = address, first, second

    async def fail_over(self):
        """The replica is promoted, the old primary follows it and keeps its clients, and the address moves."""
        async with Redis.from_url(self._first.admin_url) as old, Redis.from_url(self._second.admin_url) as new:
            await new.replicaof("NO", "ONE")
            await follow(old, self._second)
        self.address.target = self._second.port


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with (
        RedisServer(tmp_path_factory.mktemp("first")) as first,
        RedisServer(tmp_path_factory.mktemp("second")) as second,
    ):
        yield first, second


def play(servers, scenario):
    async def run():
        first, second = servers
        async with Redis.from_url(first.admin_url) as first_client, Redis.from_url(second.admin_url) as two:
            await first_client.replicaof("NO", "ONE")
            await first_client.flushall()
            await follow(two, first)
            await two.config_set("requirepass", first.password)
        async with Address(first.port, first.password) as address, connect(parse(address.url), 10.0) as redis:
            await scenario(Pair(address, first, second), redis)

    asyncio.run(run())


def test_a_leader_is_found_again(servers):
    """The leader is another, or the same; that nobody leads for ever is what must not be."""

    async def scenario(pair, redis):
        tries = 0

        class Counted(RedisLease):
            async def hold(self):
                nonlocal tries
                tries += 1
                return await super().hold()

        lease = Counted(redis, "f:s", "me", 60_000)
        leadership = Leadership(lease, Election(Times(60.0, 40.0, 0.01), time.monotonic()), time.monotonic)
        keeping = asyncio.create_task(leadership.keep())
        await leadership.won()
        await pair.fail_over()
        asked = tries
        while leadership.failing or tries < asked + 2:
            assert tries < asked + TRIES + 2
            await asyncio.sleep(0.01)
        assert leadership.leading
        async with Redis.from_url(pair.address.url) as new:
            assert await new.get("{f:s}:leader") == b"me"
        keeping.cancel()

    play(servers, scenario)


def _lock(redis, gate, clock, metrics):
    locks = SlotLocks(redis, gate, "f:s", 60_000, metrics)
    return lambda: locks.take([1]), lambda: locks.release([1])


def _pace(redis, gate, clock, metrics):
    limit = RateLimit(redis, gate, "f:s", 1_000, 1, clock, asyncio.Event())
    return lambda: limit.take(1), lambda: limit.give_back(1)


def _marks(redis, gate, clock, metrics):
    recent = SeenFilter(redis, gate, "f:s", clock)
    done = [raw("customer", b"{}", "c")]
    return lambda: recent.mark(done), lambda: recent.probably_done(done)


@pytest.mark.parametrize("use", [_lock, _pace, _marks], ids=["locks", "pace", "marks"])
def test_what_replicas_share_is_shared_again(servers, use):
    async def scenario(pair, redis):
        clock, metrics = Clock(), Metrics()
        gate = RedisBreaker(clock, metrics)
        calls = use(redis, gate, clock, metrics)
        # As many connections as there are batches at once: each of them lives on.
        await asyncio.gather(*(call() for _ in range(3) for call in calls))
        assert not gate.shut
        await pair.fail_over()
        for _ in range(TRIES):
            await asyncio.gather(*(call() for _ in range(3) for call in calls))
            clock.now += breaker.LAST_RETRY_SECONDS
        await calls[0]()
        assert not gate.shut
        async with Redis.from_url(pair.address.url) as new:
            assert await new.keys("{f:s}:*")

    play(servers, scenario)
