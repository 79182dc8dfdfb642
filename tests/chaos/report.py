"""What a run is asked for, what it shows on its way, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.chaos.nemesis import Event, Planned
from tests.chaos.oracle import Finding


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `seconds` is how long faults last; producers publish at `writes_per_second` for as long."""

    seed: int
    seconds: float
    faults: tuple[str, ...]
    directory: Path
    writes_per_second: float
    keep: bool = False  # databases and logs also when all is well
    rebalance: bool = False  # move slots all the time
    mistake: str = ""  # one of `planted`, which is to be found


@dataclass(frozen=True, slots=True)
class Standing:
    """How it goes. `settled` are the messages that consumers have acked."""

    seconds: float
    active: tuple[Planned, ...]
    published: int
    settled: int
    backlog: int


class Watch(Protocol):
    """An observer; called from several threads."""

    def stage(self, what: str) -> None: ...
    def event(self, event: Event) -> None: ...
    def standing(self, standing: Standing) -> None: ...


@dataclass(frozen=True, slots=True)
class Report:
    """`counts` say what happened; `trouble` is what kept the harness itself from doing its work."""

    plan: Plan
    directory: Path
    findings: tuple[Finding, ...]
    history: tuple[Event, ...]
    faults: Mapping[str, int]
    counts: Mapping[str, int]
    trouble: tuple[str, ...]
    log_tails: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.findings and not self.trouble
