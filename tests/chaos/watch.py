"""What a person sees: a line for each event, a status at the bottom of a terminal, and the verdict."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections import Counter
from typing import Self

from rich.console import Console
from rich.status import Status
from rich.table import Table

from tests.chaos.faults import EVERY_FAULT, FAULTS
from tests.chaos.nemesis import Event
from tests.chaos.report import Plan, Report, Standing

EXAMPLES = 5  # of each kind of anomaly
PLAIN_EVERY_SECONDS = 5.0


class Screen:
    """On a terminal the standing is redrawn in place; elsewhere it is a line every few seconds."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._told = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status = self._console.status("")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def stage(self, what: str) -> None:
        self._say(what)

    def event(self, event: Event) -> None:
        self._say(f"  {event}")

    def standing(self, standing: Standing) -> None:
        line = (
            f"{standing.seconds:4.0f} s  published {standing.published:,}  settled {standing.settled:,}  "
            f"backlog {standing.backlog:,}  faults: {', '.join(map(str, standing.active)) or 'none'}"
        )
        if self._status is not None:
            self._status.update(line)
        elif time.monotonic() - self._told >= PLAIN_EVERY_SECONDS:
            self._told = time.monotonic()
            self._say(line)

    def _say(self, line: str) -> None:
        with self._lock:
            self._console.print(line, markup=False)


def command(plan: Plan) -> str:
    """What runs the same writes and the same schedule again."""
    parts = ["python", "-m", "tests.chaos", "--seed", str(plan.seed), "--minutes", f"{plan.seconds / 60:.10g}"]
    parts += ["--rate", f"{plan.writes_per_second:g}"]
    if plan.rebalance:
        parts.append("--rebalance")
    if plan.mistake:
        parts += ["--mistake", plan.mistake]
    if set(plan.faults) != set(EVERY_FAULT if plan.rebalance else FAULTS):
        parts += ["--faults", ",".join(plan.faults)]
    return shlex.join(parts)


def tell(report: Report) -> None:
    """The verdict on stdout; with anomalies, all that is needed to look into them."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    faults = Table("fault", "times", box=None, pad_edge=False)
    for name, count in sorted(report.faults.items()):
        faults.add_row(name, str(count))
    console.print(faults)
    console.print("  ".join(f"{name} {count:,}" for name, count in report.counts.items()), markup=False)
    if report.ok:
        console.print(f"seed {report.plan.seed}: no anomaly in {report.counts['writes']:,} writes")
        return
    console.print(explain(report), markup=False)


def explain(report: Report) -> str:
    """Seed, command, anomalies with examples, the history of faults and where the logs are."""
    kinds = Counter(finding.anomaly for finding in report.findings)
    lines = [
        f"seed {report.plan.seed}: " + (", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "TROUBLE"),
        f"again: {command(report.plan)}",
        "",
        *(f"trouble: {trouble}" for trouble in report.trouble),
    ]
    shown: Counter[str] = Counter()
    for finding in report.findings:
        shown[finding.anomaly] += 1
        if shown[finding.anomaly] <= EXAMPLES:
            lines.append(str(finding))
    lines += ["", "what was done:", *(f"  {event}" for event in report.history)]
    for name, tail in report.log_tails.items():
        lines += ["", f"the end of {name}'s log:", tail]
    lines += ["", f"databases, logs and history: {report.directory}"]
    return "\n".join(lines)
