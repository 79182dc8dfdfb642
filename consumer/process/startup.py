"""Before the first message: the database has the tables of this version, and this replica has reported its presence there.

Otherwise a replica that can't reach it, because of a wrong password or a network policy, would take leases on messages that
others could write, and would count as ready in a rollout as long as its slots are idle. A rebalance, too, relies on a ready
replica having recorded in the database what it reads. Nor may a replica write to tables that would store a row under another key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from consumer.errors import TransientError
from consumer.observability.metrics import Metrics
from shardctl.supervision.backoff import backoff
from shardctl.supervision.trouble import Trouble

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.2, 5.0


class Startup:
    """`waiting_for` says what the start waits for; None once it is over."""

    def __init__(self, steps: Sequence[Callable[[], None]], threads: Executor, metrics: Metrics) -> None:
        """Each of the `steps`, in order, calls the database, and raises TransientError while its answer isn't the needed one."""
        self._steps, self._threads, self._metrics = steps, threads, metrics
        self.waiting_for: str | None = "the database has not answered yet"

    async def wait(self, stop: asyncio.Event) -> None:
        """Returns when the database has answered, or at `stop`."""
        trouble = Trouble("the database", log, "database_not_answering")
        while not stop.is_set():
            try:
                for step in self._steps:
                    await asyncio.get_running_loop().run_in_executor(self._threads, step)
            except TransientError as error:
                self._metrics.database_up.set(0)
                self.waiting_for = f"the database can't be used yet: {error}"
                trouble.met(error, "it is asked again, and no messages are received until it answers")
            else:
                trouble.over("answers", "database_answers")
                self._metrics.database_up.set(1)
                self.waiting_for = None
                return
            pause = backoff(trouble.failures, FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, random.random())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
