"""Messages that come while no batch leaves: kept as they came, and read together shortly before one does.

Read one by one, at moments of their own, messages cost several times the CPU that they cost one after another: each time, code
and data have left the processor's caches. Nothing waits longer for it, since the batch that they go into leaves later anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

AHEAD_SECONDS = 0.002  # of the batch, so that all that has come is in it
MOST_SECONDS = 0.1  # much less than a lease: what isn't read isn't extended
MOST_MESSAGES = 100  # a batch that gets full leaves at once


class Gathering:
    """One stream's. `read` takes messages, and returns for how many seconds no batch will leave that isn't full.

    `failed` has the error of a read that a timer began.
    """

    def __init__(self, read: Callable[[Sequence[Any]], float]) -> None:
        self._read, self._loop = read, asyncio.get_running_loop()
        self._messages: list[Any] = []
        self._read_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self.failed: asyncio.Future[None] = self._loop.create_future()

    def add(self, messages: Sequence[Any]) -> None:
        """Read messages, now or later: always in the order in which they came."""
        self._messages += messages
        if len(self._messages) >= MOST_MESSAGES or self._loop.time() >= self._read_at:
            self.read()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._read_at, self._read_in_time)

    def read(self) -> None:
        """Read what has come, now."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._messages:
            messages, self._messages = self._messages, []
            pause = self._read(messages)
            self._read_at = self._loop.time() + min(pause - AHEAD_SECONDS, MOST_SECONDS)

    def _read_in_time(self) -> None:
        try:
            self.read()
        except Exception as error:  # noqa: BLE001 - the stream's reader raises it
            self.failed.set_exception(error)
