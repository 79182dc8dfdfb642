"""What one consumer does and costs, on a full backlog or under a steady load, beside the usual sketch on the same servers.

    python -m bench.pipeline [--json] [--messages N] [--spread N] [--inbox-rows N]
    python -m bench.pipeline --rate 100 --rate 500 --rate 1000 [--seconds S] [--spread N] [--inbox-rows N]

Without `--rate`, a backlog of `--messages` waits when the consumer starts: slot by slot as a bulk load leaves it, or, with
`--spread`, over so many slots in no order. With `--rate`, so many writes a second come one by one, over 1,024 slots unless
`--spread` says otherwise, for `--seconds`; each write is a publish request of its own.

- `…_cpu_us_per_msg`: CPU of the consumer, of all of PostgreSQL's processes, of the broker and of Redis, each.
- `commit_p50_ms`, `commit_p99_ms`: from the publish request to the commit.
- `wal_bytes_per_msg`: of records; `wal_image_bytes_per_msg`: of full-page images. The window begins with a CHECKPOINT, after
  which each page's first change is logged with the whole page: so images are at their most, and fewer in a longer window.
- `times_naive`, `naive_cpu_ratio`: throughput, and CPU of everything a message, to those of `bench.naive` in the same case.
- `inbox_bytes_per_row`: with indexes. `cpu_elsewhere`: the part of the machine's processors that others took; where it isn't near
  0, throughput and times are theirs too, and CPU is a little high.
- `batch_cpu_us`, `message_cpu_us`, from several rates: CPU of the consumer for each batch and for each message, by least squares.
  `shardctl simulate` counts with them; see `shardctl/capacity.py`.

`--inbox-rows` measures each case twice, with an empty inbox and with so many old rows in it; `ratio` is the second to the first.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

from google.cloud import pubsub_v1
from google.pubsub_v1.types import Subscription

from bench import meter, naive
from bench.load import SLOTS, Steady, publish_backlog
from bench.meter import Meter
from bench.report import parser_of, say, show_cases
from bench.rig import SHARD, SUBSCRIPTION, fill_inbox, plain, rig
from shardctl.local.servers.process import wait_until

WARM_UP_SECONDS = 3.0
LONGEST_SECONDS = 300.0
POLL_SECONDS = 0.2  # each look at the consumer's metrics costs it a little
NAIVE_MESSAGES = 3_000
OF_THE_MACHINE = ("cpu_elsewhere", "published_late_ms")  # and not of the consumer
BACKLOG_GOALS = {"times_naive": ">= 30", "consumer_cpu_us_per_msg": "<= 60", "rss_growth_mib": "flat"}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--messages", type=int, default=200_000, help="of the backlog")
    parser.add_argument("--rate", type=float, action="append", help="writes a second; may be repeated")
    parser.add_argument("--seconds", type=float, default=10, help="of a steady load")
    parser.add_argument("--spread", type=int, metavar="N", help="so many slots, in no order")
    parser.add_argument("--inbox-rows", type=int, metavar="N", help="old rows to compare an empty inbox with")
    parser.add_argument("--without-naive", action="store_true", help="do not run the sketch")
    options = parser.parse_args()
    cases = {}
    for rate in options.rate or [None]:
        name = f"{rate:g}/s" if rate else "backlog"
        cases[name] = figures = _measured(name, rate, options)
        if options.inbox_rows:
            name_then = f"{name}, {options.inbox_rows:,} old rows"
            cases[name_then] = then = _measured(name_then, rate, options, options.inbox_rows)
            cases[f"{name}, ratio"] = _ratios(figures, then)
        if not options.without_naive:
            figures |= _compared(figures, _measured_naive(f"{name}, naive", rate, options))
    if len(options.rate or ()) > 1:
        cases["cost curve"] = _curve([figures for name, figures in cases.items() if not name.endswith("ratio")])
    show_cases(cases, options.json, {} if options.rate else BACKLOG_GOALS)


def _measured(name, rate, options, inbox_rows=0):
    with rig() as local:
        if inbox_rows:
            say(f"{inbox_rows:,} rows for the inbox …")
            fill_inbox(local.database_url(SHARD), inbox_rows)
        say(f"{name} …")
        if rate:
            figures = _steady(local, rate, options)
        else:
            publish_backlog(local, options.messages, options.spread)
            local.checkpoint()
            figures = work_off(local, options.messages)[0]
        return figures | {"inbox_bytes_per_row": round(local.inbox_bytes_per_row())}


def work_off(local, count):
    """Start the consumer, and measure it from its first messages to the last of `count`: figures, and the samples of progress."""
    local.start_consumers()
    counted = Meter(local, local.consumer.pid, lambda: meter.consumer_counts(local))
    first, samples = counted.read(), []
    deadline = time.monotonic() + LONGEST_SECONDS
    while not samples or samples[-1][1] < count:
        if local.consumer.died or time.monotonic() > deadline:
            raise SystemExit("the consumer didn't finish: " + local.consumer.log_tail())
        time.sleep(POLL_SECONDS)
        samples.append((time.perf_counter(), meter.consumer_counts(local)[0], counted.resident_mib()))
    last = counted.read()
    quarter = next(sample for sample in samples if sample[1] >= count / 4)
    peak = {
        "peak_rss_mib": round(max(mib for _, _, mib in samples), 1),
        "rss_growth_mib": round(samples[-1][2] - quarter[2], 1),
    }
    return counted.costs(first, last) | peak, samples


def _steady(local, rate, options):
    local.start_consumers()
    counted = Meter(local, local.consumer.pid, lambda: meter.consumer_counts(local))
    first, last, load = _window(local, counted, rate, options)
    local.wait_drained(LONGEST_SECONDS)
    p50, p99 = meter.commit_milliseconds(local, load.published_at, first, last)
    late = {"published_late_ms": round(load.latest_seconds * 1_000, 1)}
    return counted.costs(first, last) | {"commit_p50_ms": p50, "commit_p99_ms": p99} | late


def _window(local, counted, rate, options):
    with Steady(local, rate, options.spread or SLOTS) as load:
        time.sleep(WARM_UP_SECONDS)
        local.checkpoint()
        load.latest_seconds = 0.0
        first = counted.read()
        time.sleep(options.seconds)
        if not wait_until(lambda: counted.handled() > first.handled, LONGEST_SECONDS):
            raise SystemExit("the consumer handled nothing")
        return first, counted.read(), load


def _measured_naive(name, rate, options):
    with rig() as local:
        say(f"{name} …")
        subscription = _subscribe_naive(local)
        local.execute(naive.TABLE)

        def handled():
            return local.query("SELECT count(*) FROM processed")[0][0], None

        if not rate:
            publish_backlog(local, NAIVE_MESSAGES, options.spread)
            local.checkpoint()
        with _naive(local, subscription) as process:
            counted = Meter(local, process.pid, handled)
            if rate:
                first, last, _ = _window(local, counted, rate, options)
            else:
                _await(process, lambda: handled()[0] > 0)
                first = counted.read()
                _await(process, lambda: handled()[0] >= NAIVE_MESSAGES)
                last = counted.read()
        return counted.costs(first, last)


def _subscribe_naive(local):
    """In the place of the shard's own subscription."""
    path = f"projects/{local.spec.project}"
    name = f"{path}/subscriptions/naive"
    topic = f"{path}/topics/{local.spec.topic.name}"
    with local.as_emulator(), pubsub_v1.SubscriberClient() as subscriber:
        subscriber.create_subscription(request=Subscription(name=name, topic=topic, ack_deadline_seconds=600))
        subscriber.delete_subscription(subscription=f"{path}/subscriptions/{SUBSCRIPTION}")
    return name


@contextmanager
def _naive(local, subscription):
    environment = local.consumer_environment(SHARD)
    environment["DATABASE_URL"] = plain(environment["DATABASE_URL"])
    command = [sys.executable, "-m", "bench.naive", subscription]
    process = subprocess.Popen(command, env=os.environ | environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _await(process, condition):
    if not wait_until(lambda: condition() or process.poll() is not None, LONGEST_SECONDS) or process.poll() is not None:
        raise SystemExit("the naive consumer ended or stalled")


def _compared(figures, naive_figures):
    return {
        "naive_msgs_per_s": naive_figures["msgs_per_s"],
        "naive_total_cpu_us_per_msg": naive_figures["total_cpu_us_per_msg"],
        "times_naive": round(figures["msgs_per_s"] / naive_figures["msgs_per_s"], 1),
        "naive_cpu_ratio": round(figures["total_cpu_us_per_msg"] / naive_figures["total_cpu_us_per_msg"], 3),
    }


def _curve(cases):
    """The consumer's CPU for each batch and for each message: the line of least squares through what it takes in each case."""
    batches = [1 / figures["mean_batch_rows"] for figures in cases]
    if len(set(batches)) < 2:  # no line goes through one point
        return {"batch_cpu_us": None, "message_cpu_us": None}
    fit = statistics.linear_regression(batches, [figures["consumer_cpu_us_per_msg"] for figures in cases])
    return {"batch_cpu_us": round(fit.slope), "message_cpu_us": round(fit.intercept)}


def _ratios(before, then):
    names = [name for name, value in before.items() if value and name in then and name not in OF_THE_MACHINE]
    return {name: round(then[name] / before[name], 2) for name in names}


if __name__ == "__main__":
    main()
