"""`python -m consumer --config FILE`: wiring, signals, graceful drain."""

from __future__ import annotations

import argparse
import asyncio
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
from consumer.fence import Fence
from consumer.handle import Handler
from consumer.health import Health
from consumer.intake import Intake
from consumer.lock import SlotLocks
from consumer.maintenance import Maintenance
from consumer.metrics import Metrics
from consumer.ratelimit import RateLimit
from consumer.recent import RecentlyDone
from consumer.redisgate import RedisGate
from consumer.replica import NotDrainedError, Replica
from consumer.settings import Settings, load
from consumer.sinks.sql import SqlSink
from consumer.store import Store
from shardctl.errors import EXIT_DONE, ShardctlError, UsageError

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
    except NotDrainedError as error:
        log.warning("stopped: %s", error, extra={"action": "stopped"})
        logging.shutdown()
        os._exit(EXIT_DONE)  # a thread still waits for the database, and a usual end would wait for the thread
    return EXIT_DONE


async def serve(settings: Settings) -> None:
    config = settings.config
    metrics = Metrics()
    dialect = database.dialect_of(settings.database_url)
    engine = database.engine_of(settings.database_url, config.consumer)
    timeout_seconds = config.consumer.redis_timeout_ms / 1000
    redis = Redis.from_url(
        settings.redis_url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),  # a batch doesn't wait for Redis to come back
    )
    subscriber, publisher = pubsub.subscriber(settings.pubsub_endpoint), pubsub.publisher(settings.pubsub_endpoint)

    sink = SqlSink(dialect, config.message_types)
    store = Store(
        engine, dialect, Fence(dialect, frozenset(generation.number for generation in config.generations)), sink
    )
    gate = RedisGate(time.monotonic, metrics)
    prefix = f"{config.fleet}:{config.shard}"
    locks = SlotLocks(redis, gate, prefix, int(config.consumer.lock_ttl.total_seconds() * 1000), metrics)
    recent = RecentlyDone(redis, gate, prefix, time.time)
    limit = config.consumer.rate_limit
    pace = RateLimit(redis, gate, prefix, limit, config.replicas, time.monotonic) if limit else None
    threads = ThreadPoolExecutor(config.consumer.concurrency + 1, thread_name_prefix="store")
    retention_seconds = int(config.inbox_retention.total_seconds())
    maintenance = Maintenance(store, redis, gate, prefix, retention_seconds, threads, metrics)
    subscriptions = [subscription for generation in config.generations for subscription in generation.subscriptions]
    intake = Intake(subscriber, config, subscriptions, time.monotonic, metrics)
    dead_letters = DeadLetterTopic(publisher, config)
    handler = Handler(locks, store, dead_letters, intake, threads, metrics, recent=recent, pace=pace)
    replica = Replica(config, sink, intake, handler, metrics, time.monotonic)

    def why_not_ready() -> str | None:
        if replica.failing:
            return "a batch failed and is tried again"
        return None if intake.connected else "not connected to every subscription"

    metrics.ready.set_function(lambda: float(why_not_ready() is None))
    try:
        health = Health(settings.host, settings.port, metrics, why_not_ready)
    except OSError as error:
        raise UsageError(f"can't listen on {settings.host}:{settings.port} for probes: {error.strerror}") from error
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    log.info("serving %s on port %s", ", ".join(subscriptions), health.port, extra={"action": "started"})
    beside = asyncio.gather(_beat(health), maintenance.run())
    beside.add_done_callback(lambda _: stop.set())  # they only end by a bug
    try:
        await replica.run(stop)
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


async def _beat(health: Health) -> None:
    while True:
        health.beat()
        await asyncio.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
