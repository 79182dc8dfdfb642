"""How fast the inbox is swept: in chunks as large as they are quick, with rests as long as there is time. Pure.

A purge must not slow the writing down, and over time it must delete as many rows as come. So it takes about 2.5 % of one
connection's time while that is enough. If a walk through the inbox takes longer than planned, it takes 5 %, and more only where
that is too little to keep up. `now` and durations are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_PAGES = 128  # a transaction; 1 MiB of PostgreSQL's rows, up to 17,000 of them
CHUNK_SECONDS = (
    0.25  # a transaction that takes longer is made smaller: it holds locks, and a thread that others wait for
)
LONGEST_REST, SHORTEST_REST = 39.0, 0.25  # times as long as the last chunk took
REST_SECONDS = 60.0  # the longest of all rests
FAILED_SHRINK = 8  # a chunk that failed may have been far too large: a statement's time limit doesn't say by how much
_FASTEST_GROWTH = 2.0


@dataclass(slots=True)
class Pace:
    """What is known of one shard's purge. It outlives passes, failures and the turn in Redis."""

    pass_seconds: float  # a pass that takes longer falls behind
    pages: int = 8  # of the next chunk; it grows quickly where they have little to forget
    rest: float = LONGEST_REST
    _behind_at: float | None = None  # when the pass under way will have taken too long

    def begin(self, now: float) -> None:
        """A pass begins, or goes on after a failure."""
        if self._behind_at is None:
            self._behind_at = now + self.pass_seconds

    def purged(self, seconds: float, now: float) -> float:
        """A chunk took so long, and more is to be swept; the seconds to rest until the next."""
        self._resize(min(_FASTEST_GROWTH, CHUNK_SECONDS / max(seconds, 1e-6)))
        self._hurry(now)
        return min(self.rest * seconds, REST_SECONDS)

    def failed(self, now: float) -> None:
        """A chunk failed, perhaps because it was too large."""
        self._resize(1 / FAILED_SHRINK)
        self._hurry(now)

    def finished(self, seconds: float) -> None:
        """The pass is over. `seconds` is what its last chunk took."""
        self._resize(min(_FASTEST_GROWTH, CHUNK_SECONDS / max(seconds, 1e-6)))
        if self._behind_at is not None:
            self.rest = min(LONGEST_REST, self.rest * 2)
        self._behind_at = None

    def _resize(self, factor: float) -> None:
        self.pages = max(1, min(MOST_PAGES, int(self.pages * factor)))

    def _hurry(self, now: float) -> None:
        """Rest half as long for each time that the pass could have been over."""
        if self._behind_at is None or now < self._behind_at:
            return
        times = 1 + (now - self._behind_at) / self.pass_seconds if self.pass_seconds else 1
        self.rest = max(SHORTEST_REST, self.rest / 2.0 ** int(min(times, 10)))
        self._behind_at = now + self.pass_seconds
