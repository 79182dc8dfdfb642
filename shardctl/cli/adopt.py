"""`shardctl adopt`: gives slots to the rows of tables that are older than the fleet."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from shardctl.cli.provision import DatabaseOption, given_urls
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, YesOption, print_json, print_table, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED


def adopt(
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> int:
    """Give slots to the rows of tables that are older than the fleet, while others write. Safe to run again."""
    from shardctl import audit
    from shardctl.fleet.load import load_fleet
    from shardctl.provision import database_urls
    from shardctl.shard import database as databases
    from shardctl.verification import adopt as work

    fleet = load_fleet(file)
    urls = database_urls(fleet, given_urls(database or ()), os.environ, "the rows of each shard are read")
    with databases.connected(fleet.fleet, urls) as engines:
        tables = list(_tables(fleet))
        adoptions = [
            adoption
            for shard, kind in tables
            if (adoption := work.survey(engines[shard.name], shard.name, kind, fleet.routing.rule, shard.slots))
        ]
        _tell(adoptions, as_json=as_json)
        _tell_absent(adoptions, tables)
        if error := _error_of(adoptions):
            say(f"error: {error}")
            return EXIT_REFUSED
        lacking = {
            (adoption.shard, adoption.table): adoption
            for adoption in adoptions
            if adoption.lacks_column or adoption.without_slot
        }
        if not lacking:
            say(f"every row of {len(adoptions)} tables has its slot.")
            _tell_rest(work, adoptions, engines, tables)
            return EXIT_DONE
        if not yes:
            say("Nothing was done. `shardctl adopt --yes` adds the slot columns and fills them, while others write.")
            return EXIT_REFUSED
        audit.begin(
            "adopt",
            fleet.fleet,
            rows={f"{shard} {table}": adoption.without_slot for (shard, table), adoption in lacking.items()},
        )
        for shard, kind in tables:
            adoption = lacking.get((shard.name, kind.table))
            if adoption is None:
                continue
            if adoption.lacks_column:
                work.add_column(engines[shard.name], kind)
            with _Progress(f"{shard.name} {kind.table}", adoption.rows) as bar:
                given = work.give_slots(engines[shard.name], kind, fleet.routing.rule, bar)
            say(f"shard {shard.name}, table {kind.table}: {given:,} rows received their slots.")
        _tell_rest(work, adoptions, engines, tables)
    return EXIT_DONE


def _tables(fleet: Any) -> Any:
    """Each shard with each of its tables once."""
    for shard in fleet.shards:
        seen = set()
        for name, kind in fleet.message_types.items():
            if kind.table and shard.takes(name) and kind.table not in seen:
                seen.add(kind.table)
                yield shard, kind


def _error_of(adoptions: list[Any]) -> str:
    """Why the rows can't be adopted; nothing where they can."""
    if not adoptions:
        return "none of the tables exists, so nothing was checked. Is each URL the right database?"
    if all(adoption.fit for adoption in adoptions):
        return ""
    return (
        "the rows can't be adopted as they are. `elsewhere` counts rows on a shard whose slots don't hold them: did "
        "routing.modulo choose the databases, and is each URL the right one? `no slot` counts rows whose key isn't what "
        "shards.yaml says."
    )


def _tell(adoptions: list[Any], *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(adoption) for adoption in adoptions])
        return
    numbers = ("rows", "without", "elsewhere", "no slot")
    rows = [
        (
            adoption.shard,
            adoption.table,
            "missing" if adoption.lacks_column else "there",
            *(f"{count:,}" for count in (adoption.rows, adoption.without_slot, adoption.elsewhere, adoption.unknown)),
        )
        for adoption in adoptions
    ]
    print_table(("shard", "table", "slot column", *numbers), rows, right=numbers)


def _tell_absent(adoptions: list[Any], tables: list[Any]) -> None:
    present = {(adoption.shard, adoption.table) for adoption in adoptions}
    for shard, kind in tables:
        if (shard.name, kind.table) not in present:
            say(f"shard {shard.name} has no table {kind.table}: it was not checked.")


def _tell_rest(work: Any, adoptions: list[Any], engines: dict[str, Any], tables: list[Any]) -> None:
    """Show what remains for an operator: it may lock the table for a while, or must wait for the last old writer."""
    wanting = {
        (adoption.shard, adoption.table) for adoption in adoptions if adoption.lacks_column or adoption.lacks_index
    }
    statements = [
        f"  {shard.name}: {statement}"
        for shard, kind in tables
        if (shard.name, kind.table) in wanting
        for statement in work.finishing(engines[shard.name], kind)
    ]
    if statements:
        say("When no writer leaves rows without a slot any more, and `shardctl adopt` finds none, run:")
        for line in statements:
            say(line)


class _Progress:
    """A progress bar on a terminal; elsewhere nothing."""

    def __init__(self, what: str, rows: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(what, total=rows)

    def __enter__(self) -> Any:
        self._progress.start()
        return lambda rows: self._progress.advance(self._task, rows)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
