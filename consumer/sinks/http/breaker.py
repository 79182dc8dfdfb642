"""When a backend isn't called. Pure: `now` is an argument, in seconds of any monotonic clock.

closed: calls are made; so many failures in a row open it. open: no call is made. half-open: one call probes, and decides.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Permit:
    """The permission for one call. Its outcome counts only in the state in which it was given."""

    state: int
    probe: bool


class Breaker:
    def __init__(self, failures: int, open_seconds: float) -> None:
        self._most, self._open_seconds = failures, open_seconds
        self._row = 0  # failures since the last success
        self._open_until: float | None = None  # None while closed
        self._probing = False
        self._state = 0  # counts changes of state: a call that began before one says nothing about the state after it

    @property
    def closed(self) -> bool:
        return self._open_until is None

    @property
    def probing(self) -> bool:
        """Half-open, with the call in flight that decides."""
        return self._probing

    def permit(self, now: float) -> Permit | None:
        """The permission for a call, whose outcome must be reported; None if no call may be made."""
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

    def give_back(self, permit: Permit, now: float) -> None:
        """The call said nothing about the backend, or was cancelled. A probe has to be repeated."""
        if permit.probe:
            self.failed(permit, now)
