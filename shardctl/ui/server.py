"""Serve the page until it is stopped."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from shardctl.serving.limits import Limits
from shardctl.serving.server import Server, stop_on_signals
from shardctl.serving.sockets import BACKLOG, bind, shown
from shardctl.ui.access import EVERYWHERE
from shardctl.ui.app import application
from shardctl.ui.view import View

GRACE_SECONDS = 2
LIMITS = Limits(keep_alive_seconds=5)


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address; port 0 takes a free one. Raises UsageError."""
    bound = bind(host, port, "the page", "Take another --port; 0 takes a free one.")
    bound.listen(BACKLOG)
    return bound


def address(listening: socket.socket, host: str) -> str:
    """The address that a browser on this machine opens."""
    reached = "127.0.0.1" if host in EVERYWHERE else host
    return f"http://{shown(reached)}:{listening.getsockname()[1]}/"


def serve(view: View, token: str, host: str, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Until Ctrl-C or SIGTERM; `ready` is called before."""

    async def run() -> None:
        server = Server(application(view, token, host), LIMITS, GRACE_SECONDS)
        stop_on_signals(server)
        ready()  # the socket listens already: a client that connects now waits for an instant
        await server.serve_on(listening)

    asyncio.run(run())
