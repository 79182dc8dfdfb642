"""Whether this replica leads, by client-go's rules for a candidate. Pure: `now` is in seconds of any monotonic clock.

No clock of another machine counts: a leader counts from the moment it asked, which lies before the moment it was answered.
"""

from __future__ import annotations

from dataclasses import dataclass

JITTER = 1.2  # of the pause between a standby's tries, so that they don't all ask at once


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds. `lease_duration`: how long standbys wait for a silent leader; `renew_deadline`: how long a leader that can't
    renew goes on; `retry_period`: between two tries.
    """

    lease_duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0


class Election:
    """Gets the result of each try to hold the lease."""

    def __init__(self, times: Times, now: float) -> None:
        self.times = times
        self.holder = ""  # who holds the lease, as far as is known
        self._answered_at = now
        self._held_since: float | None = None  # when the last successful renewal was asked for

    @property
    def leading(self) -> bool:
        return self._held_since is not None

    def held(self, asked_at: float, now: float, holder: str) -> None:
        """The lease is ours, by the answer to a request made at `asked_at`. An answer that comes too late doesn't count."""
        self.holder, self._answered_at = holder, now
        self._held_since = asked_at
        self.expire(now)

    def taken(self, now: float, holder: str) -> None:
        """Another has the lease."""
        self.holder, self._answered_at = holder, now
        self._held_since = None

    def expire(self, now: float) -> bool:
        """Whether a leader must stop, since it has not renewed for as long as the renew deadline."""
        ends_at = self.ends_at
        if ends_at is None or now < ends_at:
            return False
        self._held_since = None
        return True

    @property
    def ends_at(self) -> float | None:
        """When leading ends unless it is renewed before; None for a standby."""
        return None if self._held_since is None else self._held_since + self.times.renew_deadline

    def patience(self, now: float) -> float:
        """How long one try may take: half the renew deadline, so that a leader has a second one."""
        most = self.times.renew_deadline / 2
        return most if self.ends_at is None else max(0.0, min(most, self.ends_at - now))

    def pause(self, now: float, chance: float) -> float:
        """How long until the next try; `chance` lies between 0 and 1."""
        if self.ends_at is None:
            return self.times.retry_period * (1 + JITTER * chance)
        return max(0.0, min(self.times.retry_period, self.ends_at - now))

    def silent_seconds(self, now: float) -> float:
        """How long no request has been answered."""
        return max(0.0, now - self._answered_at)
