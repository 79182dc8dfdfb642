"""What a run has done so far, measured."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardctl.rebalance.stopwatch import Stopwatch

RECENT_SECONDS = 2.0


@dataclass(slots=True)
class Stats:
    """Of what this run did itself: a slot whose barrier another run published counts, its times don't. Times in seconds."""

    moved: int = 0  # to another database
    flipped: int = 0  # to another generation in their own database
    rows: int = 0  # copied, in pauses and before them
    under_way: Callable[[], int] = int  # rows of copies that aren't done
    copying: Stopwatch = field(default_factory=lambda: Stopwatch(time.monotonic))  # while rows are copied and checked
    bases: int = 0  # slots copied while their writes went on, or
    left_behind: int = 0  # of those: not copied, since their rows were there from before
    changes: int = 0  # brought over since, while writes went on
    fell_back: list[str] = field(default_factory=list)  # slots copied in their pause though they had a base, and why
    barriers: int = 0  # published, copies included
    pauses: list[float] = field(default_factory=list)  # of a moved slot: left seen → active
    latencies: list[float] = field(default_factory=list)  # barrier published → met
    _arrivals: dict[bool, deque[float]] = field(default_factory=lambda: {True: deque(), False: deque()})

    @property
    def rows_so_far(self) -> int:
        return self.rows + self.under_way()

    def arrived(self, now: float, *, stayed: bool) -> None:
        self.flipped, self.moved = self.flipped + stayed, self.moved + (not stayed)
        self._arrivals[stayed].append(now)

    def rate(self, now: float, *, stayed: bool) -> float:
        """Slots of one kind handed over in a second, recently."""
        arrivals = self._arrivals[stayed]
        while arrivals and arrivals[0] < now - RECENT_SECONDS:
            arrivals.popleft()
        return len(arrivals) / RECENT_SECONDS

    def as_json(self) -> dict[str, Any]:
        return {
            "moved": self.moved,
            "flipped": self.flipped,
            "rows_copied": self.rows,
            "copying_seconds": round(self.copying.seconds, 3),
            "copied_ahead": self.bases - self.left_behind,
            "not_copied_again": self.left_behind,
            "changes_brought_over": self.changes,
            "fell_back": list(self.fell_back),
            "barriers": self.barriers,
            "pause_seconds": quantiles(self.pauses),
            "barrier_seconds": quantiles(self.latencies),
        }


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p99 and the largest; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    at = {
        name: ordered[min(len(ordered) - 1, int(part * len(ordered)))] for name, part in (("p50", 0.5), ("p99", 0.99))
    }
    return {name: round(value, 4) for name, value in {**at, "max": ordered[-1]}.items()}
