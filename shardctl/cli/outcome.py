"""What `shardctl demo` prints: its stages as they happen, and its outcome; with `--rebalance` the slot map too."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Self

from shardctl.cli.terminal import out, print_json, print_table, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED
from shardctl.printable import printable

LINE_SECONDS = 5.0


class Stages:
    """Each stage with its time; the load as a bar on a terminal, elsewhere as a line now and then."""

    def __init__(self) -> None:
        self._stage = self._reported_at = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()

    def done(self, what: str) -> None:
        self._end_bar()
        now = time.monotonic()
        say(f"{now - self._stage:6.1f} s  {what}")
        self._stage = now

    def warn(self, what: str) -> None:
        if self._bar:
            self._bar.console.print(printable(f"warning: {what}"), highlight=False, markup=False)
        else:
            say(f"warning: {what}")

    def progress(self, published: int, settled: int, total: int) -> None:
        now = time.monotonic()
        text = f"{published:,} published, {settled:,} settled, {settled / max(0.001, now - self._stage):,.0f}/s"
        if sys.stderr.isatty():
            if self._bar is None:
                self._begin_bar()
            self._bar.update(self._task, completed=settled, total=total, text=text)
        elif now - max(self._reported_at, self._stage) >= LINE_SECONDS:
            self._reported_at = now
            say(f"          {text}")

    def _begin_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.elapsed:6.1f} s "), BarColumn(), TextColumn("{task.fields[text]}", markup=False))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("load", text="")
        self._bar.start()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class MoveStages(Stages):
    """On a terminal the slot map is drawn while slots move; elsewhere a line now and then shows the progress."""

    def slots(self, slot_map: Any, title: str) -> None:
        from shardctl.local import slotmap

        self._end_bar()
        if sys.stderr.isatty():
            self._console().print(slotmap.picture(slot_map, title))
        else:
            say(f"          {title}: {slotmap.line(slot_map)}")

    def moving(self, slot_map: Any, progress: Any) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        from shardctl.local import slotmap

        text = f"{progress.arrived:,} of {progress.total:,} slots handed over, {progress.copying:,} being copied"
        text += "".join(f"; {reason}" for reason in (*progress.trouble, *progress.failed))
        now = time.monotonic()
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = Live(console=self._console(), auto_refresh=False, transient=True)
                self._bar.start()
            self._bar.update(Group(slotmap.picture(slot_map, "now"), Text(printable(text))), refresh=True)
        elif now - max(self._reported_at, self._stage) >= LINE_SECONDS:
            self._reported_at = now
            say(f"          {text}")

    def _console(self) -> Any:
        from rich.console import Console

        return Console(stderr=True, highlight=False)


def tell_outcome(report: Any, *, as_json: bool) -> int:
    """Print a `demo.Report`; returns the exit code."""
    return _tell(report, _print_report, as_json=as_json)


def tell_move(report: Any, *, as_json: bool) -> int:
    """Print a `movedemo.Report`; returns the exit code."""
    return _tell(report, _print_move, as_json=as_json)


def _tell(report: Any, show: Callable[[Any], None], *, as_json: bool) -> int:
    if as_json:
        print_json(report.as_json())
    else:
        show(report)
    if report.kept_in:
        say(f"databases and logs are kept in {report.kept_in}")
    return EXIT_DONE if report.verified else EXIT_REFUSED


def _print_move(report: Any) -> None:
    headers = ("shard", "slots before", "slots after")
    names = dict.fromkeys((*report.slots_before, *report.slots_after))
    rows = [
        (name, *(f"{slots[name]:,}" if name in slots else "-" for slots in (report.slots_before, report.slots_after)))
        for name in names
    ]
    print_table(headers, rows, right=headers[1:])
    out()
    out(f"{report.slots_moved:,} slots moved; no plan moves fewer than {report.slots_moved_minimum:,}.")
    if report.pause and report.closed:
        out(
            f"A moved slot's slowest write took {_seconds(report.pause)} from publish to commit "
            f"({report.pause['slots']:,} slots were written to meanwhile); a slot was closed for {_seconds(report.closed)}."
        )
    if report.unmoved_rate_ratio is not None:
        out(
            f"Slots that stayed: {report.unmoved_rate_before:,.0f} writes/s before, {report.unmoved_rate_during:,.0f} while "
            f"slots moved, which is {report.unmoved_rate_ratio:.2f} of that."
        )
    out(
        f"{report.publisher_duplicates:,} of {report.published:,} messages were copies, "
        f"and {report.redelivered:,} were delivered again."
    )
    if report.verified:
        out(
            f"Verified: all {report.applied:,} writes took effect once and in order, and each is where its slot belongs now."
        )
    else:
        _print_differences(report)


def _seconds(quantiles: dict[str, float]) -> str:
    return f"{quantiles['p50']:.2f} s at the median, {quantiles['p99']:.2f} s at p99, {quantiles['max']:.2f} s at most"


def _print_report(report: Any) -> None:
    headers = ("shard", "slots", "writes", "duplicates", "redelivered", "applied", "rows", "writes/s", "p50", "p99", "")
    rows = [
        (
            shard.shard,
            f"{shard.slots:,}",
            f"{shard.writes:,}",
            f"{shard.publisher_duplicates:,}",
            f"{shard.redelivered:,}",
            f"{shard.applied:,}",
            f"{shard.rows:,}",
            f"{shard.writes_per_second:,.0f}",
            _milliseconds(shard.p50_ms),
            _milliseconds(shard.p99_ms),
            "verified" if shard.verified else "WRONG",
        )
        for shard in report.shards
    ]
    print_table(headers, rows, right=headers[1:-1])
    if any(shard.p50_ms is not None for shard in report.shards):
        out("p50 and p99: from publish to the transaction that wrote, with the machine under full load.")
    out()
    out(
        f"{report.writes:,} writes of {report.entities:,} entities in {report.load_seconds:.1f} s: "
        f"{report.writes_per_second:,.0f} writes/s, {report.consumers['rows_per_batch']:g} messages a transaction."
    )
    out(
        f"{report.publisher_duplicates:,} writes were published twice and {report.redelivered:,} messages delivered again: "
        f"consumers recognised {report.consumers['duplicates']:,.0f} copies."
    )
    if report.verified:
        out(
            f"Verified: all {report.applied:,} writes took effect once, on their shard, and each row has the values of its "
            "last write."
        )
    else:
        _print_differences(report)


def _print_differences(report: Any) -> None:
    problems = [f"{count:,} {what}" for what, count in report.differences.items()]
    problems += [f"{report.dead_letters:,} dead letters"] if report.dead_letters else []
    problems += [f"{report.strays:,} strays"] if report.strays else []
    out(f"NOT VERIFIED: {', '.join(problems)}.")
    for example in report.examples:
        out(f"  {example}")


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"
