"""How fast one consumer writes, beside two baselines in the same run on the same servers.

    python -m bench.pipeline [--json] [--messages N]

`pipeline` is the consumer process itself: embedded broker, real Redis, real PostgreSQL with durable commits. `naive` is the usual
sketch, message by message: the stock callback subscriber with its default ten threads, SET NX, SELECT, write, INSERT, commit,
scripted release. `floor` is the same SQL in the same batch sizes, without a broker or locks: what the database itself takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import psutil
from rich.console import Console
from rich.table import Table

from shardctl.fleet import shardconfig, topology
from shardctl.fleet.keyspace import lane_of
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local.servers import PostgresServer, RedisServer
from shardctl.shard import schema
from shardctl.wire.message import Write, encode

ENTITIES = 50_000
PUBLISH_AT_ONCE = 16
FLEET = """
fleet: bench
project: bench-project
image: consumer:bench
message_types:
  customer:
    table: customers
    key: customer_id
    columns: {customer_id: text, name: text, email: text, credit: bigint, revision: bigint}
  order:
    table: orders
    key: order_id
    columns: {order_id: text, customer_id: text, status: text, amount: decimal, placed_at: timestamp, revision: bigint}
shards:
  - {name: s0, slots: 0-1023}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--naive-messages", type=int, default=3_000)
    options = parser.parse_args()
    fleet = fleet_from(parse(FLEET, "bench"))
    with tempfile.TemporaryDirectory(prefix="shardctl-bench-") as folder, _broker() as broker:
        base = Path(folder)
        with PostgresServer(base / "postgres") as postgres, RedisServer(base / "redis") as redis:
            say = Console(stderr=True).print
            say("publishing …")
            messages = _messages(fleet, options.messages)
            asyncio.run(_prefill(broker, fleet, messages))
            say("pipeline …")
            pipeline = _pipeline(fleet, base, broker, postgres, redis, options.messages)
            say("floor …")
            floor = _floor(fleet, postgres, messages, pipeline["mean_batch_rows"])
            say("naive …")
            naive = _naive(fleet, broker, postgres, redis, messages[: options.naive_messages])
    result = {
        "pipeline_msgs_per_s": round(pipeline["rate"]),
        "naive_msgs_per_s": round(naive),
        "floor_msgs_per_s": round(floor),
        "times_naive": round(pipeline["rate"] / naive, 1),
        "share_of_floor": round(pipeline["rate"] / floor, 2),
        "consumer_cpu_us_per_msg": round(pipeline["cpu_us"], 1),
        "peak_rss_mib": round(pipeline["peak_rss_mib"], 1),
        "rss_growth_mib": round(pipeline["rss_growth_mib"], 1),
        "mean_batch_rows": round(pipeline["mean_batch_rows"]),
        "messages": options.messages,
    }
    if options.json:
        print(json.dumps(result))
        return
    goals = {
        "times_naive": ">= 30",
        "share_of_floor": ">= 0.70",
        "consumer_cpu_us_per_msg": "<= 60",
        "rss_growth_mib": "flat",
    }
    table = Table("figure", "measured", "goal")
    for name, value in result.items():
        table.add_row(name, f"{value:,}", goals.get(name, ""))
    Console().print(table)


@contextmanager
def _broker():
    command = [sys.executable, "-m", "shardctl.broker", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = ""
        while "127.0.0.1:" not in line:
            line = process.stderr.readline()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield "127.0.0.1:" + line.partition("127.0.0.1:")[2].split()[0].strip(".,")
    finally:
        process.terminate()
        process.wait()


def _messages(fleet, count):
    dice = random.Random(1)
    now = datetime.now(UTC)
    found = []
    for number in range(count):
        entity = dice.randrange(ENTITIES)
        if number % 2:
            body = {
                "order_id": f"order-{entity}",
                "customer_id": f"customer-{entity % 1000}",
                "status": dice.choice(("placed", "paid", "sent")),
                "amount": dice.randrange(1, 100_000) / 100,
                "placed_at": "2026-01-02T03:04:05Z",
                "revision": number,
            }
            write = Write("order", body)
        else:
            body = {
                "customer_id": f"customer-{entity}",
                "name": f"Customer {entity}",
                "email": f"customer{entity}@example.com",
                "credit": dice.randrange(10_000),
                "revision": number,
            }
            write = Write("customer", body)
        found.append(encode(fleet, write, now))
    return found


async def _prefill(broker, fleet, messages):
    """Create the topology and publish everything, before anything is measured."""
    import grpc.aio
    from google.pubsub_v1 import PublishRequest, PubsubMessage

    channel = grpc.aio.insecure_channel(broker, options=[("grpc.max_send_message_length", -1)])
    topic = f"projects/{fleet.project}/topics/{fleet.topic}"
    _provision(broker, fleet)
    publish = channel.unary_unary(
        "/google.pubsub.v1.Publisher/Publish", request_serializer=PublishRequest.serialize, response_deserializer=bytes
    )
    by_slot = {}
    for message in messages:
        by_slot.setdefault(message.ordering_key, []).append(message)
    gate = asyncio.Semaphore(PUBLISH_AT_ONCE)

    async def send(key, share):
        for start in range(0, len(share), 500):
            chunk = share[start : start + 500]
            request = PublishRequest(
                topic=topic,
                messages=[PubsubMessage(data=m.data, attributes=m.attributes, ordering_key=key) for m in chunk],
            )
            async with gate:
                await publish(request)

    await asyncio.gather(*(send(key, share) for key, share in by_slot.items()))
    await channel.close()


def _provision(broker, fleet):
    import grpc
    from google.pubsub_v1 import PublisherClient, SubscriberClient, Subscription, Topic
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
    from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

    channel = grpc.insecure_channel(broker)
    publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
    subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
    path = f"projects/{fleet.project}"
    for name in (fleet.topic, topology.dead_letter_topic(fleet)):
        publisher.create_topic(request=Topic(name=f"{path}/topics/{name}"))
    for name in [topology.subscriptions(fleet, fleet.shards[0])[0].id, "naive"]:
        subscriber.create_subscription(
            request=Subscription(
                name=f"{path}/subscriptions/{name}",
                topic=f"{path}/topics/{fleet.topic}",
                enable_message_ordering=name != "naive",
                ack_deadline_seconds=600,
            )
        )


def _pipeline(fleet, base, broker, postgres, redis, count, prepared=lambda _: None):
    shard = fleet.shards[0]
    url = postgres.create_database("pipeline")
    schema.create(_engine(url), fleet.message_types, shard.slots, shard.generation)
    prepared(url)
    config = base / "shard.json"
    config.write_text(shardconfig.slice_of(fleet, shard).model_dump_json())
    port = _free_port()
    environment = os.environ | {
        "DATABASE_URL": url, "REDIS_URL": redis.url, "PUBSUB_EMULATOR_HOST": broker, "PORT": str(port), "HOST": "127.0.0.1",
    }  # fmt: skip
    log = (base / "consumer.log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", "consumer", "--config", str(config)], env=environment, stderr=log)
    watched = psutil.Process(process.pid)
    try:
        samples = []
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            metrics = _scrape(port)
            done = metrics.get("shardctl_messages_applied_total", 0) + metrics.get(
                "shardctl_messages_duplicate_total", 0
            )
            if done:
                cpu = watched.cpu_times()
                rss = watched.memory_info().rss / 2**20
                samples.append((time.perf_counter(), done, cpu.user + cpu.system, rss))
            if done >= count:
                break
            if process.poll() is not None:
                raise SystemExit((base / "consumer.log").read_text())
            time.sleep(0.05)
        else:
            raise SystemExit("the consumer didn't finish: " + (base / "consumer.log").read_text()[-2000:])
        first, last = samples[0], samples[-1]
        handled = last[1] - first[1]
        quarter = next(sample for sample in samples if sample[1] >= count / 4)
        rows = metrics["shardctl_batch_rows_sum"] / metrics["shardctl_batch_rows_count"]
        return {
            "rate": handled / (last[0] - first[0]),
            "cpu_us": (last[2] - first[2]) / handled * 1e6,
            "peak_rss_mib": max(sample[3] for sample in samples),
            "rss_growth_mib": last[3] - quarter[3],
            "mean_batch_rows": rows,
            "samples": samples,
        }
    finally:
        process.terminate()
        process.wait()


def _floor(fleet, postgres, messages, batch_rows):
    from sqlalchemy.engine import make_url

    from consumer import database
    from consumer.delivery import Delivery
    from consumer.fence import Fence
    from consumer.sinks.sql import SqlSink
    from consumer.store import Store

    shard = fleet.shards[0]
    url = make_url(postgres.create_database("floor"))
    engine = database.engine_of(url, fleet.consumer)
    schema.create(engine, fleet.message_types, shard.slots, shard.generation)
    dialect = database.dialect_of(url)
    sink = SqlSink(dialect, fleet.message_types)
    store = Store(engine, dialect, Fence(dialect), sink)
    deliveries = []
    for number, message in enumerate(messages):
        names = fleet.routing.attributes
        delivery = Delivery(
            str(number), "", SimpleNamespace(data=message.data), str(number), 1_700_000_000_000_000, 0, 0.0, message.slot,
            message.attributes[names.partition_key], message.attributes[names.message_type], "upsert", str(number),
            lane=lane_of(message.slot, shard.generation),
        )  # fmt: skip
        sink.check(delivery)
        deliveries.append(delivery)
    size = max(1, round(batch_rows))
    lanes = fleet.consumer.concurrency

    def write_all(lane):
        """One thread's share: slots of its own, as the consumer's transactions have."""
        mine = [delivery for delivery in deliveries if delivery.slot % lanes == lane]
        for start in range(0, len(mine), size):
            assert not store.apply(mine[start : start + size]).poison

    with ThreadPoolExecutor(lanes) as threads:
        started = time.perf_counter()
        list(threads.map(write_all, range(lanes)))
        return len(deliveries) / (time.perf_counter() - started)


def _naive(fleet, broker, postgres, redis, messages):
    """The source sketch: acked after the write, one transaction a step, one message a time in each of ten threads."""
    import psycopg
    from google.cloud import pubsub_v1
    from redis import Redis

    url = postgres.create_database("naive")
    schema.create(_engine(url), fleet.message_types, fleet.shards[0].slots, 1)
    plain = url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE TABLE processed (message_id text PRIMARY KEY)")
    os.environ["PUBSUB_EMULATOR_HOST"] = broker
    locks = Redis.from_url(redis.url)
    release = locks.register_script(
        "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
    )
    local = threading.local()
    done = threading.Semaphore(0)
    started = []
    statements = {
        "customer": "INSERT INTO customers (customer_id, name, email, credit, revision, slot) "
        "VALUES (%(customer_id)s, %(name)s, %(email)s, %(credit)s, %(revision)s, 0) ON CONFLICT (customer_id) DO UPDATE SET "
        "name = excluded.name, email = excluded.email, credit = excluded.credit, revision = excluded.revision",
        "order": "INSERT INTO orders (order_id, customer_id, status, amount, placed_at, revision, slot) VALUES "
        "(%(order_id)s, %(customer_id)s, %(status)s, %(amount)s, %(placed_at)s, %(revision)s, 0) ON CONFLICT (order_id) "
        "DO UPDATE SET status = excluded.status, amount = excluded.amount, revision = excluded.revision",
    }

    def callback(message):
        if not started:
            started.append(time.perf_counter())
        if not hasattr(local, "connection"):
            local.connection = psycopg.connect(plain)
        lock, token = f"msg_lock_{message.message_id}", os.urandom(8).hex()
        if not locks.set(lock, token, nx=True, ex=30):
            message.ack()
            return
        try:
            connection = local.connection
            seen = connection.execute("SELECT 1 FROM processed WHERE message_id = %s", (message.message_id,)).fetchone()
            connection.commit()
            if not seen:
                body = json.loads(message.data)
                connection.execute(statements[message.attributes["message_type"]], body)
                connection.commit()
                connection.execute("INSERT INTO processed VALUES (%s)", (message.message_id,))
                connection.commit()
            message.ack()
        finally:
            release(keys=[lock], args=[token])
        done.release()

    subscriber = pubsub_v1.SubscriberClient()
    future = subscriber.subscribe(f"projects/{fleet.project}/subscriptions/naive", callback)
    for _ in messages:
        if not done.acquire(timeout=60):
            raise SystemExit("the naive consumer stalled")
    rate = len(messages) / (time.perf_counter() - started[0])
    future.cancel()
    future.result()
    return rate


def _engine(url):
    from sqlalchemy import create_engine

    return create_engine(url)


def _free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _scrape(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    return {
        line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if not line.startswith("#") and "{" not in line
    }


if __name__ == "__main__":
    main()
