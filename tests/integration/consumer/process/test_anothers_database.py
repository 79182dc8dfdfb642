"""`python -m consumer` whose URL names the database of another shard or fleet: never ready, and nothing is taken or written."""

from __future__ import annotations

import pytest
from consumer_kit import CONFIG, Shard
from consumerprocess_kit import Consumer, customers, until

from shardctl.shard import database, membership
from shardctl.shard.membership import Membership

pytestmark = pytest.mark.slow

OWN = Membership(CONFIG.fleet, CONFIG.shard)


def belongs_to(shard, own, instead_of=None):
    with database.writing(shard.operator) as connection:
        membership.create(connection)
        membership.record(connection, own, instead_of)


@pytest.fixture
def shard(database_url):
    made = Shard(database_url)
    yield made
    made.close()


@pytest.fixture
def start(tmp_path, redis_url, broker, shard):
    services = {
        "DATABASE_URL": shard.url.render_as_string(hide_password=False),
        "REDIS_URL": redis_url,
        "PUBSUB_EMULATOR_HOST": broker.broker.host,
    }
    started = []

    def start():
        started.append(Consumer(tmp_path, CONFIG, services))
        return started[-1]

    yield start
    for consumer in started:
        if consumer.process.poll() is None:
            consumer.process.kill()
            consumer.process.wait()


@pytest.mark.parametrize(
    "other",
    [Membership(CONFIG.fleet, "s1"), Membership("else", CONFIG.shard)],
    ids=["of another shard", "of another fleet"],
)
def test_it_is_never_ready_and_takes_nothing_until_the_database_is_its_own(start, broker, shard, other):
    belongs_to(shard, other)
    broker.publish({"customer_id": "1", "name": "Ada"})
    consumer = start()
    sentence = f"belongs to {other}, and was given as that of {OWN}"
    until(lambda: sentence in consumer.log(), what="the log line")
    status, text = consumer.get("/ready")
    assert (status, sentence in text) == (503, True)
    assert "shardctl provision --take-over" in text
    assert consumer.metric("shardctl_ready") == 0
    assert (customers(shard), shard.rows("SELECT * FROM shardctl_replicas"), shard.inbox()) == ({}, [], [])
    assert broker.backlog() == 1
    belongs_to(shard, OWN, instead_of=other)
    until(lambda: customers(shard) == {"1": "Ada"}, what="the write")
    assert consumer.get("/ready")[0] == 200
    assert consumer.terminate() == 0


def test_a_database_without_a_record_is_believed(start, broker, shard):
    shard.run(f"DROP TABLE {membership.table.name}")
    broker.publish({"customer_id": "1", "name": "Ada"})
    consumer = start()
    until(lambda: customers(shard) == {"1": "Ada"}, what="the write")
    assert consumer.terminate() == 0
