"""How long something was under way that several threads do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock


class Stopwatch:
    """Counts the seconds of `clock` in which at least one `running` block is open: where blocks overlap, time counts once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, Lock()
        self._open, self._opened_at, self._seconds = 0, 0.0, 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._lock:
            if self._open == 0:
                self._opened_at = self._clock()
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                if self._open == 0:
                    self._seconds += self._clock() - self._opened_at

    @property
    def seconds(self) -> float:
        """Up to now."""
        with self._lock:
            return self._seconds + (self._clock() - self._opened_at if self._open else 0.0)
