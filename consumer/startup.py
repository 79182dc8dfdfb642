"""Before the first message: the database must have answered once.

Otherwise a replica that can't reach it, for a wrong password or a rule of the network, would take leases on messages that others
could write, and would count as ready in a rollout as long as its slots are idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from consumer.errors import AgainError
from consumer.metrics import Metrics

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.2, 5.0


class Startup:
    """`waiting_for` says what the start waits for; None once it is over."""

    def __init__(self, reach_database: Callable[[], None], threads: Executor, metrics: Metrics) -> None:
        self._reach, self._threads, self._metrics = reach_database, threads, metrics
        self.waiting_for: str | None = "the database has not answered yet"

    async def wait(self, stop: asyncio.Event) -> None:
        """Returns when the database has answered, or at `stop`."""
        pause = FIRST_RETRY_SECONDS
        while not stop.is_set():
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, self._reach)
            except AgainError as error:
                self._metrics.database_up.set(0)
                self.waiting_for = f"the database has not answered yet: {error}"
                log.warning("%s: asked again in %.1f s, no messages are taken until it answers", error, pause)
            else:
                self._metrics.database_up.set(1)
                self.waiting_for = None
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
            pause = min(2 * pause, LAST_RETRY_SECONDS)
