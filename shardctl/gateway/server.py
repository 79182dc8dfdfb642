"""Serving: uvicorn under the gateway's own signals, drain and logs."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from shardctl.background import Background
from shardctl.errors import UsageError
from shardctl.gateway import logs
from shardctl.gateway.app import application
from shardctl.gateway.auth import ByKey, Door, door
from shardctl.gateway.desk import Desk
from shardctl.gateway.pubsub import connect
from shardctl.gateway.ratelimit import Buckets
from shardctl.settings.gateway import OPEN
from shardctl.spec import Fleet

KEEP_ALIVE_SECONDS = (
    620  # longer than Google's load balancers keep a connection, or they would send into one that closes
)
BACKLOG = 2_048
GC_AFTER_OBJECTS = 50_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """`port` 0 takes any free one; `keys_file` holds the clients' keys where `gateway.auth` asks for them."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys_file: Path | None = None


def run(fleet: Fleet, options: Options) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises UsageError where it can't begin."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(fleet, options))


async def _serve(fleet: Fleet, options: Options) -> None:
    _refuse_the_open_door(fleet, options)
    topics = connect(fleet, os.environ.get("PUBSUB_EMULATOR_HOST"))
    try:
        desk = Desk(fleet, topics, _door(fleet, options))
        listening = _listen(options)
        logs.configure(desk.settings.log_level, fleet=fleet.fleet)
        async with Background(log) as beside:
            beside.keep("the watch on Pub/Sub", desk.watch)
            if isinstance(desk.door, ByKey):
                beside.keep("the watch on the clients' keys", desk.door.watch)
            _spare_the_collector()
            _warn_of_the_open_door(fleet, options)
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            log.info("serving http://%s:%d", shown, port, extra={"action": "started"})
            await _Server(_config(desk), desk).serve([listening])
            log.info("stopped", extra={"action": "stopped"})
    finally:
        await topics.close()


def _refuse_the_open_door(fleet: Fleet, options: Options) -> None:
    """Raise UsageError where other machines could write and nobody has said that they may."""
    if fleet.gateway is None and not _is_loopback(options.host):
        raise UsageError(
            f"shards.yaml has no gateway, and --host {options.host} can be reached from other machines: anybody could write. "
            "Say who may write with gateway.auth (`auth: none` is everybody), or listen on 127.0.0.1."
        )


def _warn_of_the_open_door(fleet: Fleet, options: Options) -> None:
    if fleet.gateway is not None and fleet.gateway.auth.kind == "none" and not _is_loopback(options.host):
        log.warning(
            "gateway.auth is none: whoever reaches %s can write",
            options.host or "this machine",
            extra={"action": "open_door"},
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _spare_the_collector() -> None:
    """Writes in flight are many objects without cycles: looking them over again and again would cost more than the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_AFTER_OBJECTS, 10, 50)


def _door(fleet: Fleet, options: Options) -> Door:
    return door(fleet.gateway or OPEN, options.keys_file, Buckets(time.monotonic))


def _listen(options: Options) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]
        raise UsageError(
            f"can't listen on {options.host}:{options.port}: {why}. Free the port, or take another with --port."
        ) from error


def _config(desk: Desk) -> uvicorn.Config:
    return uvicorn.Config(
        application(desk),
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(desk.settings.drain_timeout.total_seconds()),
    )


class _Server(uvicorn.Server):
    """Ends on SIGTERM and SIGINT as a program that did its work. The first signal lets requests end, the second doesn't."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        if not self.force_exit:
            log.info("stopping: requests under way are finished", extra={"action": "stopping"})
            self._desk.stop()
