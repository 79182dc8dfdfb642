"""Serving under the gateway's own signals, drain and logs."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardctl.errors import UsageError
from shardctl.fleet.settings.gateway import OPEN
from shardctl.fleet.spec import Fleet
from shardctl.gateway.app import application
from shardctl.gateway.auth import ApiKeyAuth, Authenticator, authenticator_of
from shardctl.gateway.context import GatewayContext
from shardctl.gateway.pubsub import connect
from shardctl.gateway.ratelimit import Buckets
from shardctl.serving.server import Server, stop_on_signals
from shardctl.serving.sockets import BACKLOG, bind, is_loopback, shown
from shardctl.supervision import logs
from shardctl.supervision.background import Background

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
    _refuse_if_open(fleet, options)
    topics = connect(fleet, os.environ.get("PUBSUB_EMULATOR_HOST"))
    try:
        context = GatewayContext(fleet, topics, _authenticator(fleet, options), database_urls=_database_urls(fleet))
        listening = bind(options.host, options.port, "writes", "Free the port, or take another with --port.")
        at_terminal = sys.stderr.isatty()
        logs.configure(context.settings.log_level, logs.PlainFormatter() if at_terminal else log_formatter(fleet))
        async with Background(log) as beside:
            beside.keep("the watch on Pub/Sub", context.watch)
            if isinstance(context.authenticator, ApiKeyAuth):
                beside.keep("the watch on the clients' keys", context.authenticator.watch)
            _spare_the_collector()
            _warn_if_open(fleet, options)
            server = Server(application(context), drain_seconds=int(context.settings.drain_timeout.total_seconds()))
            stop_on_signals(server, lambda: _stopping(context))
            listening.listen(BACKLOG)  # a client that connects now waits for an instant
            host, port = listening.getsockname()[:2]
            log.info("serving http://%s:%d", shown(host), port, extra={"action": "started"})
            await server.serve_on(listening)
            log.info("stopped", extra={"action": "stopped"})
            if context.outcomes is not None:
                context.outcomes.close()
    finally:
        await topics.close()


def _database_urls(fleet: Fleet) -> Mapping[str, str]:
    """Of each shard, where clients may ask what became of their writes. Raises UsageError naming what lacks."""
    if fleet.gateway is None or fleet.gateway.outcomes is None:
        return {}
    from shardctl.fleet.topology import database_url_variable

    variables = {shard.name: database_url_variable(shard) for shard in fleet.shards}
    if missing := [variable for variable in variables.values() if not os.environ.get(variable)]:
        raise UsageError(
            f"gateway.outcomes needs each shard's database URL: set {', '.join(missing)}, or leave outcomes out of the file."
        )
    return {name: os.environ[variable] for name, variable in variables.items()}


def log_formatter(fleet: Fleet) -> logs.JsonFormatter:
    return logs.JsonFormatter(fleet.project, f"{fleet.fleet}-gateway", fleet=fleet.fleet)


def _refuse_if_open(fleet: Fleet, options: Options) -> None:
    """Raise UsageError where other machines could write without the file allowing it."""
    if fleet.gateway is None and not is_loopback(options.host):
        raise UsageError(
            f"shards.yaml has no gateway, and --host {options.host} can be reached from other machines: anybody could write. "
            "Say who may write with gateway.auth (`auth: none` is everybody), or listen on 127.0.0.1."
        )


def _warn_if_open(fleet: Fleet, options: Options) -> None:
    if fleet.gateway is not None and fleet.gateway.auth.kind == "none" and not is_loopback(options.host):
        log.warning(
            "gateway.auth is none: everybody who reaches %s can write",
            options.host or "this machine",
            extra={"action": "open_door"},
        )


def _stopping(context: GatewayContext) -> None:
    log.info("stopping: requests in progress are finished", extra={"action": "stopping"})
    context.stop()


def _spare_the_collector() -> None:
    """Writes in flight are many objects without cycles: scanning them repeatedly would cost more than everything else."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_AFTER_OBJECTS, 10, 50)


def _authenticator(fleet: Fleet, options: Options) -> Authenticator:
    return authenticator_of(fleet.gateway or OPEN, options.keys_file, Buckets(time.monotonic))
