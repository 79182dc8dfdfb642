"""Background tasks and threads of a process: none ends unnoticed.

The caller decides what a task's failure means: `need` stops the process, `keep` runs it again, `once` only reports it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from shardctl.supervision.backoff import backoff
from shardctl.supervision.trouble import Trouble

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.1, 10.0

Work = Coroutine[Any, Any, None]


class TaskEndedError(RuntimeError):
    """A task that should run as long as its process came to an end."""


class Background:
    """The tasks of one owner. Leaving the context, or `close`, cancels them and waits for their ends.

    `stop` is what ends the process's main work: a needed task may end once it is set, and sets it by failing.
    """

    def __init__(self, logger: logging.Logger, stop: asyncio.Event | None = None) -> None:
        self._log, self._stop = logger, stop or asyncio.Event()
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._troubles: dict[str, Trouble] = {}
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        """How many tasks are running."""
        return len(self._tasks)

    def need(self, name: str, work: Work) -> asyncio.Task[None]:
        """A task that the process needs: its failure stops the process, and is raised where the context is left."""
        return self._start(name, work, self._needed_ended)

    def keep(
        self,
        name: str,
        work: Callable[[], Work],
        first_seconds: float = FIRST_RETRY_SECONDS,
        last_seconds: float = LAST_RETRY_SECONDS,
    ) -> asyncio.Task[None]:
        """A task that recovers: after a failure it runs again, after a pause that grows from the first to the last."""
        return self._start(name, self._kept(name, work, first_seconds, last_seconds), self._ended)

    def once(self, name: str, work: Work, then: Callable[[], None] = lambda: None) -> asyncio.Task[None]:
        """A task that ends by itself. A failure is reported and changes nothing else. `then` is called after any end."""

        def ended(task: asyncio.Task[None]) -> None:
            self._ended(task)
            then()

        return self._start(name, work, ended)

    async def close(self) -> None:
        """A second call has no effect."""
        self._closing = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # each end was reported

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()
        if self._failure is not None and error is None:
            raise self._failure

    def _start(self, name: str, work: Work, ended: Callable[[asyncio.Task[None]], None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._trouble(task.get_name()).met(error, "it ended by a bug", bug=True)

    def _needed_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            if self._closing or self._stop.is_set():
                return
            error = TaskEndedError(f"{task.get_name()} ended, and it never should")
        self._trouble(task.get_name()).met(error, "it ended by a bug: the process stops", bug=True)
        self._failure = self._failure or error
        self._stop.set()

    async def _kept(self, name: str, work: Callable[[], Work], first_seconds: float, last_seconds: float) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - reported, with its traceback
                failures = 1 if loop.time() - began > last_seconds else failures + 1
                wait = backoff(failures, first_seconds, last_seconds, random.random())
                self._trouble(name).met(error, f"it ended by a bug: it restarts in {wait:.1f} s", bug=True)
                await asyncio.sleep(wait)
            else:
                return

    def _trouble(self, name: str) -> Trouble:
        return self._troubles.setdefault(name, Trouble(name, self._log, "bug"))


def start_thread(name: str, work: Callable[[], None], logger: logging.Logger) -> threading.Thread:
    """A daemon thread, started. Where it ends by an exception, that is reported with its traceback."""

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - nobody else would see it
            Trouble(f"thread {name}", logger, "bug").met(error, "it ended by a bug", bug=True)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
