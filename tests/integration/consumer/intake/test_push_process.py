"""A consumer process that the embedded broker pushes to: real tokens, real requests, real tables."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from datetime import timedelta

import grpc
import orjson
import pytest
from consumer_kit import FLEET, SLOT_BITS, config
from consumerprocess_kit import Consumer, customers, until
from google.pubsub_v1 import PublisherClient, PubsubMessage, SubscriberClient, Subscription
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from patience import PATIENCE_SECONDS
from sqlalchemy import insert

from shardctl.broker import Broker
from shardctl.broker.tokens import Signer
from shardctl.fleet.keyspace import SlotSet, digits_of, slot_of
from shardctl.fleet.load import fleet_from
from shardctl.fleet.settings.delivery import Delivery
from shardctl.fleet.shardconfig import Generation
from shardctl.fleet.yamlfile import parse
from shardctl.local.servers.process import free_port
from shardctl.shard import lanes, schema
from shardctl.wire import barrier
from shardctl.wire.barrier import Barrier

pytestmark = pytest.mark.slow
BASE = "projects/test-project"
TOPIC, DEAD = f"{BASE}/topics/data-writes", f"{BASE}/topics/data-writes-dead"
ACCOUNT, URL = "push@test-project.iam.gserviceaccount.com", "https://push.example.com/shop"


class Pubsub:
    """The broker in a thread of its own, with subscriptions that push to one port."""

    def __init__(self, port, *, wrapped, generations=(1,)):
        self.loop, self.broker = asyncio.new_event_loop(), Broker(keys_port=0)
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.run(self.broker.start())
        channel = grpc.insecure_channel(self.broker.host)
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        for topic in (TOPIC, DEAD):
            self.publisher.create_topic(name=topic)
        self.subscriber.create_subscription(request=Subscription(name=f"{BASE}/subscriptions/shop-dead", topic=DEAD))
        for generation in generations:
            name = f"shop-s0-g{generation}"
            push = {
                "push_endpoint": f"http://127.0.0.1:{port}/shop/s0/{name}",
                "oidc_token": {"service_account_email": ACCOUNT, "audience": URL},
            } | ({} if wrapped else {"no_wrapper": {"write_metadata": True}})
            self.subscriber.create_subscription(
                request=Subscription(
                    name=f"{BASE}/subscriptions/{name}",
                    topic=TOPIC,
                    enable_message_ordering=True,
                    ack_deadline_seconds=10,
                    push_config=push,
                    retry_policy={
                        "minimum_backoff": timedelta(milliseconds=100),
                        "maximum_backoff": timedelta(seconds=1),
                    },
                )
            )

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE_SECONDS)

    def stop(self):
        self.run(self.broker.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)

    def publish(self, body, key="1", data=None, **attributes):
        slot = digits_of(slot_of(key, SLOT_BITS), SLOT_BITS)
        attributes = {"slot": slot, "partition_key": key, "message_type": "customer", **attributes}
        message = PubsubMessage(data=data or orjson.dumps(body), attributes=attributes, ordering_key=slot)
        self.publisher.publish(topic=TOPIC, messages=[message])

    def standing(self, name="shop-s0-g1"):
        return self.broker.registry.stats(time.time())["subscriptions"][f"{BASE}/subscriptions/{name}"]

    def drained(self, name="shop-s0-g1"):
        until(lambda: self.standing(name)["undelivered"] == 0, 30, f"an empty backlog of {name}")

    def dead_letters(self):
        answer = self.subscriber.pull(
            subscription=f"{BASE}/subscriptions/shop-dead", max_messages=10, timeout=PATIENCE_SECONDS
        )
        return [received.message for received in answer.received_messages]


class Bench:
    def __init__(self, folder, shard, redis_url):
        self._folder, self._shard, self._redis_url, self._started = folder, shard, redis_url, []
        self.port = free_port()

    def pubsub(self, *, wrapped=True, generations=(1,)):
        self.broker = Pubsub(self.port, wrapped=wrapped, generations=generations)
        return self.broker

    def start(self, name="c", *, generations=(), **consumer):
        settings = {
            "DATABASE_URL": self._shard.url.render_as_string(hide_password=False),
            "REDIS_URL": self._redis_url,
            "PUBSUB_EMULATOR_HOST": self.broker.broker.host,
            "PUSH_PORT": str(self.port),
            "PUSH_KEYS_URL": self.broker.broker.keys_url,
        }
        delivery = Delivery(kind="push", url=URL, service_account=ACCOUNT)
        made = config(lock_ttl=timedelta(seconds=1), **consumer)
        made = made.model_copy(update={"delivery": delivery, "generations": generations or made.generations})
        consumer = Consumer(self._folder, made, settings, name)
        self._started.append(consumer)
        until(lambda: consumer.get("/ready")[0] == 200 or consumer.process.poll() is not None, what="ready")
        assert consumer.process.poll() is None, consumer.log()
        return consumer

    def push(self, token, path="/shop/s0/shop-s0-g1"):
        """The answer's status to a push of nobody's making."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", b"{}", headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return answer.status
        except urllib.error.HTTPError as refusal:
            return refusal.code

    def stop(self):
        for consumer in self._started:
            if consumer.process.poll() is None:
                consumer.process.kill()
                consumer.process.wait()
        self.broker.stop()


@pytest.fixture
def bench(tmp_path, shard, redis_url):
    made = Bench(tmp_path, shard, redis_url)
    yield made
    made.stop()


def logged(consumer):
    return [json.loads(line).get("action") for line in consumer.log().splitlines()]


@pytest.mark.parametrize("wrapped", [True, pytest.param(False, marks=pytest.mark.proof)], ids=["wrapped", "unwrapped"])
def test_pushed_writes_land_once_in_order_though_the_consumer_is_killed_meanwhile(bench, shard, wrapped):
    broker = bench.pubsub(wrapped=wrapped)
    first = bench.start()
    keys = [*map(str, range(19)), "Zürich"]

    def publish(rounds):
        for number in rounds:
            for key in keys:
                broker.publish({"customer_id": key, "name": f"{number}"}, key, idempotency_key=f"{key}/{number}")

    publish(range(6))
    broker.publish({"customer_id": "1", "name": "0"}, "1", idempotency_key="1/0")  # another message, the same write
    broker.publish({}, "1", data=b"{", colour="red")
    until(lambda: len(shard.inbox()) > 20, what="some writes")
    first.process.kill()
    first.process.wait()
    publish(range(6, 9))
    second = bench.start("second")
    broker.publish({"customer_id": "1", "name": "last"}, "1")
    broker.drained()
    assert customers(shard) == dict.fromkeys(keys, "8") | {"1": "last"}
    outcomes = [outcome for _, outcome in shard.inbox()]
    assert (outcomes.count("applied"), outcomes.count("dead"), len(outcomes)) == (181, 1, 182)
    [letter, *_] = broker.dead_letters()
    assert (letter.attributes["shardctl-reason"], letter.attributes["colour"]) == ("bad_json", "red")
    assert "authorization" not in letter.attributes
    assert second.terminate() == 0
    assert "drained" in logged(second)
    assert "Bearer" not in second.log()


def test_only_pubsub_is_admitted(bench):
    broker = bench.pubsub()
    bench.start()
    now, signer = time.time(), broker.broker._signer
    assert bench.push(signer.token(ACCOUNT, URL, now)) == 400  # in, with nothing in it
    assert bench.push(signer.token(ACCOUNT, URL, now), "/shop/s0/shop-s0-g2") == 404
    assert bench.push(signer.token("other@test-project.iam.gserviceaccount.com", URL, now)) == 403
    assert bench.push(signer.token(ACCOUNT, "https://another.example.com", now)) == 401
    assert bench.push(Signer().token(ACCOUNT, URL, now)) == 401
    signer._made.clear()
    assert bench.push(signer.token(ACCOUNT, URL, now - 7_200)) == 401


def test_while_the_database_fails_pushes_are_refused_and_nothing_is_lost(bench, shard):
    broker = bench.pubsub()
    consumer = bench.start(statement_timeout=timedelta(seconds=1))
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(shard.engine.connect())
        stack.enter_context(connection.begin())
        connection.exec_driver_sql("LOCK TABLE shardctl_fence IN ACCESS EXCLUSIVE MODE")
        broker.publish({"customer_id": "1", "name": "a"}, "1")
        until(lambda: consumer.get("/ready")[0] == 503, what="a failure noticed")
        broker.publish({"customer_id": "1", "name": "b"}, "1")
        broker.publish({"customer_id": "2", "name": "c"}, "2")
        until(lambda: 'shardctl_push_refused_total{status="503"}' in consumer.get("/metrics")[1], what="a refusal")
    broker.drained()
    assert customers(shard) == {"1": "b", "2": "c"}
    assert len(shard.inbox()) == 3


def test_while_slots_move_each_generation_has_its_own_path(bench, shard):
    """A slot that stays in its database goes from one generation's subscription to the next one's at its barrier."""
    slot = slot_of("1", SLOT_BITS)
    with shard.engine.begin() as connection:
        connection.execute(insert(schema.rebalances).values(id="r1", state="open", plan="{}"))
        lanes.announce(connection, SlotSet.of([slot]), 2)
        lanes.make_due(connection, [slot], 2)
        (token,) = lanes.await_barriers(connection, [slot], 1, "r1").values()
    broker = bench.pubsub(generations=(1, 2))
    all_slots = config().generations[0].slots
    bench.start(
        generations=tuple(
            Generation(number=number, slots=all_slots, subscriptions=(f"shop-s0-g{number}",)) for number in (1, 2)
        )
    )
    broker.publish({"customer_id": "1", "name": "before"}, "1")
    fleet = fleet_from(parse(FLEET, "test"))
    marker = barrier.encode(fleet, fleet.shards[0], slot, Barrier("r1", "s0", 1, token))
    message = PubsubMessage(attributes=marker.attributes, ordering_key=marker.ordering_key)
    broker.publisher.publish(topic=TOPIC, messages=[message])
    broker.publish({"customer_id": "1", "name": "after"}, "1")
    broker.drained("shop-s0-g1")
    broker.drained("shop-s0-g2")
    assert customers(shard) == {"1": "after"}
    states = shard.rows(f"SELECT generation, state FROM shardctl_lanes WHERE slot = {slot} ORDER BY generation")
    assert states == [(1, "left"), (2, "active")]
    assert len(shard.inbox()) == 2
