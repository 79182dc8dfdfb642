"""`python -m consumer` with parked keys, a custom sink and a rate limit: what runs beside the batches, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta

import pytest
from arrival_kit import HEAD
from consumerprocess_kit import consumers, until
from patience import PATIENCE_SECONDS
from sqlalchemy import insert, text
from sqlalchemy.engine import make_url

from consumer.database import sessions
from examples import inventory
from shardctl.fleet import shardconfig
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.shard import schema

pytestmark = pytest.mark.slow
TYPES = """
  customer:
    {table: customers, key: customer_id, operation: insert, on_poison: park, columns: {customer_id: text, name: text}}
  movement: {sink: "examples.inventory:Inventory", routing_key: sku, on_poison: park}
"""


def config_of(types=TYPES, **consumer):
    fleet = fleet_from(parse(HEAD + types, "test"))
    made = shardconfig.slice_of(fleet, fleet.shards[0])
    settings = {"lease": timedelta(seconds=10), **consumer}
    return made.model_copy(update={"consumer": made.consumer.model_copy(update=settings)})


@pytest.fixture
def engine(database_url):
    config = config_of()
    made = sessions.engine_of(make_url(database_url), config.consumer)
    schema.create(made, config.message_types, config.generations[0].slots, 1)
    inventory.stock.create(made)
    yield made
    made.dispose()


@pytest.fixture
def start(tmp_path, redis_url, broker, engine):
    with consumers(tmp_path, engine.url, redis_url, broker) as start:
        yield lambda **consumer: start(config_of(**consumer))


def rows(engine, query):
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def run(engine, statement):
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_a_parked_key_waits_and_a_release_lets_it_go_on(start, broker, engine):
    consumer = start()
    broker.publish({"customer_id": "1", "name": "first"})
    broker.publish({"customer_id": "1", "name": "second"}, operation="insert")
    broker.publish({"customer_id": "1", "name": "third"}, operation="update")
    broker.publish({"customer_id": "2", "name": "other"}, "2")
    until(lambda: broker.backlog() == 0, what="an empty backlog")
    assert rows(engine, "SELECT customer_id, name FROM customers ORDER BY 1") == [("1", "first"), ("2", "other")]
    assert rows(engine, "SELECT count(*) FROM shardctl_parked") == [(2,)]
    assert consumer.metric("shardctl_messages_parked_total") == 2
    assert broker.backlog("shop-dead") == 0
    run(engine, "DELETE FROM customers WHERE customer_id = '1'")
    run(engine, "UPDATE shardctl_parked_keys SET released = true")
    until(lambda: rows(engine, "SELECT * FROM shardctl_parked_keys") == [], what="the key free")
    assert rows(engine, "SELECT name FROM customers WHERE customer_id = '1'") == [("third",)]
    until(lambda: consumer.metric("shardctl_messages_released_total") == 2, what="the count")
    assert consumer.terminate() == 0
    assert '"action":"parked"' in consumer.log()


def test_a_type_whose_table_is_gone_waits_beside_another_and_goes_on_by_itself(start, broker, engine):
    consumer = start()
    with engine.begin() as connection:
        connection.execute(insert(inventory.stock), [{"sku": "1", "quantity": 0}])
    run(engine, "ALTER TABLE customers RENAME TO gone")
    for number in range(3):
        broker.publish({"customer_id": "1", "name": str(number)}, operation="upsert")
        broker.publish({"sku": "1", "quantity": 1}, "1", message_type="movement")
    until(lambda: broker.backlog() == 0, what="an empty backlog")
    assert rows(engine, "SELECT quantity FROM stock") == [(3,)]
    until(lambda: consumer.metric('shardctl_table_not_ready{type="customer"}') == 1, what="the type shown")
    assert consumer.metric("shardctl_ready") == 1
    until(lambda: '"action":"parked"' in consumer.log(), what="the log line")
    assert "`shardctl provision` makes a missing table" in consumer.log()
    run(engine, "ALTER TABLE gone RENAME TO customers")
    until(lambda: rows(engine, "SELECT * FROM shardctl_parked_keys") == [], what="the key free")
    assert rows(engine, "SELECT name FROM customers") == [("2",)]
    assert consumer.terminate() == 0


def test_a_custom_sink(start, broker, engine):
    consumer = start()
    with engine.begin() as connection:
        connection.execute(insert(inventory.stock), [{"sku": "bolt", "quantity": 1}])
    for quantity in (5, -4, -100, 7):  # the third can't be, and the fourth waits behind it
        broker.publish({"sku": "bolt", "quantity": quantity}, "bolt", message_type="movement")
    until(lambda: broker.backlog() == 0, what="an empty backlog")
    assert rows(engine, "SELECT quantity FROM stock") == [(2,)]
    assert rows(engine, "SELECT reason FROM shardctl_parked_keys") == [("out_of_stock",)]
    assert consumer.terminate() == 0


def test_a_sink_that_cant_be_had_is_one_clear_message_and_exit_2(tmp_path):
    file = tmp_path / "shard.json"
    types = 'movement: {sink: "no_such_package:Sink", routing_key: sku}'
    file.write_text(config_of(f"  {types}\n").model_dump_json())
    settings = {
        "DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/d", "REDIS_URL": "redis://127.0.0.1:1", "PORT": "0",
        "PUBSUB_EMULATOR_HOST": "127.0.0.1:1", "HOST": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, "-m", "consumer", "--config", str(file)]
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert "message_types.movement.sink: no_such_package:Sink: no_such_package can't be imported" in line


def test_it_ends_in_time_while_a_release_waits_for_a_lock(start, broker, engine):
    """A thread that waits for a row can't be interrupted, and must not hold the process up."""
    consumer = start(drain_timeout=timedelta(seconds=5))
    broker.publish({"customer_id": "1"})
    broker.publish({"customer_id": "1"}, operation="insert")
    until(lambda: rows(engine, "SELECT count(*) FROM shardctl_parked_keys") == [(1,)], what="a parked key")
    run(engine, "UPDATE shardctl_lanes SET state = 'left'")  # no release begins before the lock is ours
    run(engine, "UPDATE shardctl_fence SET version = version + 1")
    run(engine, "UPDATE shardctl_parked_keys SET released = true")
    with engine.connect() as blocker, blocker.begin():
        blocker.execute(text("SELECT * FROM shardctl_parked_keys FOR SHARE"))
        run(engine, "UPDATE shardctl_lanes SET state = 'active'")
        run(engine, "UPDATE shardctl_fence SET version = version + 1")
        waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        until(lambda: rows(engine, waits) == [(1,)], what="a release that waits")
        code = consumer.terminate()
    assert code == 0
    assert "maintenance was still waiting" in consumer.log()


def test_a_batch_that_waits_for_its_turn_doesnt_hold_the_end_up(start, broker, engine):
    consumer = start(rate_limit=1)
    for number in range(40):
        broker.publish({"customer_id": str(number)}, str(number))
    until(lambda: rows(engine, "SELECT count(*) FROM customers") > [(2,)], what="some")
    code = consumer.terminate()
    assert code == 0
    assert rows(engine, "SELECT count(*) FROM customers") < [(35,)]
    assert '"action":"drained"' in consumer.log()
