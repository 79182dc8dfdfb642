"""`shardctl relay` and `shardctl outbox` as a user meets them: a real broker, real databases, signals and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from consumerprocess_kit import until
from google.pubsub_v1 import SubscriberClient, Subscription
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from outbox_kit import order, outbox_in
from patience import PATIENCE_SECONDS
from products_kit import empty_database
from sqlalchemy import create_engine, select

from shardctl.cli import main
from shardctl.errors import UsageError
from shardctl.local.processes import BrokerProcess
from shardctl.local.servers.process import free_port
from shardctl.relay.process import VARIABLE, database_of
from shardctl.shard import outboxtables

pytestmark = pytest.mark.slow

FILE = """
fleet: shop
project: test-project
image: consumer:1
routing: {slot_bits: 3}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, number: bigint}}
shards:
  - {name: s0, slots: 0-7}
"""
TOPIC, SUBSCRIPTION = "projects/test-project/topics/data-writes", "projects/test-project/subscriptions/all"


def start_broker(folder, port):
    import grpc
    from google.pubsub_v1 import PublisherClient
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

    broker = BrokerProcess(folder, port).start()
    channel = grpc.insecure_channel(broker.host)
    PublisherClient(transport=PublisherGrpcTransport(channel=channel)).create_topic(name=TOPIC)
    subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
    subscriber.create_subscription(request=Subscription(name=SUBSCRIPTION, topic=TOPIC, enable_message_ordering=True))
    return broker, subscriber


def pulled(subscriber, count):
    """The numbers of so many messages, in order."""
    numbers = []
    while len(numbers) < count:
        answer = subscriber.pull(subscription=SUBSCRIPTION, max_messages=100, timeout=PATIENCE_SECONDS)
        numbers += [json.loads(received.message.data)["number"] for received in answer.received_messages]
        if ack_ids := [received.ack_id for received in answer.received_messages]:
            subscriber.acknowledge(subscription=SUBSCRIPTION, ack_ids=ack_ids)
    return numbers


def test_a_relay_waits_for_its_broker_and_ends_by_a_signal(database_url, tmp_path, monkeypatch):
    """No broker at first, then one; the relay is killed and another goes on; SIGTERM ends that one with exit code 0."""
    (tmp_path / "shards.yaml").write_text(FILE)
    engine, broker_port, port = create_engine(database_url), free_port(), free_port()
    outbox = outbox_in(engine)
    environment = os.environ | {VARIABLE: database_url, "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{broker_port}"}
    command = [sys.executable, "-m", "shardctl", "relay", "-f", f"{tmp_path}/shards.yaml", "--port", str(port)]
    log = (tmp_path / "log").open("wb")

    def enqueue(*numbers):
        with engine.begin() as connection:
            outbox.enqueue(connection, *(order("a", number) for number in numbers))

    def get(path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_SECONDS) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    enqueue(1, 2)
    process = subprocess.Popen(command, env=environment, stderr=log)
    broker = None
    try:
        until(lambda: "outbox_waits" in (tmp_path / "log").read_text(), what="the report")
        until(lambda: get("/ready") == "ready\n", what="ready")  # waiting for Pub/Sub, it is
        broker, subscriber = start_broker(tmp_path / "broker", broker_port)
        assert pulled(subscriber, 2) == [1, 2]
        until(lambda: "outbox_works" in (tmp_path / "log").read_text(), what="the all-clear")
        assert "shardctl_outbox_published_total 2.0" in get("/metrics")
        process.kill()
        process.wait()
        enqueue(3)
        process = subprocess.Popen(command, env=environment, stderr=log)
        assert pulled(subscriber, 1) == [3]
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        log.close()
        if broker:
            broker.stop()
        engine.dispose()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["action"] for line in lines if line["action"].startswith(("start", "stop"))] == [
        *("started", "started", "stopping", "stopped")
    ]


@pytest.fixture
def application(tmp_path, monkeypatch):
    """A folder with a fleet, an application's database without an outbox, and no broker."""
    (tmp_path / "shards.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, f"sqlite:///{tmp_path}/application.db")
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    engine = create_engine(f"sqlite:///{tmp_path}/application.db")
    yield engine
    engine.dispose()


def test_once_ends_with_what_is_left(application, capsys):
    assert main(["relay", "--once", "--patience", "0"]) == 1
    assert "shardctl outbox create" in capsys.readouterr().err
    assert main(["outbox", "create"]) == 0
    assert main(["outbox", "create"]) == 0
    assert main(["relay", "--once"]) == 0
    with application.begin() as connection:
        outbox_in(application).enqueue(connection, order("a"))
    assert main(["relay", "--once", "--patience", "0"]) == 1
    assert "1 slots wait for Pub/Sub. Run it again; nothing is lost." in capsys.readouterr().err


def test_once_is_not_done_while_refused_writes_are_kept(application, capsys):
    """Also where an earlier run has met them: else the next run of a cron job would call it well."""
    outbox_in(application)
    with application.begin() as connection:
        row = {"slot": 1, "attributes": '{"message_type": "order"}', "body": b"{}", "refused": "why"}
        connection.execute(outboxtables.outbox.insert(), [row])
    assert main(["relay", "--once"]) == 1
    assert "shardctl outbox list" in capsys.readouterr().err
    assert main(["outbox", "drop", "--all", "--yes"]) == 0
    assert main(["relay", "--once"]) == 0


def test_refused_writes_are_listed_retried_and_dropped(application, capsys):
    assert main(["outbox", "list"]) == 1  # no outbox: not an empty one
    outbox_in(application)
    with application.begin() as connection:
        rows = [
            {"slot": 1, "attributes": '{"message_type": "order"}', "body": b"{}", "refused": f"why {number}"}
            for number in range(3)
        ]
        connection.execute(outboxtables.outbox.insert(), rows)
    capsys.readouterr()
    assert main(["outbox", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["reason"] for row in listed["refused"]] == ["why 0", "why 1", "why 2"]
    first = str(listed["refused"][0]["position"])
    assert main(["outbox", "list", "--limit", "1"]) == 0
    out, err = capsys.readouterr()
    assert "message_type=order" in out
    assert "3 refused; 0 wait" in err
    assert main(["outbox", "list", "--limit", str(2**63)]) == 2
    assert main(["outbox", "retry"]) == 2
    assert main(["outbox", "retry", first, "--all"]) == 2
    assert main(["outbox", "retry", first]) == 0
    assert main(["outbox", "retry", first]) == 1
    assert main(["outbox", "drop", first]) == 1
    assert "1 of these positions hold no refused write" in capsys.readouterr().err
    assert main(["outbox", "drop", "--all"]) == 1
    assert "add --yes" in capsys.readouterr().err
    assert main(["outbox", "drop", "--all", "--yes"]) == 0
    assert main(["outbox", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == []


def test_rows_that_were_stored_by_hand_stop_no_relay(application, capsys, monkeypatch, tmp_path):
    """SQLite's columns hold values of any type."""
    outbox_in(application)
    attributes = '{"message_type": "order", "partition_key": "%s"}'
    with application.begin() as connection:
        for key, slot, body, time in (
            ("a", 1, '{"number": 1}', "2026-11-30 12:00:00"),
            ("b", 2, b'{"number": 2}', "yesterday"),
            ("c", 3, b'{"number": 3}', 17),
            ("d", "four", b"{}", "yesterday"),
            ("e", 5.5, b"{}", 17),
        ):
            connection.exec_driver_sql(
                "INSERT INTO shardctl_outbox (slot, attributes, body, enqueued_time) VALUES (?, ?, ?, ?)",
                (slot, attributes % key, body, time),
            )
    assert main(["outbox", "list"]) == 0
    broker, subscriber = start_broker(tmp_path / "broker", free_port())
    try:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.host)
        assert main(["relay", "--once"]) == 1
        assert sorted(pulled(subscriber, 3)) == [1, 2, 3]
    finally:
        broker.stop()
    assert "3 published, 2 refused" in capsys.readouterr().err
    assert main(["outbox", "list", "--json"]) == 0
    refused = json.loads(capsys.readouterr().out)["refused"]
    assert [(row["slot"], row["enqueued_time"]) for row in refused] == [("four", None), (5.5, None)]
    assert "the fleet has no slot 'four'" in refused[0]["reason"]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "neither SHARDCTL_OUTBOX_DATABASE_URL nor SHARDCTL_OUTBOX_DATABASE_URL_FILE is set"),
        ("postgresql://app:sekret@:x/y", "SHARDCTL_OUTBOX_DATABASE_URL: "),
        ("oracle://app:sekret@h/y", "SHARDCTL_OUTBOX_DATABASE_URL: "),
    ],
)
def test_a_database_that_cant_be_is_a_usage_error(application, capsys, monkeypatch, url, text):
    monkeypatch.setenv(VARIABLE, url)
    for command in ("relay", "relay --once", "outbox list", "outbox create"):
        assert main(command.split()) == 2
        err = capsys.readouterr().err
        assert text in err
        assert "sekret" not in err


def test_a_file_without_a_url_is_named(tmp_path):
    file = tmp_path / "url"
    file.write_text("\n")
    with pytest.raises(UsageError, match=f"^{VARIABLE}_FILE: {file} is empty. Write the URL"):
        database_of({f"{VARIABLE}_FILE": str(file)})


def test_the_example_publishes_what_was_committed():
    command = [sys.executable, "-m", "examples.outbox"]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, timeout=10 * PATIENCE_SECONDS)
    assert done.stdout.splitlines() == [
        "published: 1",
        'the consumer gets: {"order_id":"o-1","status":"paid"}',
        "carts: 1",
    ], done.stderr


@pytest.mark.parametrize("product", ["sqlite", "postgresql"])
def test_the_example_with_django_leaves_what_was_committed(request, product):
    root = Path(__file__).parents[3]
    with empty_database(request, product) as url:
        command, environment = [sys.executable, "-m", "examples.outbox_django"], os.environ | {VARIABLE: url}
        done = subprocess.run(
            command,
            env=environment,
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
            timeout=10 * PATIENCE_SECONDS,
        )
        assert done.stdout.splitlines() == ["carts: 1"], done.stderr
        engine = create_engine(url)
        with engine.begin() as connection:
            (row,) = connection.execute(select(outboxtables.outbox.c.attributes, outboxtables.outbox.c.body))
        engine.dispose()
    assert bytes(row.body) == b'{"order_id":"o-1","status":"paid"}'
    assert json.loads(row.attributes)["message_type"] == "order"
