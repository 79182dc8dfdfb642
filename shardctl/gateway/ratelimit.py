"""How many writes a second a client may send: a token bucket for each, with room for one second's worth."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

BURST_SECONDS = 1.0
MAX_CLIENTS = (
    10_000  # remembered; the client that has been idle longest is forgotten first, which allows it at most one burst
)


class Bucket:
    """A token bucket; its only state is the time at which it is full again. `clock` is monotonic, in seconds."""

    __slots__ = ("_clock", "_full_at", "_seconds_each")

    def __init__(self, writes_a_second: float, clock: Callable[[], float]) -> None:
        self._seconds_each = 1 / writes_a_second
        self._clock = clock
        self._full_at = clock()

    def take(self) -> float:
        """Take one write's token: 0, or the seconds until there is one."""
        now = self._clock()
        full_at = max(self._full_at, now) + self._seconds_each
        if full_at - now > max(BURST_SECONDS, self._seconds_each):
            return full_at - now - max(BURST_SECONDS, self._seconds_each)
        self._full_at = full_at
        return 0.0

    async def taken(self) -> None:
        """Take one write's token when there is one."""
        while True:
            seconds = self.take()
            if not seconds:
                return
            await asyncio.sleep(seconds)


class Buckets:
    """One bucket a client."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def of(self, client: str, writes_a_second: int | None) -> Bucket | None:
        if writes_a_second is None:
            return None
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = Bucket(writes_a_second, self._clock)
            if len(self._buckets) > MAX_CLIENTS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(client)
        return bucket
