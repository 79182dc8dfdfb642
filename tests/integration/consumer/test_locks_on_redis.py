"""Slot locks on a real Redis that is slow, dies, refuses and returns."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from consumer.lock import SlotLocks
from consumer.metrics import Metrics
from consumer.redisgate import RedisGate
from shardctl.local.servers import RedisServer

pytestmark = pytest.mark.slow
TIMEOUT_SECONDS = 0.2


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def client(url):
    return Redis.from_url(
        url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)
    )


def make_locks(redis, ttl_ms, clock):
    metrics = Metrics()
    return SlotLocks(redis, RedisGate(clock, metrics), "fleet:s0", ttl_ms, metrics)


def scenario(url, play, ttl_ms=10_000):
    async def run():
        clock = Clock()
        async with client(url) as one, client(url) as two:
            locks = [make_locks(each, ttl_ms, clock) for each in (one, two)]
            await play(*locks, clock, one)

    asyncio.run(run())


def test_two_replicas_share_the_slots(redis_url):
    async def play(mine, other, _clock, _redis):
        assert await mine.take([1, 2]) == {1, 2}
        assert await other.take([2, 3]) == {3}
        await mine.release([1, 2])
        assert await other.take([2]) == {2}

    scenario(redis_url, play)


def test_a_lock_expires_and_its_late_owner_doesnt_release_the_next_ones(redis_url):
    async def play(mine, other, _clock, redis):
        await mine.take([1])
        for _ in range(1_000):
            if await other.take([1]):
                break
            await asyncio.sleep(0.005)
        await mine.release([1])
        assert await redis.exists("{fleet:s0}:lock:g0:1")

    scenario(redis_url, play, ttl_ms=50)


def test_a_flush_costs_nothing_but_the_locks(redis_url):
    async def play(mine, other, _clock, redis):
        await mine.take([1])
        await redis.script_flush()
        await redis.flushall()
        assert await other.take([1]) == {1}
        await mine.release([1])
        assert not mine._gate.shut
        await other.release([1])
        assert await mine.take([1]) == {1}

    scenario(redis_url, play)


def test_sixty_five_thousand_slots_at_once(redis_url):
    async def play(mine, _other, clock, _redis):
        mine._unreleased = set(range(65_536))
        assert await mine.take([1]) == {1}
        assert not mine._gate.shut

    scenario(redis_url, play)


@pytest.fixture
def own_redis(tmp_path):
    server = RedisServer(tmp_path / "redis")
    yield server.start()
    server.stop()


TROUBLES = {
    "killed": (lambda server: server.kill(), lambda server: server.start()),
    "stands still": (lambda server: server.pause(), lambda server: server.resume()),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_is_never_raised_never_long_and_ends(own_redis, trouble):
    begin, end = TROUBLES[trouble]

    async def play(mine, other, clock, _redis):
        await mine.take([1])
        begin(own_redis)
        for _ in range(3):
            started = time.monotonic()
            assert await mine.take([1, 2]) == {1, 2}
            await mine.release([1, 2])
            assert time.monotonic() - started < TIMEOUT_SECONDS * 3
            assert mine._gate.shut
            clock.now += 20
        end(own_redis)
        assert await mine.take([1, 2]) == {1, 2}
        assert not mine._gate.shut
        assert await other.take([1, 2]) == set()

    scenario(own_redis.url, play)


def test_redis_isnt_there_yet_at_the_start(own_redis):
    own_redis.stop()

    async def play(mine, _other, clock, _redis):
        assert await mine.take([1]) == {1}
        await mine.release([1])
        own_redis.start()
        clock.now += 20
        assert await mine.take([1]) == {1}
        assert not mine._gate.shut

    scenario(own_redis.url, play)


@pytest.mark.parametrize(
    ("refuse", "allow"),
    [
        pytest.param(("config", "set", "requirepass", "x"), None, id="NOAUTH"),
        pytest.param(("replicaof", "127.0.0.1", "1"), ("replicaof", "no", "one"), id="READONLY"),
        pytest.param(("config", "set", "maxmemory", "1"), ("config", "set", "maxmemory", "0"), id="OOM"),
    ],
)
def test_a_redis_that_refuses_is_done_without(own_redis, refuse, allow):
    async def play(mine, _other, clock, redis):
        async with Redis.from_url(own_redis.admin_url) as admin:
            await admin.execute_command(*refuse)
        await redis.connection_pool.disconnect()
        assert await mine.take([1]) == {1}
        assert mine._gate.shut
        await mine.release([1])
        if allow:
            async with Redis.from_url(own_redis.admin_url) as admin:
                await admin.execute_command(*allow)
            clock.now += 20
            assert await mine.take([1]) == {1}
            assert not mine._gate.shut

    scenario(own_redis.url, play)
