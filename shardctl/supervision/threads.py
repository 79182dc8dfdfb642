"""Threads that run calls, and that the end of the program doesn't wait for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Lock, Semaphore
from typing import Any

from shardctl.supervision.background import start_thread


class DaemonThreads:
    """Runs calls in the order in which they come, each in one of up to `most` threads, started as they are needed.

    `ThreadPoolExecutor` does the same, but the interpreter waits for its threads at the end: after an interrupt, a user would
    wait for a call that hangs, or interrupt once more and see a traceback.
    """

    def __init__(self, most: int, name: str, logger: logging.Logger) -> None:
        self._most, self._name, self._log = most, name, logger
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._idle = Semaphore(0)
        self._lock = Lock()  # guards the two below, and keeps calls from being queued after the end
        self._started = 0
        self._stopped = False

    def submit(self, call: Callable[..., object], *arguments: Any) -> None:
        """Raises RuntimeError after `shutdown`."""
        with self._lock:
            if self._stopped:
                raise RuntimeError("these threads are stopped")
            self._calls.put(lambda: call(*arguments))
            if not self._idle.acquire(blocking=False) and self._started < self._most:
                self._started += 1
                start_thread(self._name, self._run, self._log)

    def _run(self) -> None:
        while (call := self._next()) is not None:
            call()
        self._calls.put(None)  # for the next thread

    def _next(self) -> Callable[[], object] | None:
        with self._lock:  # a call that came in between would count this thread as idle, and not find it so
            try:
                return self._calls.get_nowait()
            except Empty:
                self._idle.release()
        return self._calls.get()

    def shutdown(self) -> None:
        """Accept no more calls. Each thread ends when no call is left; this doesn't wait."""
        with self._lock:
            self._stopped = True
            self._calls.put(None)
