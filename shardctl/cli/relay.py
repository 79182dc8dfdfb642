"""`shardctl relay`: what applications have enqueued goes to Pub/Sub."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from shardctl.cli.terminal import DEFAULT_FILE, FileOption, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED


def relay(
    file: FileOption = DEFAULT_FILE,
    once: Annotated[bool, typer.Option("--once", help="Publish what waits now, and end.")] = False,
    patience: Annotated[
        float,
        typer.Option(
            "--patience",
            metavar="S",
            min=0.0,
            max=86_400,
            help="With --once: give up after S seconds without progress.",
        ),
    ] = 60.0,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where probes and metrics listen.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0 takes any free port.")] = 9090,
) -> int:
    """Publish the writes that applications have stored in an outbox, in order. Several may run. Until Ctrl-C.

    SHARDCTL_OUTBOX_DATABASE_URL names the database that holds the outbox, or SHARDCTL_OUTBOX_DATABASE_URL_FILE a file
    with that URL.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC logs by itself when Pub/Sub is unavailable for a moment
    from shardctl.fleet.load import load_fleet
    from shardctl.relay import process

    fleet, engine = load_fleet(file), process.database_of(os.environ)
    if not once:
        process.run(fleet, engine, process.Options(host, port))
        return EXIT_DONE
    step = process.run_once(fleet, engine, patience)
    say(f"{step.published:,} published, {step.refused:,} refused.")
    if step.refused or step.behind or step.kept:
        behind = f", and {step.behind:,} later writes of their keys behind them" if step.behind else ""
        say(f"Refused writes are kept{behind}: `shardctl outbox list` shows them.")
    if step.waits:
        say(f"error: not all that waits could be published: {step.waits}. Run it again; nothing is lost.")
    return EXIT_REFUSED if step.refused or step.behind or step.kept or step.waits else EXIT_DONE
