"""When a backend is left alone. Pure: `now` is an argument, in seconds of any monotonic clock.

closed: calls go out; so many failures in a row open it. open: no call goes out. half-open: one call probes, and decides.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave for one call. Its outcome counts only in the state in which it was given."""

    state: int
    probe: bool


class Breaker:
    def __init__(self, failures: int, open_seconds: float) -> None:
        self._most, self._open_seconds = failures, open_seconds
        self._row = 0  # failures since the last success
        self._open_until: float | None = None  # None while closed
        self._probing = False
        self._state = 0  # counts changes of state: a call that began before one says nothing of what came after it

    @property
    def closed(self) -> bool:
        return self._open_until is None

    @property
    def probing(self) -> bool:
        """Half-open, with the one call out that will decide."""
        return self._probing

    def permit(self, now: float) -> Permit | None:
        """Leave for a call, whose end must be told; None where it mustn't be made."""
        if self._open_until is None:
            return Permit(self._state, probe=False)
        if self._probing or now < self._open_until:
            return None
        self._probing = True
        self._state += 1
        return Permit(self._state, probe=True)

    def succeeded(self, permit: Permit) -> None:
        if permit.state != self._state:
            return
        self._row = 0
        if permit.probe:
            self._open_until, self._probing = None, False
            self._state += 1

    def failed(self, permit: Permit, now: float) -> None:
        if permit.state != self._state:
            return
        self._row += 1
        if permit.probe or self._row >= self._most:
            self._open_until, self._probing, self._row = now + self._open_seconds, False, 0
            self._state += 1

    def let_go(self, permit: Permit, now: float) -> None:
        """The call told nothing about the backend, or was given up. A probe has to be made again."""
        if permit.probe:
            self.failed(permit, now)
