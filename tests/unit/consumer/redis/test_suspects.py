"""Notes of messages that were being handled alone, as processes that die leave them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from consumer.observability.metrics import Metrics
from consumer.redis.breaker import RedisBreaker
from consumer.redis.suspects import Suspects


class Redis:
    """As much of Redis as notes need; `down` refuses."""

    def __init__(self):
        self.values, self.expires, self.down = {}, {}, False

    async def get(self, key):
        self._answer()
        return self.values.get(key)

    async def delete(self, key):
        self._answer()
        self.values.pop(key, None)

    def pipeline(self, *, transaction):
        assert transaction  # a note that never goes could be a sound message's
        todo = []

        async def execute():
            self._answer()
            for call in todo:
                call()

        return SimpleNamespace(
            incr=lambda key: todo.append(lambda: self.values.update({key: int(self.values.get(key, 0)) + 1})),
            expire=lambda key, seconds: todo.append(lambda: self.expires.update({key: seconds})),
            execute=execute,
        )

    def _answer(self):
        if self.down:
            raise ConnectionError


def test_a_process_that_dies_leaves_its_note_and_one_that_lives_on_takes_it_away():
    async def scenario():
        redis = Redis()
        first, second = (Suspects(redis, RedisBreaker(lambda: 0.0, Metrics()), "shop:s0") for _ in range(2))
        await first.begin("m1")  # and dies
        await second.begin("m1")  # and dies
        assert await first.deaths("m1") == 2
        assert await first.deaths("m2") == 0
        assert set(redis.expires) == set(redis.values)
        await first.survived("m1")
        assert await second.deaths("m1") == 0

    asyncio.run(scenario())


def test_without_redis_nobody_is_blamed():
    async def scenario():
        redis = Redis()
        suspects = Suspects(redis, RedisBreaker(lambda: 0.0, Metrics()), "shop:s0")
        redis.down = True
        await suspects.begin("m1")
        await suspects.survived("m1")
        assert await suspects.deaths("m1") == 0

    asyncio.run(scenario())
