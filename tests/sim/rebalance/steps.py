"""Blocking code, run a piece at a time: in a thread that works only while the loop waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from tests.sim.loop import Killed


class Steps:
    """A call that may `pause`. Neither it nor the caller that resumes it runs beside the other, so a seed is one history."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.seconds: float | None = 0.0  # of the pause it is in; None once it has ended
        self.result: Any = None
        self.error: BaseException | None = None
        self.dead = False
        self._worker = _idle.pop() if _idle else _Worker()

    def pause(self, seconds: float) -> None:
        """From within: let the world go on for so long. Raises Killed where this is the end."""
        self.seconds = seconds
        self._worker.rest()
        if self.dead:
            raise Killed

    async def run(self) -> Any:
        """The call's result, or its error."""
        while (seconds := self._resume()) is not None:  # noqa: ASYNC110 - it is for the call to say how long
            await asyncio.sleep(seconds)
        if self.error is not None:
            raise self.error
        return self.result

    def kill(self) -> None:
        """Where it pauses. What it does then to clean up counts for nothing: its transaction is rolled back."""
        self.dead = True
        while self.seconds is not None:
            self._resume()

    def _resume(self) -> float | None:
        self._worker.work(self)
        if self.seconds is None:
            _idle.append(self._worker)
        return self.seconds


class _Worker:
    """A thread that outlives its call, since starting one takes longer than most calls."""

    def __init__(self) -> None:
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._steps: Steps | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def work(self, steps: Steps) -> None:
        """From the loop: let the call go on until it pauses or ends."""
        self._steps = steps
        self._go.release()
        self._back.acquire()

    def rest(self) -> None:
        """From the thread: wait until the call may go on."""
        self._back.release()
        self._go.acquire()

    def _run(self) -> None:
        self._go.acquire()
        while True:
            steps, self._steps = self._steps, None
            assert steps is not None
            try:
                if not steps.dead:
                    steps.result = steps.call()
            except BaseException as error:  # noqa: BLE001 - raised in the task that waits for the call
                steps.error = error
            steps.seconds = None
            del steps
            self.rest()


_idle: list[_Worker] = []
