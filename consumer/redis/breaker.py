"""Redis may be unreachable at any time, and nothing may wait for it or fail with it. Only this module decides when to ask it."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from redis.exceptions import RedisError

from consumer.observability.metrics import Metrics
from shardctl.supervision.backoff import backoff
from shardctl.supervision.trouble import Trouble

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 10.0

# Redis handles one call at a time, and all others wait: a thousand keys take about a millisecond. Each call has the client's
# whole timeout, so that no number of keys can exceed it.
KEYS_A_CALL = 1_000

Answer = TypeVar("Answer")
Item = TypeVar("Item")


def calls_of(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """`items` in order, in parts of at most `KEYS_A_CALL`: as many as one call to Redis may handle."""
    for start in range(0, len(items), KEYS_A_CALL):
        yield items[start : start + KEYS_A_CALL]


class RedisBreaker:
    """Calls Redis while it answers. After a failure it makes no call for a while, longer each time, up to ten seconds."""

    def __init__(self, clock: Callable[[], float], metrics: Metrics) -> None:
        self._clock, self._metrics = clock, metrics
        self._shut_until: float | None = None
        self._trouble = Trouble("Redis", log, "redis_lost", clock)

    @property
    def shut(self) -> bool:
        """True from the first failure to the next answer."""
        return self._shut_until is not None

    async def ask(self, call: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """Redis's answer, or None if it is unreachable or was a moment ago. Never raises, and waits no longer than its client."""
        if self._shut_until is not None and self._clock() < self._shut_until:
            return None
        try:
            answer = await call()
        except (RedisError, OSError, TimeoutError) as error:
            self._close(error)
            return None
        if self.shut:
            self._open()
        return answer

    def _close(self, error: Exception) -> None:
        self._trouble.met(
            error, "going on without slot locks, safe by the inbox; replicas may repeat each other's work"
        )
        self._metrics.redis_degraded.set(1)
        wait = backoff(self._trouble.failures, FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, random.random())
        self._shut_until = self._clock() + wait

    def _open(self) -> None:
        self._trouble.over("answers again, slot locks are taken", "redis_back")
        self._metrics.redis_degraded.set(0)
        self._shut_until = None
