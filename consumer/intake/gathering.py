"""Messages that come while no batch leaves: kept as they came, and read together when one may.

Read one by one, at moments of their own, messages cost several times the CPU that they cost one after another: each time, code
and data have left the processor's caches. Nothing waits longer for it, since the batch that they go into leaves then at the
earliest. What is urgent waits for nothing: a batch leaves as soon as one is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

MOST_SECONDS = 0.1  # much less than a lease: what isn't read isn't extended
MOST_MESSAGES = 100  # a batch that gets full leaves at once


class Gathering:
    """One stream's. `read` takes messages; `pause_left` says for how many seconds no batch will leave that isn't full.

    `is_urgent` says of a message whether it is to be read at once, with what came before it. `failed` has the error of a read
    that a timer began.
    """

    def __init__(
        self,
        read: Callable[[Sequence[Any]], None],
        pause_left: Callable[[], float],
        is_urgent: Callable[[Any], bool] = lambda _: False,
    ) -> None:
        self._read, self._pause_left, self._is_urgent = read, pause_left, is_urgent
        self._loop = asyncio.get_running_loop()
        self._messages: list[Any] = []
        self._timer: asyncio.TimerHandle | None = None
        self.failed: asyncio.Future[None] = self._loop.create_future()

    def add(self, messages: Sequence[Any]) -> None:
        """Read messages, now or later: always in the order in which they came."""
        self._messages += messages
        if len(self._messages) >= MOST_MESSAGES or any(map(self._is_urgent, messages)):
            self.read()
        elif self._timer is None:
            pause = self._pause_left()
            if pause > 0:
                self._timer = self._loop.call_later(min(pause, MOST_SECONDS), self._read_in_time)
            else:
                self.read()

    def read(self) -> None:
        """Read what has come, now."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._messages:
            messages, self._messages = self._messages, []
            self._read(messages)

    def _read_in_time(self) -> None:
        try:
            self.read()
        except Exception as error:  # noqa: BLE001 - the stream's reader raises it
            self.failed.set_exception(error)
