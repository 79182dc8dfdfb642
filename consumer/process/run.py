"""One replica as a process: its parts wired together, its signals, its end."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from consumer.database import sessions
from consumer.delivery import read_anew
from consumer.intake.pull import Intake
from consumer.leader.candidate import identity_of, leadership_of, lease_of
from consumer.leader.turns import AlwaysActive, LeaderLoop
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.observability.tracing import Traces
from consumer.process import collector
from consumer.process.settings import Settings, load
from consumer.process.startup import Startup
from consumer.pubsub import calls
from consumer.pubsub.deadletters import DeadLetterTopic
from consumer.pubsub.publishing import Again
from consumer.redis.breaker import RedisBreaker
from consumer.redis.client import Logins, connect
from consumer.redis.discovery import directory_of
from consumer.redis.lock import SlotLocks
from consumer.redis.ratelimit import RateLimit
from consumer.redis.seenfilter import SeenFilter
from consumer.redis.suspects import Suspects
from consumer.replica.handle import Handler
from consumer.replica.lifecycle import LEAST_SECONDS, NotDrainedError, Replica
from consumer.replica.maintenance import Maintenance, NotEndedError
from consumer.sinks.base import Sink
from consumer.sinks.http import sink_for
from consumer.sinks.router import sink_of
from consumer.sinks.sql import SqlSink
from consumer.store.fence import Fence
from consumer.store.sweep import Retention
from consumer.store.term import Term
from consumer.store.transaction import Store
from shardctl.errors import EXIT_DONE, ShardctlError
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.shard.membership import Membership
from shardctl.supervision import logs
from shardctl.supervision.background import Background
from shardctl.supervision.signals import on_end_signals

if TYPE_CHECKING:
    from consumer.intake.push.intake import PushIntake
    from shardctl.outbox.relay import Relay


log = logging.getLogger("consumer")


def run(path: Path) -> int:
    """Serve by the settings in a file until a signal; the exit code."""
    try:
        settings = load(path)
        config = settings.config
        logs.configure(config.consumer.log_level, log_formatter(settings))
        asyncio.run(serve(settings))
    except ShardctlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (NotDrainedError, NotEndedError) as error:
        log.warning("stopped: %s", error, extra={"action": "stopped"})
        logging.shutdown()
        os._exit(EXIT_DONE)  # a thread still waits for the database, and a usual end would wait for the thread
    return EXIT_DONE


def log_formatter(settings: Settings) -> logs.JsonFormatter:
    config = settings.config
    labels = {"fleet": config.fleet, "shard": config.shard, "replica": settings.replica}
    return logs.JsonFormatter(config.project, f"{config.fleet}-consumer", **labels)


async def serve(settings: Settings) -> None:
    """Returns once all is drained. Raises UsageError where it can't begin, NotDrainedError and NotEndedError at the end."""
    config, metrics, stop = settings.config, Metrics(), asyncio.Event()
    async with AsyncExitStack() as closing:
        threads = ThreadPoolExecutor(config.consumer.concurrency + 1, thread_name_prefix="store")
        shard = _shard(settings, metrics, stop, closing)
        closing.callback(threads.shutdown, wait=False, cancel_futures=True)
        shared = _shared(settings, metrics, closing)

        presence = functools.partial(
            shard.store.report_presence, settings.replica, [generation.number for generation in config.generations]
        )
        startup = Startup((*shard.checks, presence), threads, metrics)
        new_replica = _replicas(settings, shard, shared, threads, metrics, stop, closing)
        life = _life(settings, shard, shared, new_replica, threads, metrics, closing)
        maintenance = Maintenance(
            shard.store,
            functools.partial(read_anew, check=shard.sink.check, config=config),
            shared.redis,
            shared.gate,
            shared.prefix,
            Retention(int(config.inbox_retention.total_seconds()), int(config.letter_retention.total_seconds())),
            threads,
            metrics,
            presence,
            lambda: life.writing,
        )

        def why_not_ready() -> str | None:
            return startup.waiting_for or life.why_not_ready

        metrics.ready.set_function(lambda: float(why_not_ready() is None))
        health = Health(settings.host, settings.port, metrics, why_not_ready)
        closing.callback(health.close)
        on_end_signals(stop.set)
        collector.release()
        log.info("serving %s on port %s", _subscriptions(config), health.port, extra={"action": "started"})
        await _live(stop, startup, life, maintenance, health, shard.relay)
    log.info("stopped", extra={"action": "stopped"})


@dataclass(frozen=True, slots=True)
class _Shard:
    """The shard's database, and what writes there and elsewhere."""

    store: Store
    sink: Sink
    term: Term | None  # where one replica leads
    relay: Relay | None  # of what the sinks emit
    identity: str  # of this process among those that may lead
    checks: tuple[Callable[[], None], ...]  # of the tables and the server, before the first message


def _shard(settings: Settings, metrics: Metrics, stop: asyncio.Event, closing: AsyncExitStack) -> _Shard:
    config = settings.config
    dialect = sessions.dialect_of(settings.database_url)
    whose = Membership(config.fleet, config.shard)
    engine = sessions.engine_of(settings.database_url, config.consumer, settings.database_login, whose)
    closing.callback(engine.dispose)
    http = sink_for(config, metrics, stop.is_set)
    if http:
        closing.callback(http.close)
    sink = sink_of(SqlSink(dialect, config.message_types), config.message_types, http)
    identity = identity_of(settings.replica)
    term = None if config.leader.kind == "none" else Term(engine, dialect, identity)
    store = Store(engine, dialect, Fence(dialect), sink, term)
    checks = (
        store.check_tables,
        functools.partial(sessions.check_packets, engine, dialect),
        functools.partial(sessions.check_keys, engine, dialect, config.message_types),
        functools.partial(sessions.check_storage, engine, dialect, config.message_types),
        functools.partial(sessions.check_columns, engine, dialect, config.message_types),
    )
    relay = None
    if config.emitted_types:
        from consumer.process.events import relay_of

        relay = relay_of(settings, engine, metrics, closing)
    return _Shard(store, sink, term, relay, identity, checks)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the shard's replicas share in Redis, while it is there."""

    redis: Redis
    gate: RedisBreaker
    prefix: str  # of every key


def _redis_logins(settings: Settings) -> Logins | None:
    if not settings.config.redis_iam:
        return settings.redis_logins
    from consumer.redis.iam import logins_of_this_process  # Google's credentials take long to load

    return logins_of_this_process()


def _shared(settings: Settings, metrics: Metrics, closing: AsyncExitStack) -> _Shared:
    config = settings.config
    redis = connect(
        settings.redis_url,
        config.consumer.redis_timeout_ms / 1000,
        directory_of(config),
        logins=_redis_logins(settings),
        sentinel_logins=settings.sentinel_logins,
    )
    closing.push_async_callback(redis.aclose)
    return _Shared(redis, RedisBreaker(time.monotonic, metrics), config.redis_prefix)


def _replicas(
    settings: Settings,
    shard: _Shard,
    shared: _Shared,
    threads: ThreadPoolExecutor,
    metrics: Metrics,
    stop: asyncio.Event,
    closing: AsyncExitStack,
) -> Callable[[], Replica]:
    """The factory of replicas: one for each time that this process begins to write. Raises UsageError."""
    config, redis, gate, prefix = settings.config, shared.redis, shared.gate, shared.prefix
    limit = config.consumer.rate_limit
    pace = RateLimit(redis, gate, prefix, limit, config.replicas, time.monotonic, stop) if limit else None
    locks = SlotLocks(redis, gate, prefix, int(config.consumer.lock_ttl.total_seconds() * 1000), metrics)
    recent = SeenFilter(redis, gate, prefix, time.time)
    new_intake = _intakes(settings, metrics, Suspects(redis, gate, prefix))
    outlets = _outlets(settings)
    traces = Traces(config, config.tracing.endpoint, settings.replica) if config.tracing else None
    if traces:
        closing.callback(traces.close)

    def new_replica() -> Replica:
        intake = new_intake()
        handler = Handler(
            locks, shard.store, *outlets, intake, threads, metrics, recent=recent, pace=pace, traces=traces
        )
        return Replica(config, shard.sink, intake, handler, metrics, time.monotonic)

    return new_replica


def _life(
    settings: Settings,
    shard: _Shard,
    shared: _Shared,
    new_replica: Callable[[], Replica],
    threads: ThreadPoolExecutor,
    metrics: Metrics,
    closing: AsyncExitStack,
) -> AlwaysActive | LeaderLoop:
    """When this process writes: always, or while it leads."""
    if shard.term is None:
        return AlwaysActive(new_replica)
    lease = lease_of(settings.config, shard.identity, shared.redis)
    closing.push_async_callback(lease.close)
    return LeaderLoop(new_replica, leadership_of(lease, settings.config.leader), shard.term, threads, metrics)


async def _live(
    stop: asyncio.Event,
    startup: Startup,
    life: AlwaysActive | LeaderLoop,
    maintenance: Maintenance,
    health: Health,
    relay: Relay | None = None,
) -> None:
    async with Background(log, stop) as beside:
        beside.need("heartbeat", _beat(health))
        beside.need("collector", collector.sweep())
        ending = [beside.need("maintenance", maintenance.run(stop))]
        await startup.wait(stop)
        if relay:
            ending.append(beside.need("the relay of the outbox", relay.run(lambda: life.writing)))
        await life.run(stop)
        if relay:
            relay.stop()  # after the last batch, which may have emitted
        if (await asyncio.wait(ending, timeout=LEAST_SECONDS))[1]:
            raise NotEndedError


def _intakes(settings: Settings, metrics: Metrics, suspects: Suspects) -> Callable[[], Intake | PushIntake]:
    """The factory of intakes: one for each time that this process begins to read. Raises UsageError."""
    config = settings.config
    if config.delivery.kind == "push":
        from consumer.intake.push.endpoint import endpoint_of
        from consumer.intake.push.intake import PushIntake

        endpoint = endpoint_of(config, settings.host, settings.push_port, settings.push_keys_url, metrics)
        return lambda: PushIntake(config, endpoint, time.monotonic, metrics)
    subscriber = calls.subscriber(settings.pubsub_emulator, config.pubsub_endpoint)
    return lambda: Intake(subscriber, config, time.monotonic, metrics, suspects=suspects)


def _outlets(settings: Settings) -> tuple[DeadLetterTopic, Again]:
    publisher = calls.publisher(settings.pubsub_emulator, settings.config.pubsub_endpoint)
    return DeadLetterTopic(publisher, settings.config), Again(publisher, settings.config)


def _subscriptions(config: ShardConfig) -> str:
    return ", ".join(name for generation in config.generations for name in generation.subscriptions)


async def _beat(health: Health) -> None:
    while True:
        health.beat()
        await asyncio.sleep(1)
