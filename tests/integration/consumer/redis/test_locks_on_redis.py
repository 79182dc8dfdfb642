"""Slot locks on a real Redis that is slow, dies, refuses and returns."""

from __future__ import annotations

import asyncio

import pytest
import redis_kit
from patience import PATIENCE_SECONDS

from consumer.observability.metrics import Metrics
from consumer.redis.breaker import KEYS_A_CALL, RedisBreaker
from consumer.redis.lock import SlotLocks

pytestmark = pytest.mark.slow
TIMEOUT_SECONDS = 0.2  # of a client whose server doesn't answer any more
LOCK = "{f:s}:lock:g0:1"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def make_locks(redis, ttl_ms, clock):
    metrics = Metrics()
    return SlotLocks(redis, RedisBreaker(clock, metrics), "f:s", ttl_ms, metrics)


def scenario(place, play, ttl_ms=600_000, timeout_seconds=PATIENCE_SECONDS):
    """`play` gets the locks of two replicas, the clock of both, and an administrator's client."""

    async def run():
        clock = Clock()
        async with (
            place.client(timeout_seconds) as first,
            place.client(timeout_seconds) as two,
            place.administrator() as administrator,
        ):
            locks = [make_locks(client, ttl_ms, clock) for client in (first, two)]
            await play(*locks, clock, administrator)

    asyncio.run(run())


def test_a_lock_expires_and_its_late_owner_doesnt_release_the_next_ones(place):
    async def play(mine, other, _clock, redis):
        await mine.take([1])
        await redis.pexpire(LOCK, 0)
        assert await other.take([1]) == {1}
        await mine.release([1])
        assert await redis.exists(LOCK)

    scenario(place, play)


def test_a_lock_ends_by_itself(place):
    async def play(mine, _other, _clock, redis):
        await mine.take([1])
        assert 0 < await redis.pttl(LOCK) <= 600_000

    scenario(place, play)


def test_a_flush_costs_nothing_but_the_locks(place):
    async def play(mine, other, _clock, redis):
        await mine.take([1])
        await redis.script_flush()
        await redis.flushall()
        assert await other.take([1]) == {1}
        await mine.release([1])
        assert not mine._gate.shut
        await other.release([1])
        assert await mine.take([1]) == {1}

    scenario(place, play)


async def scripts_run(redis):
    return (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]


def test_sixty_five_thousand_slots_at_once(place):
    """Every call has the client's time-out to itself: as a whole they take many times longer on a machine that is busy."""
    slots = range(65_536)

    async def play(mine, other, _clock, redis):
        assert await mine.take(slots) == set(slots)
        assert await other.take([0, 40_000, 65_535]) == set()
        await mine.release(slots)
        assert await redis.dbsize() == 0
        before = await scripts_run(redis)
        mine._unreleased = set(slots)
        assert await mine.take([1]) == {1}
        assert not mine._gate.shut
        assert await scripts_run(redis) - before >= len(slots) / KEYS_A_CALL

    scenario(place, play)


@pytest.fixture
def own_place(tmp_path):
    with redis_kit.one_server(tmp_path, "f:s") as place:
        yield place


TROUBLES = {
    "killed": (lambda server: server.kill(), lambda server: server.start()),
    "is frozen": (lambda server: server.pause(), lambda server: server.resume()),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_is_never_raised_never_waited_for_and_ends(own_place, trouble):
    begin, end = TROUBLES[trouble]

    async def until_it_answers(locks, clock):
        """A machine that is busy may take longer than the time-out even then, and then it is asked again."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                taken = await locks.take([1, 2])
                if not locks._gate.shut:
                    return taken
                clock.now += 20

    async def play(mine, other, clock, _redis):
        await mine.take([1])
        begin(own_place.servers[0])
        async with asyncio.timeout(PATIENCE_SECONDS):
            for _ in range(3):
                assert await mine.take([1, 2]) == {1, 2}
                await mine.release([1, 2])
                assert mine._gate.shut
                clock.now += 20
        end(own_place.servers[0])
        assert await until_it_answers(mine, clock) == {1, 2}
        assert await until_it_answers(other, clock) == set()

    scenario(own_place, play, timeout_seconds=TIMEOUT_SECONDS)


def test_redis_isnt_there_yet_at_the_start(own_place):
    own_place.servers[0].stop()

    async def play(mine, _other, clock, _redis):
        assert await mine.take([1]) == {1}
        await mine.release([1])
        own_place.servers[0].start()
        clock.now += 20
        assert await mine.take([1]) == {1}
        assert not mine._gate.shut

    scenario(own_place, play)


@pytest.mark.parametrize(
    ("refuse", "allow"),
    [
        pytest.param(("acl", "setuser", redis_kit.USER, "resetpass"), None, id="WRONGPASS"),
        pytest.param(("replicaof", "127.0.0.1", "1"), ("replicaof", "no", "one"), id="READONLY"),
        pytest.param(("config", "set", "maxmemory", "1"), ("config", "set", "maxmemory", "0"), id="OOM"),
    ],
)
def test_a_redis_that_refuses_is_done_without(own_place, refuse, allow):
    async def play(mine, _other, clock, administrator):
        await administrator.execute_command(*refuse)
        await mine._take._call.registered_client.connection_pool.disconnect()
        assert await mine.take([1]) == {1}
        assert mine._gate.shut
        await mine.release([1])
        if allow:
            await administrator.execute_command(*allow)
            clock.now += 20
            assert await mine.take([1]) == {1}
            assert not mine._gate.shut

    scenario(own_place, play)
