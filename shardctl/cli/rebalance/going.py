"""What `go` says on its way: its steps and waits, for a person on stderr or for a machine as JSON, one object a line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from shardctl.cli.rebalance import report
from shardctl.cli.rebalance.progress import duration
from shardctl.cli.terminal import out, say
from shardctl.printable import printable_json

if TYPE_CHECKING:
    from shardctl.rebalance.run import Progress
    from shardctl.rebalance.stats import Stats

PROGRESS_SECONDS = 0.5  # between two lines of JSON


class Going:
    """`tell` is for what the steps print: data on stdout, or messages on stderr where stdout is for JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._told_at = 0.0
        self.tell: Callable[[str], None] = say if as_json else out

    def begins(self, step: str, text: str) -> None:
        say(f"{step}: {text}")
        self._event(step, "begun")

    def shows(self, plan: dict[str, Any]) -> None:
        if self._as_json:
            self._event("plan", "shown", plan=plan)
        else:
            report.show(plan)

    def ends(self, step: str) -> None:
        self._event(step, "done")

    def waits(self, step: str, reasons: Sequence[str], seconds: float) -> None:
        say(f"{step}: waiting, {duration(seconds)} so far:")
        for reason in reasons:
            say(f"  {reason}")
        self._event(step, "waiting", reasons=list(reasons), seconds=round(seconds, 1))

    def moves(self, progress: Progress, _: Stats) -> None:
        now = time.monotonic()
        if progress.ended or now - self._told_at >= PROGRESS_SECONDS:
            self._told_at = now
            self._event(
                "run",
                "progress",
                slots=progress.total,
                handed_over=progress.arrived,
                copying=progress.preparing + progress.copying,
                trouble=[*progress.trouble, *progress.failed],
            )

    def _event(self, step: str, state: str, **more: object) -> None:
        if self._as_json:
            moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            entry = {"time": moment, "step": step, "state": state, **more}
            out(printable_json(json.dumps(entry, ensure_ascii=False)), flush=True)
