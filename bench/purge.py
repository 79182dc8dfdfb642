"""What forgetting costs: one consumer's throughput while a big old inbox is purged, beside the same without.

    python -m bench.purge [--json] [--messages N] [--old ROWS] [--window SECONDS]

The purge runs as a replica does it, in a process of its own, and goes on and off by turns while the consumer works off
a backlog: on a busy machine two runs one after the other say nothing. The ratio is of the medians of the windows. `noise` is what
the same comparison gives between every other window *without* a purge: what is nearer to 1 than that means nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from bench.pipeline import FLEET, _broker, _messages, _pipeline, _prefill
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local.servers import PostgresServer, RedisServer

FILL = """
INSERT INTO shardctl_inbox
       (slot, identity, fingerprint, message_type, partition_key, message_id, publish_time, outcome, applied_time)
SELECT n % 1024, decode(md5('old-' || n), 'hex'), 0, 'customer', 'customer-' || n, 'm' || n, now() - interval '90 days',
       'applied', now() - interval '90 days' + n * interval '1 millisecond'
FROM generate_series(1, {rows}) AS n
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--messages", type=int, default=300_000)
    parser.add_argument("--old", type=int, default=1_000_000, help="old rows in the inbox")
    parser.add_argument("--window", type=float, default=1.0, help="seconds with a purge, then as many without")
    options = parser.parse_args()
    fleet = fleet_from(parse(FLEET, "bench"))
    messages = _messages(fleet, options.messages)
    windows, purged, samples = _run(fleet, messages, options.old, options.window)
    rates = {purging: [] for purging in (True, False)}
    for began, ended, purging in windows:
        if samples[0][0] < began and ended < samples[-1][0]:
            rates[purging].append((_done_at(samples, ended) - _done_at(samples, began)) / (ended - began))
    without, beside = statistics.median(rates[False]), statistics.median(rates[True])
    result = {
        "without_msgs_per_s": round(without),
        "with_msgs_per_s": round(beside),
        "ratio": round(beside / without, 3),
        "noise": round(statistics.median(rates[False][::2]) / statistics.median(rates[False][1::2]), 3),
        "windows": len(rates[True]),
        "rows_purged_per_s": round(purged / (len(rates[True]) * options.window)),
        "old_rows": options.old,
    }
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(f"{result['ratio']:.2f} of the throughput without a purge (goal: >= 0.90)", result)


def _done_at(samples, moment):
    """Messages handled by then, between two samples."""
    after = bisect_left(samples, (moment,))
    (t0, n0, *_), (t1, n1, *_) = samples[after - 1], samples[after]
    return n0 + (n1 - n0) * (moment - t0) / (t1 - t0)


def _run(fleet, messages, old, window):
    with tempfile.TemporaryDirectory(prefix="shardctl-bench-") as folder, _broker() as broker:
        base = Path(folder)
        asyncio.run(_prefill(broker, fleet, messages))
        with PostgresServer(base / "postgres") as postgres, RedisServer(base / "redis") as redis:
            stop, told = multiprocessing.Event(), multiprocessing.Queue()
            purger = None

            def prepared(url):
                nonlocal purger
                _fill(url, old)
                purger = multiprocessing.Process(target=_purge, args=(url, redis.url, window, stop, told))
                purger.start()

            samples = _pipeline(fleet, base, broker, postgres, redis, len(messages), prepared)["samples"]
            stop.set()
            windows, purged = told.get()
            purger.join()
            return windows, purged, samples


def _fill(url, rows):
    import psycopg

    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        connection.execute(FILL.format(rows=rows))
        connection.execute("VACUUM ANALYZE shardctl_inbox")


def _purge(url, redis_url, window, stop, told):
    """A replica's maintenance, on and off."""
    from redis.asyncio import Redis
    from sqlalchemy.engine import make_url

    from consumer import database
    from consumer.fence import Fence
    from consumer.maintenance import Maintenance
    from consumer.metrics import Metrics
    from consumer.redisbreaker import RedisBreaker
    from consumer.store import Store
    from shardctl.fleet.spec import Batching

    async def alternate():
        metrics, windows = Metrics(), []
        where = make_url(url)
        dialect = database.dialect_of(where)
        store = Store(database.engine_of(where, Batching()), dialect, Fence(dialect), None)
        gate, client = RedisBreaker(time.monotonic, metrics), Redis.from_url(redis_url)
        with ThreadPoolExecutor(1) as threads:
            while not stop.is_set():
                maintenance = Maintenance(store, print, client, gate, "bench", timedelta(days=38), threads, metrics)
                await client.delete("{bench}:purge")
                began = time.perf_counter()
                purging = asyncio.create_task(maintenance.purge())
                await asyncio.sleep(window)
                maintenance._stop.set()
                await purging
                windows.append((began, time.perf_counter(), True))
                began = time.perf_counter()
                await asyncio.sleep(window)
                windows.append((began, time.perf_counter(), False))
        await client.aclose()
        told.put((windows, int(metrics.registry.get_sample_value("shardctl_inbox_rows_purged_total"))))

    asyncio.run(alternate())


if __name__ == "__main__":
    main()
