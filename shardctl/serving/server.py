"""An HTTP server on the running event loop: uvicorn within bounds, whose end the caller decides."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from shardctl.serving.connection import READ_BYTES, Connection, Reader
from shardctl.serving.limits import Limits, connections_within
from shardctl.serving.room import Room
from shardctl.serving.sockets import BACKLOG
from shardctl.supervision.signals import on_end_signals


class Server(uvicorn.Server):
    """Serves an application until `stop`. Leaves signals alone; a process that wants them calls `stop_on_signals`."""

    def __init__(self, app: ASGIApp, limits: Limits | None = None, drain_seconds: int | None = None) -> None:
        """Requests in progress at `stop` have `drain_seconds`; None waits for all of them."""
        limits = limits or Limits()
        room = Room(connections_within(limits.connections))
        buffer = memoryview(bytearray(READ_BYTES))

        def protocol(**uvicorns: Any) -> asyncio.BaseProtocol:
            return Reader(Connection(room, limits, **uvicorns), buffer)

        super().__init__(
            uvicorn.Config(
                app,
                http=cast(Any, protocol),  # it wants a class, and calls it
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="error",  # clients could fill a log with unreadable requests
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=limits.keep_alive_seconds,
                timeout_graceful_shutdown=drain_seconds,
            )
        )

    @property
    def is_open(self) -> bool:
        return self.started and not self.should_exit

    async def serve_on(self, bound: socket.socket) -> None:
        """Returns once the last connection is gone."""
        await self.serve([bound])

    def stop(self, *, at_once: bool = False) -> None:
        """Accept no more connections, and end when the requests in progress are answered, or at once."""
        self.should_exit = True
        self.force_exit = self.force_exit or at_once

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def stop_on_signals(server: Server, stopping: Callable[[], None] = lambda: None) -> None:
    """Stop on SIGTERM and SIGINT. The first lets requests end, and calls `stopping`; the second doesn't wait for them."""

    def stop() -> None:
        again = server.should_exit
        server.stop(at_once=again)
        if not again:
            stopping()

    on_end_signals(stop)
