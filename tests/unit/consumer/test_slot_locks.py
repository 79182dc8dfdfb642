"""When locks are given up on and taken again, on a fake Redis and a fake clock. On a real one: tests/integration."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from redis import exceptions as redis_errors

from consumer.lock import SlotLocks
from consumer.metrics import Metrics
from consumer.redisgate import RedisGate


class FakeRedis:
    """SET NX and the release script over a dict; raises `fault` while it is set."""

    def __init__(self):
        self.keys, self.fault, self.calls = {}, None, 0

    def register_script(self, _):
        async def release(keys, args):
            self._call()
            for key in keys:
                if self.keys.get(key) == args[0]:
                    del self.keys[key]

        return release

    def pipeline(self, *, transaction):
        assert not transaction
        redis, commands = self, []

        class Pipeline:
            def execute_command(self, *command):
                commands.append(command)

            async def execute(self):
                redis._call()
                answers = []
                for _, key, token, *_options in commands:
                    answers.append(key not in redis.keys or None)
                    redis.keys.setdefault(key, token)
                return answers

        return Pipeline()

    def _call(self):
        self.calls += 1
        if self.fault:
            raise self.fault


class Bench:
    def __init__(self):
        self.redis, self.now, self.metrics = FakeRedis(), 0.0, Metrics()
        self.mine, self.other = (
            SlotLocks(self.redis, RedisGate(lambda: self.now, self.metrics), "f:s", 1_000, self.metrics) for _ in "ab"
        )

    def take(self, *slots, locks=None):
        return asyncio.run((locks or self.mine).take(slots))

    def release(self, *slots, locks=None):
        asyncio.run((locks or self.mine).release(slots))


@pytest.fixture
def bench():
    return Bench()


def test_of_two_replicas_one_gets_a_slot(bench):
    assert bench.take(1, 2) == {1, 2}
    assert bench.take(2, 3, locks=bench.other) == {3}
    bench.release(1, 2)
    assert bench.take(2, locks=bench.other) == {2}
    assert bench.metrics.registry.get_sample_value("shardctl_locks_contended_total") == 1


def test_a_lock_that_is_anothers_by_now_isnt_released(bench):
    bench.take(1)
    bench.redis.keys.clear()  # it expired
    bench.take(1, locks=bench.other)
    bench.release(1)
    assert bench.take(1) == set()


@pytest.mark.parametrize(
    "fault",
    [
        redis_errors.ConnectionError("gone"), redis_errors.TimeoutError("slow"), redis_errors.AuthenticationError("NOAUTH"),
        redis_errors.ReadOnlyError("READONLY"), redis_errors.ResponseError("MISCONF"), OSError("no route"),
    ],
    ids=lambda fault: type(fault).__name__,
)  # fmt: skip
def test_without_redis_every_slot_may_be_worked_on(bench, fault):
    bench.take(1, locks=bench.other)
    bench.redis.fault = fault
    assert bench.take(1, 2) == {1, 2}
    assert bench.mine._gate.shut
    bench.release(1, 2)


def test_redis_is_left_alone_for_a_while_then_asked_again_ever_more_rarely(bench):
    bench.redis.fault = redis_errors.ConnectionError()
    asked = []
    for _ in range(600):
        before = bench.redis.calls
        bench.take(1)
        if bench.redis.calls > before:
            asked.append(bench.now)
        bench.now += 0.1
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert gaps[0] < 1.0
    assert max(gaps) <= 10.2
    assert len(asked) < 20


def test_locks_are_taken_again_and_what_couldnt_be_released_is(bench):
    bench.take(1, 2)
    bench.redis.fault = redis_errors.ConnectionError()
    bench.release(1, 2)
    bench.redis.fault = None
    bench.now += 60
    assert bench.take(3) == {3}
    assert not bench.mine._gate.shut
    assert bench.take(1, 2, locks=bench.other) == {1, 2}


def test_an_own_lock_that_couldnt_be_released_doesnt_lock_us_out(bench):
    bench.take(1)
    bench.redis.fault = redis_errors.ConnectionError()
    bench.release(1)
    bench.redis.fault = None
    bench.now += 60
    assert bench.take(1) == {1}


def test_a_batch_without_slots_says_nothing_about_redis(bench):
    bench.redis.fault = redis_errors.ConnectionError()
    bench.take(1)
    bench.now += 60
    assert bench.take() == set()
    assert bench.mine._gate.shut


def test_locks_let_go_while_redis_was_away_are_released_when_it_is_back(bench):
    bench.take(1)
    bench.redis.fault = redis_errors.ConnectionError()
    bench.take(2)
    bench.redis.fault = None
    bench.release(1)  # Redis isn't asked now
    bench.now += 60
    bench.take(3)
    assert bench.take(1, locks=bench.other) == {1}
