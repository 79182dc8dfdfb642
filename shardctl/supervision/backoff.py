"""How long to wait before the next try. Pure."""

from __future__ import annotations

WITHOUT_CHANCE = 1.0  # the draw where a wait must not vary
_MAX_DOUBLINGS = 30  # beyond which every `last_seconds` is reached, and a float soon overflows


def backoff(failures: int, first_seconds: float, last_seconds: float, draw: float) -> float:
    """Seconds to wait after so many failures in a row: doubled with each, from `first_seconds` (after one) to `last_seconds`.

    `draw`, from 0 to 1, is the caller's random number: it varies the upper half of the wait, so that clients that
    failed together don't retry together.
    """
    return (0.5 + draw / 2) * min(last_seconds, first_seconds * 2.0 ** min(max(failures - 1, 0), _MAX_DOUBLINGS))
