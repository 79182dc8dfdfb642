"""The content of a Kubernetes Lease, and for how long it counts. Pure.

As client-go has it, the times in a record are for people. A record counts for its duration from the moment when *this* process
first saw it as it is: so no two machines' clocks are ever compared, and a holder whose clock is wrong changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """`holder` is empty where nobody holds the lease."""

    holder: str = ""
    duration_seconds: int = 0
    acquired: str | None = None
    renewed: str | None = None
    transitions: int = 0

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any]) -> Record:
        return cls(
            str(spec.get("holderIdentity") or ""),
            int(spec.get("leaseDurationSeconds") or 0),
            spec.get("acquireTime"),
            spec.get("renewTime"),
            int(spec.get("leaseTransitions") or 0),
        )

    def spec(self) -> dict[str, Any]:
        fields = {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": self.duration_seconds,
            "acquireTime": self.acquired,
            "renewTime": self.renewed,
            "leaseTransitions": self.transitions,
        }
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def first(cls, holder: str, duration_seconds: int, now: datetime) -> Record:
        """The record of a lease that didn't exist before."""
        return cls(holder, duration_seconds, micro_time(now), micro_time(now))

    def taken_by(self, holder: str, duration_seconds: int, now: datetime) -> Record:
        """The record after `holder` takes the lease, or renews it."""
        if holder == self.holder:
            return Record(holder, duration_seconds, self.acquired, micro_time(now), self.transitions)
        return Record(holder, duration_seconds, micro_time(now), micro_time(now), self.transitions + 1)

    def given_up(self, now: datetime) -> Record:
        """Free at once: nobody holds it, and it counts for only a second."""
        return Record("", 1, micro_time(now), micro_time(now), self.transitions)


class Observed:
    """The record that was seen last, and since when it is unchanged."""

    def __init__(self) -> None:
        self._record: Record | None = None
        self._since = 0.0

    def see(self, record: Record, now: float) -> None:
        if record != self._record:
            self._record, self._since = record, now

    def counts(self, now: float) -> bool:
        """Whether the lease has a holder that renewed it within its duration."""
        record = self._record
        return record is not None and bool(record.holder) and now < self._since + record.duration_seconds


def micro_time(moment: datetime) -> str:
    """As Kubernetes writes a MicroTime; `moment` is in UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
