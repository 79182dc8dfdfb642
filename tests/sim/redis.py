"""Redis as the slot locks see it: SET NX PX in a pipeline, one script, keys that expire or are flushed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.sim.loop import SimLoop
from tests.sim.network import Answer, Network


class RedisServer:
    def __init__(self, clock: Callable[[], float], seed: int) -> None:
        self._clock, self._draw = clock, random.Random(f"{seed} redis").random
        self._keys: dict[str, tuple[str, float]] = {}  # value, and when it expires
        self.break_pipelines = 0.0  # how often a connection breaks half-way through a pipeline

    def flush(self) -> None:
        """As a restart without persistence, or a fail-over to a replica that lags."""
        self._keys.clear()

    def get(self, key: str) -> str | None:
        value, expires = self._keys.get(key, (None, 0.0))
        return value if expires > self._clock() else None

    def set_if_absent(self, key: str, value: str, ttl_ms: int) -> bool | None:
        if self.get(key) is not None:
            return None
        self._keys[key] = (value, self._clock() + ttl_ms / 1000)
        return True

    def serve_pipeline(self, commands: Sequence[tuple[Any, ...]], answer: Answer) -> None:
        answers = []
        for name, key, value, *options in commands:
            if (name, options[:2]) != ("SET", ["NX", "PX"]):
                raise NotImplementedError(f"{name} {options}")
            if self._draw() < self.break_pipelines:
                answer(RedisConnectionError("connection lost half-way"))
                return
            answers.append(self.set_if_absent(key, value, options[2]))
        answer(answers)

    def serve_release(self, keys: Sequence[str], token: str, answer: Answer) -> None:
        for key in keys:
            if self.get(key) == token:
                del self._keys[key]
        answer(None)


class RedisClient:
    """Stands where `redis.asyncio.Redis` does."""

    def __init__(self, loop: SimLoop, network: Network, server: RedisServer, timeout_seconds: float) -> None:
        self._loop, self._network, self._server, self._timeout = loop, network, server, timeout_seconds

    def pipeline(self, *, transaction: bool) -> Pipeline:
        return Pipeline(self)

    def register_script(self, script: str) -> Callable[..., Any]:
        assert "'del'" in script, "the simulation knows the release script alone"

        async def release(*, keys: Sequence[str], args: Sequence[str]) -> Any:
            return await self.request(lambda answer: self._server.serve_release(keys, args[0], answer))

        return release

    async def execute(self, commands: Sequence[tuple[Any, ...]]) -> Any:
        return await self.request(lambda answer: self._server.serve_pipeline(commands, answer))

    async def request(self, serve: Callable[[Answer], None]) -> Any:
        def failure(why: str) -> Exception:
            return RedisTimeoutError(why) if why == "timeout" else RedisConnectionError(why)

        return await self._network.request("redis", serve, self._timeout, failure)


class Pipeline:
    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    async def execute(self) -> Any:
        return await self._client.execute(self._commands)
