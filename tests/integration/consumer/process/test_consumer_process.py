"""`python -m consumer` as a pod runs it: real database, real Redis, the embedded broker."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
from consumer_kit import Shard, config
from consumerprocess_kit import consumers, customers, until
from patience import PATIENCE_SECONDS

from shardctl.local.servers import PostgresServer
from shardctl.local.servers.process import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def start(tmp_path, redis_url, broker, shard):
    with consumers(tmp_path, shard.url, redis_url, broker) as start:
        yield lambda name="c", environment=(), **consumer: start(
            config(lease=timedelta(seconds=10), **consumer), name, **dict(environment)
        )


def test_writes_land_once_in_order_and_what_cant_land_is_reported(start, broker, shard):
    consumer = start()
    keys = [str(number) for number in range(20)]
    for round_number in range(5):
        for key in keys:
            broker.publish(
                {"customer_id": key, "name": f"{round_number}"}, key, idempotency_key=f"{key}/{round_number}"
            )
    broker.publish({"customer_id": "1", "name": "0"}, "1", idempotency_key="1/0")
    bad = {
        "bad_json": broker.publish(b"{", color="red"),
        "unknown_column": broker.publish({"customer_id": "1", "nmae": "x"}),
        "bad_value": broker.publish({"customer_id": "1", "credit": "x"}),
        "missing_key": broker.publish({"name": "x"}),
        "unknown_type": broker.publish({"customer_id": "1"}, message_type="a\x00b"),
        "bad_operation": broker.publish({"customer_id": "1"}, operation="x"),
        "bad_key": broker.publish({"customer_id": "1"}, partition_key="\x00"),
        "bad_slot": broker.publish({"customer_id": "1"}, slot=None),
        "wrong_slot": broker.publish({"customer_id": "another"}, partition_key="another"),
        "wrong_key": broker.publish({"customer_id": "2"}),
        "constraint": broker.publish({"customer_id": "1"}, operation="insert"),
        "no_row": broker.publish({"customer_id": "nobody", "name": "x"}, "nobody", operation="update"),
    }
    broker.publish({"customer_id": "1", "name": "last"}, "1")
    until(lambda: broker.backlog() == 0, what="an empty backlog")
    assert customers(shard) == dict.fromkeys(keys, "4") | {"1": "last"}
    letters = []
    until(lambda: letters.extend(broker.dead_letters()) or len(letters) == len(bad), what="all dead letters")
    letters_by_reason = {letter.attributes["shardctl-reason"]: letter for letter in letters}
    assert {reason: letter.attributes["shardctl-message-id"] for reason, letter in letters_by_reason.items()} == bad
    assert letters_by_reason["bad_json"].data == b"{"
    assert letters_by_reason["bad_json"].attributes["color"] == "red"
    assert letters_by_reason["bad_json"].attributes["partition_key"] == "1"
    assert consumer.metric("shardctl_messages_applied_total") == 101
    assert consumer.metric("shardctl_messages_duplicate_total") == 1
    assert consumer.get("/health") == (200, "ok\n")
    assert consumer.metric("shardctl_ready") == 1
    code = consumer.terminate()
    assert code == 0
    lines = [json.loads(line) for line in consumer.log().splitlines()]
    assert {"started", "dead_lettered", "drained", "stopped"} <= {line.get("action") for line in lines}
    assert all(line["shard"] == "s0" and line["severity"] for line in lines)


def test_stopped_in_the_middle_the_next_one_carries_on_at_once(start, broker, shard):
    first = start(max_outstanding_messages=100, batch_max_rows=10)
    for number in range(400):
        broker.publish({"customer_id": str(number % 7), "name": str(number)}, str(number % 7), operation="upsert")
    code = first.terminate()
    assert code == 0
    second = start("second")
    until(lambda: broker.backlog() == 0, what="an empty backlog")
    assert broker.counts()["expired"] == 0, "messages waited for the end of a lease that nobody held any more"
    applied = second.metric("shardctl_messages_applied_total")
    assert shard.rows("SELECT count(*) FROM shardctl_inbox") == [(400,)]
    assert applied is not None
    assert customers(shard) == {str(number % 7): str(number) for number in range(400)}


def test_without_redis_it_goes_on(start, broker, shard):
    consumer = start(environment={"REDIS_URL": "redis://127.0.0.1:1/0"})
    broker.publish({"customer_id": "1", "name": "x"})
    until(lambda: customers(shard) == {"1": "x"})
    assert consumer.metric("shardctl_redis_degraded") == 1
    assert consumer.terminate() == 0


def test_it_ends_in_time_while_the_database_is_frozen(start, broker, shard, tmp_path):
    """A thread that waits for the database can't be interrupted; the process must end all the same."""
    with PostgresServer(tmp_path / "own", durable=False) as server:
        own = Shard(server.create_database("own"))
        consumer = start(
            environment={"DATABASE_URL": own.url.render_as_string(hide_password=False)},
            drain_timeout=timedelta(seconds=1),
        )
        broker.publish({"customer_id": "1", "name": "x"})
        until(lambda: own.rows("SELECT count(*) FROM customers") == [(1,)])
        own.close()
        server.pause()
        broker.publish({"customer_id": "2", "name": "x"})
        until(lambda: consumer.metric("shardctl_messages_received_total") == 2)
        code = consumer.terminate()
        server.resume()
        assert code == 0


def test_it_ends_in_time_with_the_broker_gone(start, broker, shard):
    consumer = start(drain_timeout=timedelta(seconds=1))
    broker.publish({"customer_id": "1", "name": "x"})
    until(lambda: customers(shard))
    broker.stop()
    until(lambda: consumer.get("/ready")[0] == 503)
    code = consumer.terminate()
    assert code == 0


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        pytest.param({"DATABASE_URL": ""}, "DATABASE_URL", id="no database"),
        pytest.param({"DATABASE_URL": "mongodb://u:hunter2@h/d"}, "DATABASE_URL", id="unknown database"),
        pytest.param({"DATABASE_URL": "postgresql://u:hunter2@h:x/d"}, "DATABASE_URL", id="port of the database"),
        pytest.param({"REDIS_URL": "redis://:hunter2@h:x"}, "REDIS_URL", id="port of Redis"),
        pytest.param({"PORT": "x"}, "PORT", id="port"),
        pytest.param({"PORT": "taken"}, "can't listen", id="port taken"),
        pytest.param({"file": "{"}, "shard.json", id="file"),
        pytest.param(
            {"PUBSUB_EMULATOR_HOST": "", "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/key.json"},
            "no Google credentials: File /nowhere/key.json was not found. In a pod, bind",
            id="no Google credentials",
        ),
    ],
)
def test_bad_settings_are_one_clear_message_and_exit_2(tmp_path, environment, named):
    file = tmp_path / "shard.json"
    file.write_text(environment.get("file") or config().model_dump_json())
    with contextlib.ExitStack() as stack:
        taken = free_port()
        if environment.get("PORT") == "taken":
            blocker = stack.enter_context(socket.socket())
            blocker.bind(("127.0.0.1", taken))
            blocker.listen()
            environment = {"PORT": str(taken)}
        settings = {
            "DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/d", "REDIS_URL": "redis://127.0.0.1:1",
            "PUBSUB_EMULATOR_HOST": "127.0.0.1:1", "HOST": "127.0.0.1", **{k: v for k, v in environment.items() if k != "file"},
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "consumer", "--config", str(file)],
            env=os.environ | settings, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "hunter2" not in done.stderr
