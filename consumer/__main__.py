"""`python -m consumer --config FILE`: wiring, signals, graceful drain."""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from consumer import database, logs, pubsub, redisbreaker
from consumer.deadletters import DeadLetterTopic
from consumer.delivery import read_anew
from consumer.fence import Fence
from consumer.handle import Handler
from consumer.health import Health
from consumer.intake import Intake
from consumer.leader.candidate import identity_of, leadership_of, lease_of
from consumer.leader.term import Term
from consumer.leader.turns import AlwaysActive, LeaderLoop
from consumer.lock import SlotLocks
from consumer.maintenance import Maintenance, NotEndedError
from consumer.metrics import Metrics
from consumer.publishing import Again
from consumer.push.intake import PushIntake
from consumer.ratelimit import RateLimit
from consumer.redisbreaker import RedisBreaker
from consumer.replica import LEAST_SECONDS, NotDrainedError, Replica
from consumer.seenfilter import SeenFilter
from consumer.settings import Settings, load
from consumer.sinks.http import sink_for
from consumer.sinks.router import sink_of
from consumer.sinks.sql import SqlSink
from consumer.startup import Startup
from consumer.store import Store
from consumer.suspects import Suspects
from consumer.tracing import Traces
from shardctl.errors import EXIT_DONE, ShardctlError
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.supervision.background import Background

log = logging.getLogger("consumer")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m consumer", description="One replica of one shard's consumer.")
    parser.add_argument(
        "--config", type=Path, required=True, help="the shard's slice of configuration, as `shardctl render` writes it"
    )
    try:
        settings = load(parser.parse_args().config)
        logs.configure(
            settings.config.consumer.log_level,
            settings.config.project,
            fleet=settings.config.fleet,
            shard=settings.config.shard,
            replica=settings.replica,
        )
        asyncio.run(serve(settings))
    except ShardctlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (NotDrainedError, NotEndedError) as error:
        log.warning("stopped: %s", error, extra={"action": "stopped"})
        logging.shutdown()
        os._exit(EXIT_DONE)  # a thread still waits for the database, and a usual end would wait for the thread
    return EXIT_DONE


async def serve(settings: Settings) -> None:
    config, metrics, stop = settings.config, Metrics(), asyncio.Event()
    dialect = database.dialect_of(settings.database_url)
    http = sink_for(config, metrics, stop.is_set)
    sink = sink_of(SqlSink(dialect, config.message_types), config.message_types, http)
    engine = database.engine_of(settings.database_url, config.consumer)
    redis = redisbreaker.connect(settings.redis_url, config.consumer.redis_timeout_ms / 1000)

    identity = identity_of(settings.replica)
    term = None if config.leader.kind == "none" else Term(engine, dialect, identity)
    store = Store(engine, dialect, Fence(dialect), sink, term)
    gate = RedisBreaker(time.monotonic, metrics)
    prefix = f"{config.fleet}:{config.shard}"
    new_intake = _intakes(settings, metrics, Suspects(redis, gate, prefix))
    locks = SlotLocks(redis, gate, prefix, int(config.consumer.lock_ttl.total_seconds() * 1000), metrics)
    pace = (
        RateLimit(redis, gate, prefix, config.consumer.rate_limit, config.replicas, time.monotonic, stop)
        if config.consumer.rate_limit
        else None
    )
    threads = ThreadPoolExecutor(config.consumer.concurrency + 1, thread_name_prefix="store")
    read = functools.partial(read_anew, check=sink.check, config=config)
    presence = functools.partial(store.tell_presence, settings.replica, [each.number for each in config.generations])
    check_keys = functools.partial(database.check_keys, engine, dialect, config.message_types)
    check_packets = functools.partial(database.check_packets, engine, dialect)
    startup = Startup((store.check_tables, check_packets, check_keys, presence), threads, metrics)
    outlets = _outlets(settings)
    recent = SeenFilter(redis, gate, prefix, time.time)

    traces = Traces(config, config.tracing.endpoint, settings.replica) if config.tracing else None

    def new_replica() -> Replica:
        intake = new_intake()
        handler = Handler(locks, store, *outlets, intake, threads, metrics, recent=recent, pace=pace, traces=traces)
        return Replica(config, sink, intake, handler, metrics, time.monotonic)

    lease = lease_of(config, identity, redis) if term else None
    leads = leadership_of(lease, config.leader) if lease else None
    life = LeaderLoop(new_replica, leads, term, threads, metrics) if leads and term else AlwaysActive(new_replica)
    maintenance = Maintenance(
        store, read, redis, gate, prefix, config.inbox_retention, threads, metrics, presence, lambda: life.writing
    )

    def why_not_ready() -> str | None:
        return startup.waiting_for or life.why_not_ready

    metrics.ready.set_function(lambda: float(why_not_ready() is None))
    health = Health(settings.host, settings.port, metrics, why_not_ready)
    _obey_signals(stop)
    log.info("serving %s on port %s", _subscriptions(config), health.port, extra={"action": "started"})
    try:
        await _live(stop, startup, life, maintenance, health)
    finally:
        health.close()
        if http:
            http.close()
        if traces:
            traces.close()
        if lease:
            await lease.close()
        await redis.aclose()
        threads.shutdown(wait=False, cancel_futures=True)
        engine.dispose()
    log.info("stopped", extra={"action": "stopped"})


async def _live(
    stop: asyncio.Event, startup: Startup, life: AlwaysActive | LeaderLoop, maintenance: Maintenance, health: Health
) -> None:
    async with Background(log, stop) as beside:
        beside.need("heartbeat", _beat(health))
        maintaining = beside.need("maintenance", maintenance.run(stop))
        await startup.wait(stop)
        await life.run(stop)
        if not (await asyncio.wait([maintaining], timeout=LEAST_SECONDS))[0]:
            raise NotEndedError


def _intakes(settings: Settings, metrics: Metrics, suspects: Suspects) -> Callable[[], Intake | PushIntake]:
    """What makes an intake, each time that this replica comes to read. Raises UsageError."""
    config = settings.config
    if config.delivery.kind == "push":
        from consumer.push.endpoint import endpoint_of

        door = endpoint_of(config, settings.host, settings.push_port, settings.push_keys_url, metrics)
        return lambda: PushIntake(config, door, time.monotonic, metrics)
    subscriber = pubsub.subscriber(settings.pubsub_endpoint)
    return lambda: Intake(subscriber, config, time.monotonic, metrics, suspects=suspects)


def _outlets(settings: Settings) -> tuple[DeadLetterTopic, Again]:
    publisher = pubsub.publisher(settings.pubsub_endpoint)
    return DeadLetterTopic(publisher, settings.config), Again(publisher, settings.config)


def _subscriptions(config: ShardConfig) -> str:
    return ", ".join(name for generation in config.generations for name in generation.subscriptions)


def _obey_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _beat(health: Health) -> None:
    while True:
        health.beat()
        await asyncio.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
