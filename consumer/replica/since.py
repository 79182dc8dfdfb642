"""Since when lanes have been in trouble, for the metrics. Called for each batch that fails or is kept, not for each message."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Since:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: dict[int, float] = {}

    def begin(self, lanes: Iterable[int]) -> None:
        """A lane that is in trouble already keeps its beginning."""
        now = self._clock()
        for lane in lanes:
            self._began.setdefault(lane, now)

    def end(self, lane: int) -> None:
        self._began.pop(lane, None)

    def longest_seconds(self) -> float:
        """How long the lane that began first has been in trouble; 0 when none is. Any thread may ask."""
        began = list(self._began.values())  # in one step: the event loop may change it meanwhile
        return max(0.0, self._clock() - min(began)) if began else 0.0
