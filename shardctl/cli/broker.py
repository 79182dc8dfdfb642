"""`shardctl broker`: the embedded Pub/Sub alone."""

from __future__ import annotations

from typing import Annotated

import typer

from shardctl.errors import EXIT_DONE


def broker(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0 takes any free port.")] = 8085,
) -> int:
    """Run an in-memory Pub/Sub that applies filters, until Ctrl-C. Nothing is kept."""
    import asyncio

    from shardctl.broker import serve

    asyncio.run(serve(host, port))
    return EXIT_DONE
