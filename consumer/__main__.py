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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from consumer import database, logs, pubsub
from consumer.deadletters import DeadLetterTopic
from consumer.delivery import read_anew
from consumer.fence import Fence
from consumer.handle import Handler
from consumer.health import Health
from consumer.intake import Intake
from consumer.lock import SlotLocks
from consumer.maintenance import Maintenance, NotEndedError
from consumer.metrics import Metrics
from consumer.outbox import Again
from consumer.ratelimit import RateLimit
from consumer.recent import RecentlyDone
from consumer.redisgate import RedisGate
from consumer.replica import LEAST_SECONDS, NotDrainedError, Replica
from consumer.settings import Settings, load
from consumer.sinks.router import sink_of
from consumer.sinks.sql import SqlSink
from consumer.startup import Startup
from consumer.store import Store
from shardctl.errors import EXIT_DONE, ShardctlError, UsageError
from shardctl.shardconfig import ShardConfig

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
    sink = sink_of(SqlSink(dialect, config.message_types), config.message_types)
    engine = database.engine_of(settings.database_url, config.consumer)
    redis = _redis(settings)
    subscriber, publisher = pubsub.subscriber(settings.pubsub_endpoint), pubsub.publisher(settings.pubsub_endpoint)

    store = Store(engine, dialect, Fence(dialect), sink)
    gate = RedisGate(time.monotonic, metrics)
    prefix = f"{config.fleet}:{config.shard}"
    locks = SlotLocks(redis, gate, prefix, int(config.consumer.lock_ttl.total_seconds() * 1000), metrics)
    pace = (
        RateLimit(redis, gate, prefix, config.consumer.rate_limit, config.replicas, time.monotonic, stop)
        if config.consumer.rate_limit
        else None
    )
    threads = ThreadPoolExecutor(config.consumer.concurrency + 1, thread_name_prefix="store")
    read = functools.partial(read_anew, check=sink.check, config=config)
    presence = functools.partial(store.tell_presence, settings.replica, [each.number for each in config.generations])
    startup = Startup(presence, threads, metrics)
    maintenance = Maintenance(store, read, redis, gate, prefix, config.inbox_retention, threads, metrics, presence)
    intake = Intake(subscriber, config, time.monotonic, metrics)
    outlets = DeadLetterTopic(publisher, config), Again(publisher, config)
    recent = RecentlyDone(redis, gate, prefix, time.time)
    handler = Handler(locks, store, *outlets, intake, threads, metrics, recent=recent, pace=pace)
    replica = Replica(config, sink, intake, handler, metrics, time.monotonic)

    def why_not_ready() -> str | None:
        if startup.waiting_for:
            return startup.waiting_for
        if replica.failing:
            return f"a batch failed and is tried again: {replica.failing}"
        return None if intake.connected else "not connected to every subscription"

    metrics.ready.set_function(lambda: float(why_not_ready() is None))
    try:
        health = Health(settings.host, settings.port, metrics, why_not_ready)
    except OSError as error:
        raise UsageError(f"can't listen on {settings.host}:{settings.port} for probes: {error.strerror}") from error
    _obey_signals(stop)
    log.info("serving %s on port %s", _subscriptions(config), health.port, extra={"action": "started"})
    maintaining = asyncio.create_task(maintenance.run(stop))
    beside = asyncio.gather(_beat(health), maintaining)
    beside.add_done_callback(lambda _: stop.set())  # they only end by a bug
    try:
        await startup.wait(stop)
        await replica.run(stop)
        if not (beside.done() or (await asyncio.wait([maintaining], timeout=LEAST_SECONDS))[0]):
            raise NotEndedError
    finally:
        ended = beside.done()
        beside.cancel()
        health.close()
        await redis.aclose()
        threads.shutdown(wait=False, cancel_futures=True)
        engine.dispose()
    if ended:
        await beside  # let the bug be seen
    log.info("stopped", extra={"action": "stopped"})


def _subscriptions(config: ShardConfig) -> str:
    return ", ".join(name for generation in config.generations for name in generation.subscriptions)


def _redis(settings: Settings) -> Redis:
    timeout_seconds = settings.config.consumer.redis_timeout_ms / 1000
    return Redis.from_url(
        settings.redis_url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),  # a batch doesn't wait for Redis to come back
    )


def _obey_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _beat(health: Health) -> None:
    while True:
        health.beat()
        await asyncio.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
