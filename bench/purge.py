"""What forgetting costs: one consumer's throughput while a big old inbox is purged, beside the same without.

    python -m bench.purge [--json] [--messages N] [--old ROWS] [--window SECONDS]

The purge runs as a replica does it, in a process of its own, and goes on and off by turns while the consumer works off
a backlog: on a busy machine two runs one after the other say nothing. The ratio is of the medians of the windows. `noise` is what
the same comparison gives between every other window *without* a purge: what is nearer to 1 than that means nothing.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor

from bench.load import publish_backlog
from bench.pipeline import work_off
from bench.report import parser_of, show
from bench.rig import SHARD, fill_inbox, rig
from consumer.store.sweep import Retention

KEPT = Retention(86_400, 86_400)  # so that nearly all of the old rows may go


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--messages", type=int, default=300_000)
    parser.add_argument("--old", type=int, default=1_000_000, help="old rows in the inbox")
    parser.add_argument("--window", type=float, default=1.0, help="seconds with a purge, then as many without")
    options = parser.parse_args()
    windows, purged, samples = _run(options.messages, options.old, options.window)
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
    show(result, options.json, {"ratio": ">= 0.90"})


def _done_at(samples, moment):
    """Messages handled by then, between two samples."""
    after = bisect_left(samples, (moment,))
    (t0, n0, *_), (t1, n1, *_) = samples[after - 1], samples[after]
    return n0 + (n1 - n0) * (moment - t0) / (t1 - t0)


def _run(messages, old, window):
    with rig() as local:
        url = local.database_url(SHARD)
        fill_inbox(url, old)
        publish_backlog(local, messages)
        stop, results = multiprocessing.Event(), multiprocessing.Queue()
        purger = multiprocessing.Process(target=_purge, args=(url, local.redis.url, window, stop, results))
        purger.start()
        _, samples = work_off(local, messages)
        stop.set()
        windows, purged = results.get()
        purger.join()
        return windows, purged, samples


def _purge(url, redis_url, window, stop, results):
    """A replica's maintenance, on and off."""
    from redis.asyncio import Redis
    from sqlalchemy.engine import make_url

    from consumer.database import sessions
    from consumer.observability.metrics import Metrics
    from consumer.redis.breaker import RedisBreaker
    from consumer.replica.maintenance import Maintenance
    from consumer.store.fence import Fence
    from consumer.store.transaction import Store
    from shardctl.fleet.spec import Batching

    async def alternate():
        metrics, windows = Metrics(), []
        where = make_url(url)
        dialect = sessions.dialect_of(where)
        store = Store(sessions.engine_of(where, Batching()), dialect, Fence(dialect), None)
        gate, client = RedisBreaker(time.monotonic, metrics), Redis.from_url(redis_url)
        with ThreadPoolExecutor(1) as threads:
            while not stop.is_set():
                maintenance = Maintenance(store, print, client, gate, "bench", KEPT, threads, metrics)
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
        results.put((windows, int(metrics.registry.get_sample_value("shardctl_inbox_rows_purged_total"))))

    asyncio.run(alternate())


if __name__ == "__main__":
    main()
