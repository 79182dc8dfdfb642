"""An event loop whose time is a number: where every task waits, it jumps to the next timer. Nothing is slow, and nothing is late.

For code that waits for timers and for its own tasks alone. What waits for a thread or a socket needs a real clock.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Jumps(selectors.DefaultSelector):
    """Adds up what the loop would have slept for."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "every task waits, and for no timer: this would never end"
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumps = _Jumps()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    """As `asyncio.run`. The scenario's clock is its loop's `time`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(scenario)
