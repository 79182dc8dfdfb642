"""A relay as a process: its database, its probes, its signals, its end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shardctl.errors import UsageError
from shardctl.fleet.spec import Fleet
from shardctl.outbox.metrics import OutboxMetrics
from shardctl.outbox.queue import LIMITS, Queue
from shardctl.outbox.relay import Relay, Step
from shardctl.relay.topics import FleetTopics
from shardctl.serving.server import Server
from shardctl.serving.sockets import BACKLOG, bind, shown
from shardctl.shard import databaseurl
from shardctl.shard.engine import PRODUCTS, open_engine
from shardctl.supervision import logs
from shardctl.supervision.background import Background
from shardctl.supervision.signals import on_end_signals

VARIABLE = "SHARDCTL_OUTBOX_DATABASE_URL"
DRAIN_SECONDS = 1  # of probes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """`port` 0 takes any free one."""

    host: str = "127.0.0.1"
    port: int = 9090


def database_of(environment: Mapping[str, str]) -> Engine:
    """The application's database, by an environment variable or the file that it names. Raises UsageError."""
    text, file = environment.get(VARIABLE), environment.get(f"{VARIABLE}_FILE")
    if text and file:
        raise UsageError(f"{VARIABLE} and {VARIABLE}_FILE are both set: unset one.")
    if file:
        try:
            text = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{VARIABLE}_FILE: {file} can't be read: {error}") from error
        if not text:
            raise UsageError(f"{VARIABLE}_FILE: {file} is empty. Write the URL of the outbox's database into it.")
    if not text:
        raise UsageError(
            f"neither {VARIABLE} nor {VARIABLE}_FILE is set. One of them names the database that holds the outbox, such as "
            "postgresql://user:password@host:5432/name."
        )
    try:
        url = databaseurl.parse(text)
    except databaseurl.DatabaseUrlError as error:
        raise UsageError(f"{VARIABLE}: {error}") from None  # the text holds a password
    if url.get_backend_name() not in PRODUCTS:
        raise UsageError(
            f"{VARIABLE}: no support for {url.get_backend_name()!r} databases; there is: {', '.join(PRODUCTS)}"
        )
    return open_engine(url, LIMITS, connections=1)


def run(fleet: Fleet, engine: Engine, options: Options) -> None:
    """Relay until SIGTERM or SIGINT; the turn under way ends first. Raises UsageError where it can't begin."""
    asyncio.run(_serve(fleet, engine, options))


def run_once(fleet: Fleet, engine: Engine, patience_seconds: float) -> Step:
    """Publish what waits; see `Relay.drain`. A signal ends it after the turn under way."""

    async def drain() -> Step:
        async with _relay(fleet, engine, OutboxMetrics(CollectorRegistry())) as relay:
            on_end_signals(relay.stop)
            return await relay.drain(patience_seconds)

    _log(fleet)
    return asyncio.run(drain())


async def _serve(fleet: Fleet, engine: Engine, options: Options) -> None:
    registry, stop = CollectorRegistry(), asyncio.Event()
    listening = bind(options.host, options.port, "probes and metrics", "Free the port, or take another with --port.")
    _log(fleet)
    async with _relay(fleet, engine, OutboxMetrics(registry)) as relay, Background(log, stop) as beside:
        server = Server(_probes(registry, lambda: relay.waiting_for), drain_seconds=DRAIN_SECONDS)
        listening.listen(BACKLOG)
        serving = beside.need("probes", server.serve_on(listening))
        host, port = listening.getsockname()[:2]
        on_end_signals(lambda: _end(stop, relay))
        log.info(
            "relaying %s; probes and metrics on http://%s:%d",
            engine.url.render_as_string(hide_password=True),
            shown(host),
            port,
            extra={"action": "started"},
        )
        await relay.run()
        server.stop()
        await serving
    log.info("stopped", extra={"action": "stopped"})


def _end(stop: asyncio.Event, relay: Relay) -> None:
    log.info("stopping: the writes under way are finished", extra={"action": "stopping"})
    stop.set()
    relay.stop()


@asynccontextmanager
async def _relay(fleet: Fleet, engine: Engine, metrics: OutboxMetrics) -> AsyncIterator[Relay]:
    topics, threads = FleetTopics(fleet, os.environ.get("PUBSUB_EMULATOR_HOST")), ThreadPoolExecutor(1, "outbox")
    try:
        yield Relay(Queue(engine, fleet.routing.attributes.partition_key), topics, threads, metrics)
    finally:
        threads.shutdown()
        await topics.close()
        engine.dispose()


def _log(fleet: Fleet) -> None:
    plain = sys.stderr.isatty()
    json = logs.JsonFormatter(fleet.project, f"{fleet.fleet}-relay", fleet=fleet.fleet)
    logs.configure("info", logs.PlainFormatter() if plain else json)


def _probes(registry: CollectorRegistry, why_not_ready: Callable[[], str | None]) -> Starlette:
    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        why_not = why_not_ready()
        return PlainTextResponse("ready\n") if why_not is None else PlainTextResponse(f"not ready: {why_not}\n", 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    return Starlette(routes=[Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)])
