"""Rows that a forgotten transaction holds: the slots whose writes need them wait, and no other does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import orjson
import pytest
from consumer_kit import FLEET, FakeIntake, raw
from patience import PATIENCE_SECONDS
from sqlalchemy import text
from sqlalchemy.engine import make_url

from consumer.database import sessions
from consumer.observability.metrics import Metrics
from consumer.replica.handle import Handler
from consumer.replica.lifecycle import Replica
from consumer.sinks.sql import SqlSink
from consumer.store import Store
from consumer.store.fence import Fence
from shardctl.fleet import shardconfig
from shardctl.fleet.keyspace import slot_of
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.shard import schema

pytestmark = pytest.mark.slow

SLOT_BITS, SLOTS, WRITES = 7, 104, 1_003
STATEMENT_SECONDS = 2
LIMITS = {"postgresql": "SHOW lock_timeout", "mysql": "SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout"}
USUAL = {"postgresql": ("0",), "mysql": (STATEMENT_SECONDS, STATEMENT_SECONDS)}


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request, postgres_server, mariadb_server):
    server = {"postgresql": postgres_server, "mariadb": mariadb_server}[request.param]
    name = f"locked_{request.param}_{abs(hash(request.node.name))}"
    yield make_url(server.create_database(name))
    server.drop_database(name)


class Scene(FakeIntake):
    """One replica on a real database, fed by hand: all of it but Pub/Sub and Redis."""

    def __init__(self, url, concurrency):
        super().__init__()
        fleet = fleet_from(parse(FLEET.replace("slot_bits: 6", "slot_bits: 7").replace("0-63", "0-127"), "test"))
        config = shardconfig.slice_of(fleet, fleet.shards[0])
        timeouts = {"statement_timeout": timedelta(seconds=STATEMENT_SECONDS), "concurrency": concurrency}
        self.config = config.model_copy(update={"consumer": config.consumer.model_copy(update=timeouts)})
        self.dialect = sessions.dialect_of(url)
        self.engine = sessions.engine_of(url, self.config.consumer)
        self.rival = sessions.engine_of(url, self.config.consumer)
        schema.create(self.engine, config.message_types, config.generations[0].slots, 1)
        self.metrics = Metrics()
        self.stop = asyncio.Event()
        self.unacked = set()
        keys = {}
        for number in range(10_000):
            keys.setdefault(slot_of(f"c{number}", SLOT_BITS), f"c{number}")
        self.keys = [keys[slot] for slot in sorted(keys)][:SLOTS]

    # -- what the replica locks with and publishes to

    async def take(self, lanes):
        return frozenset(lanes)

    async def release(self, lanes):
        pass

    async def publish(self, deliveries):
        raise AssertionError(deliveries)

    async def ack(self, deliveries):
        self.unacked -= {delivery.idempotency_key for delivery in deliveries}

    # -- the play

    @contextlib.contextmanager
    def locked(self, keys):
        """A transaction that somebody forgot, and that the server's limits don't end."""
        limits = {
            "postgresql": "SET idle_in_transaction_session_timeout = 0",
            "mysql": "SET SESSION wait_timeout = 600",
        }
        with self.rival.connect() as connection:
            connection.execute(text(limits[self.engine.dialect.name]))
            for key in keys:
                connection.execute(text("UPDATE customers SET name = 'locked' WHERE customer_id = :key"), {"key": key})
            yield
            connection.rollback()

    def publish_all(self):
        deliveries = []
        for number in range(WRITES):
            key = self.keys[number % SLOTS]
            body = orjson.dumps({"customer_id": key, "credit": number})
            deliveries.append(raw("customer", body, key, slot=slot_of(key, SLOT_BITS), ident=f"{number}"))
        self.unacked = {delivery.idempotency_key for delivery in deliveries}
        self.key_of = {delivery.idempotency_key: delivery.partition_key for delivery in deliveries}
        self.deliver(deliveries)

    def unacked_of_others(self, locked):
        return {ident for ident in self.unacked if self.key_of[ident] not in locked}

    def credits(self):
        with self.rival.connect() as connection:
            return dict(map(tuple, connection.execute(text("SELECT customer_id, credit FROM customers"))))

    async def __aenter__(self):
        with self.engine.begin() as connection:
            for key in self.keys:
                row = {"key": key, "slot": slot_of(key, SLOT_BITS)}
                connection.execute(text("INSERT INTO customers (customer_id, slot) VALUES (:key, :slot)"), row)
        self.threads = ThreadPoolExecutor(self.config.consumer.concurrency + 1)
        sink = SqlSink(self.dialect, self.config.message_types)
        store = Store(self.engine, self.dialect, Fence(self.dialect), sink)
        handler = Handler(self, store, self, self, self, self.threads, self.metrics)
        self.replica = Replica(self.config, sink, self, handler, self.metrics, time.monotonic)
        self.running = asyncio.create_task(self.replica.run(self.stop))
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_):
        self.stop.set()
        await self.running
        self.threads.shutdown()
        self.engine.dispose()
        self.rival.dispose()

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("locked_rows", "concurrency"),
    [
        pytest.param(1, 2, id="one", marks=pytest.mark.proof),
        pytest.param(1, 1, id="one worker", marks=pytest.mark.proof),
        pytest.param(20, 2, id="many"),
    ],
)
def test_every_slot_but_the_locked_ones_is_written_while_the_lock_is_held(url, locked_rows, concurrency):
    async def scenario():
        async with Scene(url, concurrency) as scene:
            locked = set(scene.keys[5 : 5 + locked_rows])
            with scene.locked(locked):
                scene.publish_all()
                await scene.until(lambda: not scene.unacked_of_others(locked))
                assert {scene.key_of[ident] for ident in scene.unacked} == locked
                assert scene.replica.why_not_ready is None
                assert scene.open
                assert scene.metrics.registry.get_sample_value("shardctl_database_up") == 1
            await scene.until(lambda: not scene.unacked)
            last = {scene.keys[number % SLOTS]: number for number in range(WRITES)}
            assert scene.credits() == last
            name = scene.engine.dialect.name
            connections = [scene.engine.connect() for _ in range(concurrency)]
            for connection in connections:  # none keeps the limit of a transaction of suspects
                assert tuple(connection.execute(text(LIMITS[name])).one()) == USUAL[name]
                connection.close()

    asyncio.run(scenario())
