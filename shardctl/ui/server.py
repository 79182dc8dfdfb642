"""Serving the page with uvicorn until somebody ends it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from shardctl.errors import UsageError
from shardctl.ui.app import application
from shardctl.ui.guard import LOOPBACK
from shardctl.ui.view import View

GRACE_SECONDS = 2


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address; port 0 takes a free one. Raises UsageError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"can't listen on {host}:{port} ({reason}). Take another --port; 0 takes a free one."
        ) from error


def address(listening: socket.socket, host: str) -> str:
    """What a browser on this machine opens."""
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{listening.getsockname()[1]}/"


def is_loopback(host: str) -> bool:
    return host in LOOPBACK


def serve(view: View, token: str, host: str, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Until Ctrl-C or SIGTERM; `ready` is called before. Raises KeyboardInterrupt then."""
    config = uvicorn.Config(
        application(view, token, host),
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    ready()  # the socket listens already: whoever comes now waits for an instant
    uvicorn.Server(config).run(sockets=[listening])
