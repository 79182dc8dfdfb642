"""How fast a relay empties an outbox, and how long a write takes through it, on a durable PostgreSQL and the embedded broker.

    python -m bench.outbox [--json] [--writes N] [--rate N] [--seconds S]

`writes_per_s`: a backlog of N writes of 1,024 slots, emptied by one `shardctl relay`, a process of its own.
`naive_writes_per_s`: the usual sketch, in this process, on a fifth of them: lock 100 rows, publish each through
`shardctl.Publisher`, wait for all, delete, commit. `ratio` is of the two. `enqueue_us`: what `enqueue` adds to a transaction,
apart from its commit.

Latency: transactions with one write each, at an even rate, from the return of the commit until a subscriber has the message;
`direct` are the same writes published after the commit by `shardctl.Publisher`. Milliseconds, p50 and p99.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import grpc
import orjson
from google.api_core.exceptions import DeadlineExceeded
from google.pubsub_v1 import PublisherClient, SubscriberClient, Subscription
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from sqlalchemy import create_engine, delete, select

from bench.report import parser_of, say, show
from shardctl import Outbox, Publisher, Write, load_fleet
from shardctl.local.processes import BrokerProcess
from shardctl.local.servers import PostgresServer
from shardctl.local.servers.process import free_port, wait_until
from shardctl.relay.process import VARIABLE
from shardctl.shard.outboxtables import outbox as table

FILE = """
fleet: bench
project: bench-project
image: consumer:bench
message_types:
  order:
    table: orders
    key: order_id
    columns: {order_id: text, customer_id: text, status: text, amount: bigint}
shards:
  - {name: s0, slots: 0-1023}
"""
TOPIC, SUBSCRIPTION = "projects/bench-project/topics/data-writes", "projects/bench-project/subscriptions/all"
GOALS = {"writes_per_s": "≥ 10,000", "relay_p50_ms": "≤ 50"}
LONGEST_SECONDS = 120.0
WARM_UP = 20


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--writes", type=int, default=50_000, help="of the backlog")
    parser.add_argument("--rate", type=float, default=50, help="transactions a second, for the latency")
    parser.add_argument("--seconds", type=float, default=10, help="of each load, for the latency")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shardctl-bench-") as folder, Rig(Path(folder)) as rig:
        say("the usual sketch …")
        rig.fill(options.writes // 5)
        naive = _naive(rig, options.writes // 5)
        say("a backlog …")
        enqueue_us = rig.fill(options.writes)
        result = {"enqueue_us": round(enqueue_us, 1), "naive_writes_per_s": round(naive)}
        with rig.relay() as published:
            began = time.perf_counter()
            if not wait_until(lambda: published() >= options.writes, LONGEST_SECONDS):
                raise SystemExit(f"{published()} of {options.writes} writes are published")
            rate = options.writes / (time.perf_counter() - began)
            result |= {"writes_per_s": round(rate), "ratio": round(rate / naive, 1)}
            say("a steady load …")
            count = round(options.rate * options.seconds) + WARM_UP
            with rig.subscriber() as arrivals:
                relayed = _latencies(rig, "relayed", options.rate, count, arrivals)
                with Publisher(rig.fleet) as publisher:
                    direct = _latencies(rig, "direct", options.rate, count, arrivals, publisher)
        for name, values in (("relay", relayed), ("direct", direct)):
            result |= {f"{name}_p{percent}_ms": _percentile(values, percent) for percent in (50, 99)}
        result["latency_ratio"] = round(result["relay_p50_ms"] / result["direct_p50_ms"], 1)
    show(result, options.json, GOALS)


class Rig:
    """A broker, a PostgreSQL with durable commits, and an outbox in it."""

    def __init__(self, folder):
        (folder / "shards.yaml").write_text(FILE)
        self.file, self.fleet = folder / "shards.yaml", load_fleet(folder / "shards.yaml")
        self.broker, self.server = BrokerProcess(folder / "broker"), PostgresServer(folder / "postgres")

    def __enter__(self):
        self.broker.start()
        self.server.start()
        os.environ["PUBSUB_EMULATOR_HOST"] = self.broker.host
        channel = grpc.insecure_channel(self.broker.host)
        PublisherClient(transport=PublisherGrpcTransport(channel=channel)).create_topic(name=TOPIC)
        self._subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        self.engine = create_engine(self.server.create_database("application"))
        self.outbox = Outbox(self.fleet)
        self.outbox.create(self.engine)
        self.enqueue = self.outbox.enqueue
        return self

    def __exit__(self, *_):
        self.engine.dispose()
        self.broker.stop()
        self.server.delete()

    def fill(self, writes):
        """The microseconds that each call of `enqueue` took."""
        spent = 0.0
        for at in range(0, writes, 50):
            with self.engine.begin() as connection:
                connection.exec_driver_sql("SELECT 1")
                began = time.perf_counter()
                for number in range(at, min(writes, at + 50)):
                    self.enqueue(connection, order(f"o-{number}", "paid"))
                spent += time.perf_counter() - began
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE shardctl_outbox")
        return spent / writes * 1e6

    @contextmanager
    def relay(self):
        """Yields a function for how many writes the relay has published."""
        port = free_port()
        environment = os.environ | {VARIABLE: self.engine.url.render_as_string(hide_password=False)}
        command = [sys.executable, "-m", "shardctl", "relay", "-f", str(self.file), "--port", str(port)]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

        def page(path):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                    return answer.read().decode()
            except OSError:
                return ""

        def published():
            lines = page("/metrics").splitlines()
            return next(
                (float(line.split()[1]) for line in lines if line.startswith("shardctl_outbox_published_total")), 0
            )

        try:
            wait_until(lambda: page("/health"), LONGEST_SECONDS)
            yield published
        finally:
            process.terminate()
            process.wait()

    @contextmanager
    def subscriber(self):
        """Yields when each idempotency key arrived."""
        self._subscriber.create_subscription(
            request=Subscription(name=SUBSCRIPTION, topic=TOPIC, enable_message_ordering=True)
        )
        arrivals, stop = {}, threading.Event()

        def work():
            while not stop.is_set():
                try:
                    answer = self._subscriber.pull(subscription=SUBSCRIPTION, max_messages=100, timeout=1, retry=None)
                except DeadlineExceeded:
                    continue
                now = time.perf_counter()
                for received in answer.received_messages:
                    arrivals.setdefault(orjson.loads(received.message.data)["order_id"], now)
                if answer.received_messages:
                    ids = [received.ack_id for received in answer.received_messages]
                    self._subscriber.acknowledge(subscription=SUBSCRIPTION, ack_ids=ids)

        thread = threading.Thread(target=work)
        thread.start()
        yield arrivals
        stop.set()
        thread.join()


def order(key, status):
    return Write("order", {"order_id": key, "customer_id": "c-1", "status": status, "amount": 100})


def _naive(rig, writes):
    began = time.perf_counter()
    with Publisher(rig.fleet) as publisher:
        while True:
            with rig.engine.begin() as connection:
                oldest = select(table).order_by(table.c.position).limit(100).with_for_update(skip_locked=True)
                rows = connection.execute(oldest).all()
                if not rows:
                    return writes / (time.perf_counter() - began)
                futures = [publisher.publish(Write("order", orjson.loads(row.body))) for row in rows]
                for future in futures:
                    future.result()
                connection.execute(delete(table).where(table.c.position.in_([row.position for row in rows])))


def _latencies(rig, name, rate, count, arrivals, publisher=None):
    commits = {}
    began = time.perf_counter()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.perf_counter()))
        key = f"{name}-{number}"
        with rig.engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
            if publisher is None:
                rig.enqueue(connection, order(key, "paid"))
        commits[key] = time.perf_counter()
        if publisher is not None:
            publisher.publish(order(key, "paid"))
    if not wait_until(lambda: arrivals.keys() >= commits.keys(), LONGEST_SECONDS):
        raise SystemExit(f"{len(commits.keys() - arrivals.keys())} writes never arrived")
    return sorted((arrivals[key] - moment) * 1e3 for key, moment in list(commits.items())[WARM_UP:])


def _percentile(values, percent):
    return round(values[min(len(values) - 1, len(values) * percent // 100)], 2)


if __name__ == "__main__":
    main()
