"""How a run shows its progress: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from shardctl.cli.terminal import say
from shardctl.printable import printable

if TYPE_CHECKING:
    from shardctl.rebalance.run import Progress
    from shardctl.rebalance.stats import Stats

LINE_SECONDS, BAR_SECONDS = 5.0, 0.2
ESTIMATE_SECONDS = 15.0


class ProgressView:
    """The estimate uses the speed of the last seconds, separately for slots that move and slots that stay."""

    def __init__(self) -> None:
        self._reported_at = 0.0
        self._bar: Any = None
        self._task: Any = None
        self._trouble: tuple[str, ...] = ()
        self._seen: deque[tuple[float, int]] = deque()
        self._rows: deque[tuple[float, int]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, progress: Progress, tally: Stats) -> None:
        now = time.monotonic()
        if now - self._reported_at < (BAR_SECONDS if sys.stderr.isatty() else LINE_SECONDS) and not progress.ended:
            return
        self._reported_at = now
        if progress.trouble != self._trouble:
            self._trouble = progress.trouble
            for line in progress.trouble:
                self._say(f"retrying: {line}")
        text = (
            f"{progress.arrived:,} of {progress.total:,} slots handed over; copying {progress.preparing + progress.copying}, "
            f"catching up {progress.catching_up}, barriers out {progress.barriers}, rows copied {tally.rows_so_far:,}"
            f"{self._rate(tally, now)}{self._left(progress, now)}"
        )
        if not sys.stderr.isatty():
            say(text)
            return
        if self._bar is None:
            self._begin(progress)
        self._bar.update(self._task, completed=progress.arrived, total=progress.total, text=text)

    def _rate(self, tally: Stats, now: float) -> str:
        """Rows a second, by what was copied in the last seconds."""
        self._rows.append((now, tally.rows_so_far))
        while now - self._rows[0][0] > ESTIMATE_SECONDS:
            self._rows.popleft()
        then, rows = self._rows[0]
        return f" ({(tally.rows_so_far - rows) / (now - then):,.0f} a second)" if tally.rows_so_far > rows else ""

    def _left(self, progress: Progress, now: float) -> str:
        self._seen.append((now, progress.arrived))
        while now - self._seen[0][0] > ESTIMATE_SECONDS:
            self._seen.popleft()
        then, arrived = self._seen[0]
        if progress.arrived == arrived:
            return ""
        seconds = (progress.total - progress.arrived) * (now - then) / (progress.arrived - arrived)
        return f", about {duration(seconds)} left"

    def _say(self, line: str) -> None:
        if self._bar is None:
            say(line)
        else:
            self._bar.console.print(printable(line), highlight=False, markup=False)

    def _begin(self, progress: Progress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.elapsed:6.1f} s "), BarColumn(), TextColumn("{task.fields[text]}", markup=False))
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("slots", total=progress.total, text="")
        self._bar.start()


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
