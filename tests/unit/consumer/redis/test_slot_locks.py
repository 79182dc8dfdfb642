"""When locks are taken, given up on and taken again: on a real Redis, with a fake clock. Its ways to fail: tests/integration."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from patience import PATIENCE_SECONDS
from redis import Redis as SyncRedis
from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool, Redis
from redis.connection import parse_url

from consumer.observability.metrics import Metrics
from consumer.redis.breaker import KEYS_A_CALL, RedisBreaker
from consumer.redis.lock import SlotLocks


class Line(ConnectionPool):
    """Every call needs a connection of this: it counts them, and raises `fault` instead while it is set.

    Before each of the next calls, as many as `forgetting`, the server forgets its scripts.
    """

    fault, calls, until_fault, forgetting = None, 0, 0, 0

    def fail_after(self, calls, fault):
        self.until_fault, self.fault = calls, fault

    async def get_connection(self, *arguments, **named):
        self.calls += 1
        self.until_fault -= 1
        if self.fault and self.until_fault < 0:
            raise self.fault
        if self.forgetting:
            self.forgetting -= 1
            with SyncRedis(**self.server) as other:
                other.script_flush()
        return await super().get_connection(*arguments, **named)


class Bench:
    """Two replicas' locks on one Redis."""

    def __init__(self, url, runner):
        self._run = runner.run
        self.line = Line.from_url(url, socket_timeout=PATIENCE_SECONDS)
        self.line.server = parse_url(url)
        self.redis, self.now, self.metrics = Redis(connection_pool=self.line), 0.0, Metrics()
        self.mine, self.other = (
            SlotLocks(self.redis, RedisBreaker(lambda: self.now, self.metrics), "f:s", 600_000, self.metrics)
            for _ in "ab"
        )

    def take(self, *slots, locks=None):
        return self._run((locks or self.mine).take(slots))

    def release(self, *slots, locks=None):
        self._run((locks or self.mine).release(slots))

    def flush(self):
        self._run(self.redis.flushall())


@pytest.fixture
def bench(redis_url):
    with asyncio.Runner() as runner:
        made = Bench(redis_url, runner)
        yield made
        made.line.fault = None
        runner.run(made.redis.aclose(close_connection_pool=True))


def test_of_two_replicas_one_gets_a_slot(bench):
    assert bench.take(1, 2) == {1, 2}
    assert bench.take(2, 3, locks=bench.other) == {3}
    bench.release(1, 2)
    assert bench.take(2, locks=bench.other) == {2}
    assert bench.metrics.registry.get_sample_value("shardctl_locks_contended_total") == 1


def test_a_lock_that_is_anothers_by_now_isnt_released(bench):
    bench.take(1)
    bench.flush()  # it expired
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
    bench.line.fault = fault
    assert bench.take(1, 2) == {1, 2}
    assert bench.mine._gate.shut
    bench.release(1, 2)


def test_redis_that_forgets_a_script_between_its_loading_and_its_call_is_not_gone(bench):
    bench.take(1, locks=bench.other)
    bench.line.forgetting = 3  # the call, the loading, the call again
    assert bench.take(1, 2) == {2}
    assert bench.line.forgetting == 0
    assert not bench.mine._gate.shut
    bench.line.forgetting = 100
    assert bench.take(3) == {3}
    assert bench.mine._gate.shut, "it can't keep a script: then that is tried no longer"
    bench.line.forgetting = 0


def test_redis_is_left_alone_for_a_while_then_asked_again_ever_more_rarely(bench):
    bench.line.fault = redis_errors.ConnectionError()
    asked = []
    for _ in range(600):
        before = bench.line.calls
        bench.take(1)
        if bench.line.calls > before:
            asked.append(bench.now)
        bench.now += 0.1
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert gaps[0] < 1.0
    assert max(gaps) <= 10.2
    assert len(asked) < 20


def test_locks_are_taken_again_and_what_couldnt_be_released_is(bench):
    bench.take(1, 2)
    bench.line.fault = redis_errors.ConnectionError()
    bench.release(1, 2)
    bench.line.fault = None
    bench.now += 60
    assert bench.take(3) == {3}
    assert not bench.mine._gate.shut
    assert bench.take(1, 2, locks=bench.other) == {1, 2}


def test_an_own_lock_that_couldnt_be_released_doesnt_lock_us_out(bench):
    bench.take(1)
    bench.line.fault = redis_errors.ConnectionError()
    bench.release(1)
    bench.line.fault = None
    bench.now += 60
    assert bench.take(1) == {1}


def test_a_batch_without_slots_says_nothing_about_redis(bench):
    bench.line.fault = redis_errors.ConnectionError()
    bench.take(1)
    bench.now += 60
    assert bench.take() == set()
    assert bench.mine._gate.shut


def test_locks_let_go_while_redis_was_away_are_released_when_it_is_back(bench):
    bench.take(1)
    bench.line.fault = redis_errors.ConnectionError()
    bench.take(2)
    bench.line.fault = None
    bench.release(1)  # Redis isn't asked now
    bench.now += 60
    bench.take(3)
    assert bench.take(1, locks=bench.other) == {1}


def test_no_call_handles_all_the_slots_of_a_large_batch(bench):
    slots = tuple(range(5 * KEYS_A_CALL))
    some = {slots[0], slots[KEYS_A_CALL], slots[-1]}
    assert bench.take(*slots) == set(slots)
    assert bench.take(*some, locks=bench.other) == set()
    assert bench.line.calls >= 5
    bench.line.calls = 0
    bench.release(*slots)
    assert bench.line.calls >= 5
    assert bench.take(*some, locks=bench.other) == some


def test_what_couldnt_be_released_is_released_in_parts_and_what_is_left_later(bench):
    slots = tuple(range(3 * KEYS_A_CALL))
    bench.take(*slots)
    bench.line.fault = redis_errors.TimeoutError("slow")
    bench.release(*slots)
    bench.line.fault, bench.now = None, bench.now + 60
    bench.line.fail_after(2, redis_errors.TimeoutError("slow"))
    bench.take(5_000)
    assert len(bench.mine._unreleased) == KEYS_A_CALL  # two parts were released for good
    bench.line.fault, bench.now = None, bench.now + 60
    assert bench.take(5_000) == {5_000}
    assert bench.take(*slots, locks=bench.other) == set(slots)
