"""A consumer as a process, and the broker that it reads from."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import grpc
import orjson
from consumer_kit import SLOT_BITS
from google.pubsub_v1 import PublisherClient, PubsubMessage, SubscriberClient, Subscription
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from patience import PATIENCE_SECONDS

from shardctl.broker import Broker
from shardctl.fleet.keyspace import digits_of, slot_of
from shardctl.local.servers.process import free_port

BASE = "projects/test-project"
TOPIC, DEAD = f"{BASE}/topics/data-writes", f"{BASE}/topics/data-writes-dead"


class Pubsub:
    """The broker in a thread of its own, and plain clients of it."""

    def __init__(self):
        self.loop, self.broker = asyncio.new_event_loop(), Broker()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.run(self.broker.start())
        channel = grpc.insecure_channel(self.broker.host)
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        for topic in (TOPIC, DEAD):
            self.publisher.create_topic(name=topic)
        for name, topic in (("shop-s0-g1", TOPIC), ("shop-dead", DEAD)):
            self.subscriber.create_subscription(
                request=Subscription(name=f"{BASE}/subscriptions/{name}", topic=topic, enable_message_ordering=True)
            )

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE_SECONDS)

    def stop(self):
        if self.broker is not None:
            self.run(self.broker.stop(0))
            self.broker = None

    def publish(self, body, key="1", **attributes):
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        slot = digits_of(slot_of(key, SLOT_BITS), SLOT_BITS)
        attributes = {"slot": slot, "partition_key": key, "message_type": "customer", **attributes}
        attributes = {name: value for name, value in attributes.items() if value is not None}
        message = PubsubMessage(data=data, attributes=attributes, ordering_key=slot)
        return self.publisher.publish(topic=TOPIC, messages=[message]).message_ids[0]

    def backlog(self, name="shop-s0-g1"):
        return len(self.broker.registry.subscription(f"{BASE}/subscriptions/{name}").core.entries)

    def counts(self, name="shop-s0-g1"):
        return self.broker.registry.subscription(f"{BASE}/subscriptions/{name}").core.counts

    def dead_letters(self):
        answer = self.subscriber.pull(
            subscription=f"{BASE}/subscriptions/shop-dead", max_messages=100, timeout=PATIENCE_SECONDS
        )
        return [received.message for received in answer.received_messages]


class Consumer:
    def __init__(self, folder, shard_config, environment, name="c"):
        file = folder / f"{name}.json"
        file.write_text(shard_config.model_dump_json())
        self.port = free_port()
        self.log_file = folder / f"{name}.log"
        settings = {"PORT": str(self.port), "HOST": "127.0.0.1", **environment}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "consumer", "--config", str(file)], env=os.environ | settings, stderr=log
            )

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name):
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        return None

    def terminate(self):
        """Exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    def log(self):
        return self.log_file.read_text()


@contextmanager
def consumers(folder, database_url, redis_url, broker):
    """Starts consumers, each ready when it is returned. Those that still run in the end are killed."""
    started = []

    def start(shard_config, name="c", **environment):
        services = {
            "DATABASE_URL": database_url.render_as_string(hide_password=False),
            "REDIS_URL": redis_url,
            "PUBSUB_EMULATOR_HOST": broker.broker.host,
        }
        consumer = Consumer(folder, shard_config, services | environment, name)
        started.append(consumer)
        until(lambda: consumer.get("/ready")[0] == 200 or consumer.process.poll() is not None, what="ready")
        assert consumer.process.poll() is None, consumer.log()
        return consumer

    try:
        yield start
    finally:
        for consumer in started:
            if consumer.process.poll() is None:
                consumer.process.kill()
                consumer.process.wait()


def until(condition, seconds=PATIENCE_SECONDS, what="it"):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} never came true"
        time.sleep(0.02)


def customers(shard):
    return dict(shard.rows("SELECT customer_id, name FROM customers"))
