"""`shardctl adopt`: tables that were there before the fleet get their rows' slots."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated, Any

import typer

from shardctl.cli.provision import DatabaseOption, given_urls
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, print_json, print_table, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED


def adopt(
    file: FileOption = DEFAULT_FILE,
    database: DatabaseOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without it, only show what would be done.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Give the rows of tables that were there before the fleet their slots, while others write. Safe to run again."""
    from shardctl import audit
    from shardctl.fleet.load import load_fleet
    from shardctl.provision import database_urls
    from shardctl.shard import database as databases
    from shardctl.verification import adopt as work

    fleet = load_fleet(file)
    urls = database_urls(fleet, given_urls(database or ()), os.environ, "each shard's rows are looked at")
    with ExitStack() as opened:
        engines = {name: databases.connect(url) for name, url in urls.items()}
        for engine in engines.values():
            opened.callback(engine.dispose)
        tables = list(_tables(fleet))
        found = [
            each
            for shard, kind in tables
            if (each := work.survey(engines[shard.name], shard.name, kind, fleet.routing.rule, shard.slots))
        ]
        _tell(found, as_json=as_json)
        _tell_absent(found, tables)
        if not found:
            say("error: none of the tables is there, so nothing was looked at. Is each URL the right database?")
            return EXIT_REFUSED
        if not all(each.fit for each in found):
            say(
                "error: not as it is. `elsewhere` counts rows on a shard whose slots don't hold them: is routing.modulo what "
                "chose the databases, and is each URL the right one? `no slot` counts rows whose key isn't what shards.yaml says."
            )
            return EXIT_REFUSED
        lacking = [each for each in found if each.lacks_column or each.without_slot]
        if not lacking:
            say(f"every row of {len(found)} tables has its slot.")
            _tell_rest(work, found, engines, tables)
            return EXIT_DONE
        if not yes:
            say("Nothing was done. `shardctl adopt --yes` adds the slot columns and fills them, while others write.")
            return EXIT_REFUSED
        audit.begin("adopt", fleet.fleet, rows={f"{each.shard} {each.table}": each.without_slot for each in lacking})
        for shard, kind in tables:
            each = next((each for each in lacking if (each.shard, each.table) == (shard.name, kind.table)), None)
            if each is None:
                continue
            if each.lacks_column:
                work.add_column(engines[shard.name], kind)
            with _Progress(f"{shard.name} {kind.table}", each.rows) as bar:
                given = work.give_slots(engines[shard.name], kind, fleet.routing.rule, bar)
            say(f"shard {shard.name}, table {kind.table}: {given:,} rows were given their slots.")
        _tell_rest(work, found, engines, tables)
    return EXIT_DONE


def _tables(fleet: Any) -> Any:
    """Each shard with each of its tables once."""
    for shard in fleet.shards:
        seen = set()
        for name, kind in fleet.message_types.items():
            if kind.table and shard.takes(name) and kind.table not in seen:
                seen.add(kind.table)
                yield shard, kind


def _tell(found: list[Any], *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(each) for each in found])
        return
    numbers = ("rows", "without", "elsewhere", "no slot")
    rows = [
        (
            each.shard,
            each.table,
            "missing" if each.lacks_column else "there",
            *(f"{count:,}" for count in (each.rows, each.without_slot, each.elsewhere, each.unknown)),
        )
        for each in found
    ]
    print_table(("shard", "table", "slot column", *numbers), rows, right=numbers)


def _tell_absent(found: list[Any], tables: list[Any]) -> None:
    there = {(each.shard, each.table) for each in found}
    for shard, kind in tables:
        if (shard.name, kind.table) not in there:
            say(f"shard {shard.name} has no table {kind.table}: nothing of it was looked at.")


def _tell_rest(work: Any, found: list[Any], engines: dict[str, Any], tables: list[Any]) -> None:
    """What is left to a person: it may take a while alone with the table, or must wait for the last old writer."""
    wanting = {(each.shard, each.table) for each in found if each.lacks_column or each.lacks_index}
    told = [
        f"  {shard.name}: {statement}"
        for shard, kind in tables
        if (shard.name, kind.table) in wanting
        for statement in work.finishing(engines[shard.name], kind)
    ]
    if told:
        say("When nobody writes rows without a slot any more, and `shardctl adopt` finds none:")
        for line in told:
            say(line)


class _Progress:
    """A bar on a terminal; elsewhere nothing."""

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
