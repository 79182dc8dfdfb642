"""How many slots are in flight at once: one more each time a barrier is met soon, half as many when one isn't. Pure.

Additive increase, multiplicative decrease (V. Jacobson, Congestion Avoidance and Control, 1988): a barrier waits behind all that
the old generation has yet to write, so its time shows how far a shard lags.
"""

from __future__ import annotations

SLOW_SECONDS = 5.0


class AimdWindow:
    def __init__(self, size: int, most: int, least: int = 1) -> None:
        self._least, self._most = least, most
        self._size = float(min(size, most))
        self._cut_at = float("-inf")

    @property
    def size(self) -> int:
        return int(self._size)

    def met(self, published: float, now: float) -> None:
        """A barrier published at `published` was met."""
        if now - published > SLOW_SECONDS:
            self.late(published, now)
        else:
            self._size = min(self._most, self._size + 1)

    def late(self, published: float, now: float) -> None:
        """A barrier is slow to be met. Barriers that were out at the last cut say nothing about its effect."""
        if now - published > SLOW_SECONDS and published > self._cut_at:
            self._size, self._cut_at = max(self._least, self._size / 2), now
