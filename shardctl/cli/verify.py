"""`shardctl verify`: every row where its slot is active, every slot active once."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from typing import Any, Self

from shardctl.cli.provision import DatabaseOption, given_urls
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, out, print_json, print_table, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED

REPORT_AFTER_SECONDS = 5.0


def verify(
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check that every row is where its slot is active, and that each slot is active exactly once."""
    from shardctl.fleet.load import load_fleet
    from shardctl.provision import database_urls
    from shardctl.shard import database as databases
    from shardctl.verification import verify as checks

    fleet = load_fleet(file)
    urls = database_urls(fleet, given_urls(database or ()), os.environ, "without it the fleet can't be verified")
    started = time.monotonic()
    with ExitStack() as opened:
        engines = opened.enter_context(databases.connected(fleet.fleet, urls))
        bar = opened.enter_context(_Progress(sum(len(checks.tables_of(fleet, shard)) for shard in fleet.shards)))
        report = checks.verify(fleet, engines, bar.next)
    if as_json:
        print_json(_as_json(report))
    else:
        _print(report)
    _conclude(report, time.monotonic() - started)
    return EXIT_REFUSED if report.faults else EXIT_DONE


def _print(report: Any) -> None:
    headers = ("shard", "slots", "table", "rows", "waiting", "checksum")
    rows = []
    for shard in report.shards:
        slots = "-" if shard.active is None else f"{len(shard.active):,}"
        for number, table in enumerate(shard.tables):
            first = (shard.shard, slots) if number == 0 else ("", "")
            waiting = f"{table.waiting:,}" if table.waiting else ""
            rows.append((*first, table.table, f"{table.rows:,}", waiting, f"{table.checksum:016x}"))
        if not shard.tables:
            rows.append((shard.shard, slots, "-", "-", "", "-"))
    if len(report.shards) > 1:
        for number, (name, (count, checksum)) in enumerate(report.totals().items()):
            rows.append(("all" if number == 0 else "", "", name, f"{count:,}", "", f"{checksum:016x}"))
    print_table(headers, rows, right=("slots", "rows", "waiting"))
    for fault in report.faults:
        out()
        out(_fault_text(fault))
        if fault.do:
            out(f"  {fault.do}")


def _fault_text(fault: Any) -> str:
    where = [f"shard {fault.shard}"]
    where += [f"table {fault.table}"] if fault.table else []
    if fault.slots.ranges:
        where.append(f"slot{'s' if len(fault.slots) > 1 else ''} {_shortened(str(fault.slots))}")
    text = f"{', '.join(where)}: {fault.what}"
    if fault.rows:
        text += f": {fault.rows:,} rows" if fault.rows > 1 else ": 1 row"
    return text + (f", such as {fault.example}" if fault.example else "")


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _conclude(report: Any, seconds: float) -> None:
    rows = sum(table.rows + table.waiting for shard in report.shards for table in shard.tables)
    looked = f"{rows:,} rows in {len(report.shards)} databases, {seconds:.1f} s"
    waiting = sum(shard.waiting for shard in report.shards)
    if waiting:
        say(f"{waiting:,} rows of slots that have moved await deletion by `shardctl rebalance finish`.")
    for shard in report.shards:
        if not shard.recorded:
            say(
                f"warning: shard {shard.shard}: its database doesn't say which fleet and shard it belongs to. Run "
                "`shardctl provision`, which records it."
            )
    if report.faults:
        say(f"{len(report.faults)} fault{'s' if len(report.faults) > 1 else ''}. {looked}.")
    else:
        say(f"Verified: every row is where its slot is active, and every slot is active once. {looked}.")


def _as_json(report: Any) -> dict[str, Any]:
    return {
        "verified": not report.faults,
        "rebalancing": report.rebalancing,
        "shards": [
            {
                "shard": shard.shard,
                "active_slots": None if shard.active is None else str(shard.active),
                "recorded": shard.recorded,
                "tables": [
                    {
                        "table": table.table,
                        "rows": table.rows,
                        "waiting": table.waiting,
                        "checksum": f"{table.checksum:016x}",
                    }
                    for table in shard.tables
                ],
            }
            for shard in report.shards
        ],
        "totals": {
            name: {"rows": rows, "checksum": f"{checksum:016x}"} for name, (rows, checksum) in report.totals().items()
        },
        "faults": [
            {
                "shard": fault.shard,
                "table": fault.table or None,
                "slots": str(fault.slots) or None,
                "rows": fault.rows,
                "example": fault.example or None,
                "what": fault.what,
                "do": fault.do,
            }
            for fault in report.faults
        ],
    }


class _Progress:
    """Which table is read: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, tables: int) -> None:
        self._tables, self._done, self._reported_at = tables, 0, time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TimeElapsedColumn(),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("", total=self._tables)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def next(self, shard: str, table: str) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=f"{shard}: {table}")
        elif time.monotonic() - self._reported_at > REPORT_AFTER_SECONDS:
            self._reported_at = time.monotonic()
            say(f"{self._done} of {self._tables} tables; now {table} of shard {shard}")
        self._done += 1
