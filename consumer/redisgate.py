"""Redis may be gone at any time, and nothing may wait for it or fail with it: one place that says so."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import RedisError

from consumer.metrics import Metrics

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 10.0

Answer = TypeVar("Answer")


class RedisGate:
    """Asks Redis while it answers. After a failure it is left alone for a while, longer each time, up to ten seconds."""

    def __init__(self, clock: Callable[[], float], metrics: Metrics) -> None:
        self._clock, self._metrics = clock, metrics
        self._shut_until: float | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS

    @property
    def shut(self) -> bool:
        """True from the first failure to the next answer."""
        return self._shut_until is not None

    async def ask(self, call: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """Redis's answer, or None: it is out of reach, or was a moment ago. Never raises, and waits no longer than its client."""
        if self._shut_until is not None and self._clock() < self._shut_until:
            return None
        try:
            answer = await call()
        except (RedisError, OSError, TimeoutError) as error:
            self._close(error)
            return None
        self._open()
        return answer

    def _close(self, error: Exception) -> None:
        if not self.shut:
            log.warning(
                "Redis is out of reach (%s): going on without slot locks, safe by the inbox; "
                "replicas may repeat each other's work",
                error,
                extra={"action": "redis_lost"},
            )
            self._metrics.redis_degraded.set(1)
        self._shut_until = self._clock() + self._retry_seconds * random.uniform(0.5, 1.0)
        self._retry_seconds = min(self._retry_seconds * 2, LAST_RETRY_SECONDS)

    def _open(self) -> None:
        if self.shut:
            log.info("Redis answers again: taking slot locks", extra={"action": "redis_back"})
            self._metrics.redis_degraded.set(0)
        self._shut_until = None
        self._retry_seconds = FIRST_RETRY_SECONDS
