"""Redis as the slot locks see it: two scripts, keys that expire or are flushed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from consumer.redis.lock import RELEASE, TAKE
from tests.sim.loop import SimLoop
from tests.sim.network import Answer, Network


class RedisServer:
    def __init__(self, clock: Callable[[], float], seed: int) -> None:
        self._clock, self._draw = clock, random.Random(f"{seed} redis").random
        self._keys: dict[str, tuple[str, float]] = {}  # value, and when it expires
        self.break_takes = 0.0  # how often, for each key, a connection breaks while locks are taken

    def flush(self) -> None:
        """As a restart without persistence, or a fail-over to a replica that lags."""
        self._keys.clear()

    def get(self, key: str) -> str | None:
        value, expires = self._keys.get(key, (None, 0.0))
        return value if expires > self._clock() else None

    def set_if_absent(self, key: str, value: str, ttl_ms: int) -> bool:
        if self.get(key) is not None:
            return False
        self._keys[key] = (value, self._clock() + ttl_ms / 1000)
        return True

    def serve_take(self, keys: Sequence[str], token: str, ttl_ms: int, answer: Answer) -> None:
        """A lost connection leaves some keys set: as when the second of two calls is lost."""
        refused = []
        for number, key in enumerate(keys, 1):
            if self._draw() < self.break_takes:
                answer(RedisConnectionError("connection lost half-way"))
                return
            if not self.set_if_absent(key, token, ttl_ms):
                refused.append(number)
        answer(refused)

    def serve_release(self, keys: Sequence[str], token: str, answer: Answer) -> None:
        for key in keys:
            if self.get(key) == token:
                del self._keys[key]
        answer(None)


class RedisClient:
    """Stands where `redis.asyncio.Redis` does."""

    def __init__(self, loop: SimLoop, network: Network, server: RedisServer, timeout_seconds: float) -> None:
        self._loop, self._network, self._server, self._timeout = loop, network, server, timeout_seconds

    def register_script(self, script: str) -> Callable[..., Any]:
        if script == TAKE:
            serve: Callable[..., None] = self._server.serve_take
        elif script == RELEASE:
            serve = self._server.serve_release
        else:
            raise NotImplementedError(script)

        async def call(*, keys: Sequence[str], args: Sequence[Any]) -> Any:
            return await self.request(lambda answer: serve(keys, *args, answer))

        return call

    async def request(self, serve: Callable[[Answer], None]) -> Any:
        def failure(why: str) -> Exception:
            return RedisTimeoutError(why) if why == "timeout" else RedisConnectionError(why)

        return await self._network.request("redis", serve, self._timeout, failure)
