"""`shardctl broker`: the embedded Pub/Sub alone."""

from __future__ import annotations

from typing import Annotated

import typer

from shardctl.errors import EXIT_DONE

PORT, REST_PORT = 8085, 8086


def broker(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65_535, help="For gRPC clients. 0 takes any free port.")
    ] = PORT,
    rest_port: Annotated[
        int | None,
        typer.Option(
            "--rest-port",
            min=0,
            max=65_535,
            help="For REST clients and gcloud. 0 takes any free port. By default 8086 beside 8085, else any.",
        ),
    ] = None,
) -> int:
    """Run an in-memory Pub/Sub that applies filters, until Ctrl-C. Nothing is kept."""
    import asyncio

    from shardctl.broker import serve

    if rest_port is None:  # several brokers may run here
        rest_port = REST_PORT if port == PORT else 0
    asyncio.run(serve(host, port, rest_port=rest_port))
    return EXIT_DONE
