"""`shardctl status`: the state of the fleet, once or repeatedly."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardctl.cli.provision import DatabaseOption, given_urls
from shardctl.cli.stdout import reader_left
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, out, print_json, print_table, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED

if TYPE_CHECKING:
    from shardctl.status.collector import Collector, FleetFile

PrometheusOption = Annotated[
    str | None,
    typer.Option(
        "--prometheus",
        metavar="URL",
        envvar="SHARDCTL_PROMETHEUS",
        help="What scrapes the consumers: a Prometheus server, or Google Cloud's managed one, "
        "https://monitoring.googleapis.com/v1/projects/P/location/global/prometheus.",
    ),
]


def status(
    file: FileOption = DEFAULT_FILE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat until Ctrl-C.")] = False,
    prometheus: PrometheusOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show each shard's backlog, rates, batches, lock waits, dead letters, and what is wrong."""
    of_file, collector = collector_of(file, prometheus, database)
    try:
        if watch:
            return _watch(collector, of_file, as_json=as_json)
        report = collector.look(of_file.fleet()).report
        if collector.sources.local and any(shard.work.replicas for shard in report.shards):
            time.sleep(collector.sources.pace_seconds)  # a rate needs two looks
            report = collector.look(of_file.fleet()).report
    finally:
        collector.close()
    _show(report, as_json=as_json)
    if report.nothing:
        say("nothing is known: no source of this fleet can be reached from here.")
    return EXIT_REFUSED if report.nothing else EXIT_DONE


def collector_of(file: Path, prometheus: str | None, database: Sequence[str] | None) -> tuple[FleetFile, Collector]:
    """The file, and what collects its fleet's state. Raises UsageError where `--database` names a shard that the file lacks."""
    from shardctl.status.collector import Collector, FleetFile, sources

    of_file, given = FleetFile(file), given_urls(database or ())
    for name in given:
        of_file.fleet().shard(name)
    return of_file, Collector(sources(given, prometheus))


def _show(report: Any, *, as_json: bool) -> None:
    from shardctl.status import drawing

    if as_json:
        print_json(drawing.as_json(report))
        return
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(drawing.table(report))
        return
    print_table(drawing.HEADERS, [drawing.cells(shard) for shard in report.shards], right=drawing.HEADERS[1:])
    for text, _ in drawing.below(report):
        out(text)


def _watch(collector: Collector, of_file: FleetFile, *, as_json: bool) -> int:
    """Redrawn on a terminal; elsewhere one line for each look, with --json one object a line."""
    from rich.console import Console
    from rich.live import Live

    from shardctl.status.drawing import as_json as report_json
    from shardctl.status.drawing import line, table

    try:
        if as_json or not sys.stdout.isatty():
            fault = ""
            while not reader_left():
                report = collector.look(of_file.fleet()).report
                if of_file.fault != fault and (fault := of_file.fault):
                    say(f"warning: the file isn't followed any more: {fault}")
                out(
                    json.dumps(report_json(report)) if as_json else f"{time.strftime('%H:%M:%S')}  {line(report)}",
                    flush=True,
                )
                time.sleep(collector.sources.pace_seconds)
            return EXIT_DONE
        with Live(console=Console(highlight=False), auto_refresh=False) as live:
            while True:
                report = collector.look(of_file.fleet()).report
                foot = (f"{time.strftime('%H:%M:%S')}   Ctrl-C ends it", of_file.fault)
                live.update(table(report, *filter(None, foot)), refresh=True)
                time.sleep(collector.sources.pace_seconds)
    except KeyboardInterrupt:  # the intended end
        return EXIT_DONE
