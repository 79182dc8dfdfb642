"""`shardctl gateway`: the HTTP write API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from shardctl.cli.terminal import DEFAULT_FILE, FileOption
from shardctl.errors import EXIT_DONE


def gateway(
    file: FileOption = DEFAULT_FILE,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0 takes any free port.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option("--keys", metavar="FILE", help="The clients' keys, where gateway.auth is keys.")
    ] = None,
) -> int:
    """Accept writes over HTTP: POST /v1/writes/TYPE answers 202 once Pub/Sub has the write. Until Ctrl-C."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC logs by itself when Pub/Sub is unavailable for a moment
    from shardctl.fleet.load import load_fleet
    from shardctl.gateway.server import Options, run

    run(load_fleet(file), Options(host, port, keys))
    return EXIT_DONE
