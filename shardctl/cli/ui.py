"""`shardctl ui`: the fleet on a page in the browser."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from shardctl.cli.provision import DatabaseOption
from shardctl.cli.status import PrometheusOption, collector_of
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, out, say
from shardctl.errors import EXIT_DONE

DEFAULT_PORT = 8642
TOKEN_BYTES = 32


def ui(
    file: FileOption = DEFAULT_FILE,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Where to listen. Off loopback, other machines may connect.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65_535, help="0 takes a free one.")
    ] = DEFAULT_PORT,
    prometheus: PrometheusOption = None,
    database: DatabaseOption = None,
) -> int:
    """Serve a page that shows the fleet: shards, slots, a rebalance, dead letters and parked keys. Until Ctrl-C."""
    from shardctl.serving.sockets import is_loopback
    from shardctl.ui import server
    from shardctl.ui.view import View

    of_file, collector = collector_of(file, prometheus, database)
    listening = server.listen(host, port)
    token = secrets.token_urlsafe(TOKEN_BYTES)

    def ready() -> None:
        if not is_loopback(host):
            say(
                f"warning: anyone who can reach {host} and has the address below may replay dead letters and parked keys, and "
                "the connection isn't encrypted. A tunnel to 127.0.0.1 is safer."
            )
        out(f"{server.address(listening, host)}#{token}", flush=True)
        say("Open that address: the part after # is the token, valid until Ctrl-C.")

    try:
        server.serve(View(collector, of_file), token, host, listening, ready)
    finally:
        listening.close()
        collector.close()
    return EXIT_DONE
