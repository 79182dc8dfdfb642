"""Provisioning and publishing through the real client library, against the embedded broker."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections import defaultdict

import pytest
from google.cloud import pubsub_v1
from patience import PATIENCE_SECONDS

from shardctl.broker import protos  # noqa: F401 - the broker must be there
from shardctl.cli import main
from shardctl.fleet import scaffold, topology, yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.provision import ProvisionError, provision_database, provision_pubsub
from shardctl.publisher import Publisher
from shardctl.wire.message import Write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def broker_host():
    process = subprocess.Popen(
        [sys.executable, "-m", "shardctl", "broker", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "PUBSUB_EMULATOR_HOST=" in line:
            yield line.strip().partition("PUBSUB_EMULATOR_HOST=")[2]
            break
    process.send_signal(2)
    assert process.wait(PATIENCE_SECONDS) == 0


@pytest.fixture
def fleet(request, broker_host, monkeypatch):
    """A fleet in a project of its own."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker_host)
    project = f"test-{abs(hash(request.node.name)) % 10**9:09}"
    return fleet_from(yamlfile.parse(scaffold.text(3).replace("my-project", project)))


@pytest.fixture
def clients(fleet):
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        yield publisher, subscriber


def pulled(subscriber, fleet, name):
    messages = []
    while True:
        path = f"projects/{fleet.project}/subscriptions/{name}"
        answer = subscriber.pull(subscription=path, max_messages=1000, return_immediately=True)
        if not answer.received_messages:
            return messages
        subscriber.acknowledge(subscription=path, ack_ids=[received.ack_id for received in answer.received_messages])
        messages += [received.message for received in answer.received_messages]


def test_provision_makes_all_and_then_nothing(fleet, clients):
    planned = provision_pubsub(fleet, *clients, dry_run=True)
    steps = provision_pubsub(fleet, *clients)
    assert [step.action for step in steps] == ["create"] * len(steps) == [step.action for step in planned]
    assert {step.action for step in provision_pubsub(fleet, *clients)} == {"identical"}
    assert len(steps) == 2 + 3 + 2  # topics, shards, strays and dead letters


def test_provision_updates_what_can_be_and_refuses_the_rest(fleet, clients):
    provision_pubsub(fleet, *clients)
    settings = fleet.subscription.model_copy(update={"max_delivery_attempts": 9})
    changed = fleet.model_copy(update={"subscription": settings})
    updates = [step for step in provision_pubsub(changed, *clients) if step.action == "update"]
    assert [step.fields for step in updates] == [("dead_letter_policy",)] * 3
    assert {step.action for step in provision_pubsub(changed, *clients)} == {"identical"}
    moved = fleet_from(
        yamlfile.parse(
            scaffold.text(3)
            .replace("my-project", fleet.project)
            .replace("0-351", "0-319")
            .replace("352-671", "320-671")
        )
    )
    with pytest.raises(ProvisionError, match=r"its filter is .* new generation with `shardctl rebalance`") as error:
        provision_pubsub(moved, *clients)
    assert str(error.value).count("its filter is") == 2


def test_each_write_reaches_one_shard_in_order(fleet, clients):
    provision_pubsub(fleet, *clients)
    writes = [Write("order", {"order_id": f"o-{n % 50}", "revision": n}) for n in range(2000)]
    with Publisher(fleet) as publisher:
        outcomes = list(publisher.publish_all(writes))
    assert all(outcome.message_id for outcome in outcomes)
    seen = defaultdict(list)
    for shard in fleet.shards:
        for sub in topology.subscriptions(fleet, shard):
            for message in pulled(clients[1], fleet, sub.id):
                assert int(message.attributes["slot"], 2) in shard.slots
                fields = json.loads(message.data)
                seen[fields["order_id"]].append(fields["revision"])
    assert sum(map(len, seen.values())) == 2000
    assert all(revisions == sorted(revisions) for revisions in seen.values())
    assert pulled(clients[1], fleet, topology.strays(fleet)[0].id) == []


def test_malformed_slots_reach_exactly_one_reader(fleet, clients):
    provision_pubsub(fleet, *clients)
    publisher, subscriber = clients
    topic = f"projects/{fleet.project}/topics/{fleet.topic.name}"
    slots = ["", "0", "1", "12", "1023", "01x", "341", "x", "0101010101010", " 01", "10101"]
    for slot in slots:
        publisher.publish(topic, b"{}", slot=slot).result()
    publisher.publish(topic, b"{}").result()
    names = [s.id for shard in fleet.shards for s in topology.subscriptions(fleet, shard)]
    slots_read = [m.attributes.get("slot") for name in names for m in pulled(subscriber, fleet, name)]
    strays = [m.attributes.get("slot") for m in pulled(subscriber, fleet, topology.strays(fleet)[0].id)]
    assert sorted(slots_read) == sorted(["0", "1", "12", "1023", "01x", "0101010101010", "10101"])
    assert sorted(map(str, strays)) == sorted(["", "341", "x", " 01", "None"])


def test_a_topic_that_isnt_there_ends_it(fleet):
    with Publisher(fleet) as publisher, pytest.raises(Exception, match="Pub/Sub didn't accept the write"):
        list(publisher.publish_all([Write("order", {"order_id": "o"})]))


def test_the_commands_on_a_broker(fleet, clients, tmp_path, capsys, monkeypatch):
    path = tmp_path / "shards.yaml"
    path.write_text(scaffold.text(3).replace("my-project", fleet.project))
    assert main(["provision", "-f", str(path), "--no-databases", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"create topic projects/{fleet.project}/topics/data-writes"
    assert main(["provision", "-f", str(path), "--no-databases", "--json"]) == 0
    assert {step["action"] for step in json.loads(capsys.readouterr().out)} == {"create"}
    lines = [json.dumps({"type": "order", "body": {"order_id": f"o{n}"}}) for n in range(500)]
    lines.insert(3, "{broken")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    assert main(["publish", "-f", str(path), "--json"]) == 1
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["published"], summary["refused"]) == (500, 1)
    assert summary["refused_lines"][0]["line"] == 4
    assert "line 4: not JSON" in err


def test_ctrl_c_flushes_what_was_taken(fleet, clients, tmp_path):
    provision_pubsub(fleet, *clients)
    path = tmp_path / "shards.yaml"
    path.write_text(scaffold.text(3).replace("my-project", fleet.project))
    process = subprocess.Popen(
        [sys.executable, "-m", "shardctl", "publish", "-f", str(path), "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ,
    )
    for n in range(100):
        process.stdin.write(json.dumps({"type": "order", "body": {"order_id": f"o{n}"}}).encode() + b"\n")
    process.stdin.flush()
    messages = []
    while not messages:  # it reads: now it may be interrupted
        messages = pulled(clients[1], fleet, "orders-s0-g1")
    process.send_signal(2)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, err
    summary = json.loads(out)
    assert summary["interrupted"]
    for shard in fleet.shards:
        for subscription in topology.subscriptions(fleet, shard):
            messages += pulled(clients[1], fleet, subscription.id)
    assert summary["published"] == len(messages) > 0  # how many of the 100 lines it had read by then is chance
    assert summary["refused"] == 0
    assert b"Traceback" not in err


def test_a_second_ctrl_c_ends_it_at_once_and_names_the_lines_without_an_answer(tmp_path):
    path = tmp_path / "shards.yaml"
    path.write_text(scaffold.text(3))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        process = subprocess.Popen(
            [sys.executable, "-m", "shardctl", "publish", "-f", str(path)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{silent.getsockname()[1]}"},
        )
        process.stdin.write("no JSON\n" + json.dumps({"type": "order", "body": {"order_id": "o1"}}) + "\n")
        process.stdin.close()
        for awaited in ("to confirm the lines that were read,", "a second Ctrl-C ends the command at once"):
            assert any(awaited in line for line in process.stderr)
            process.send_signal(2)
        began = time.monotonic()
        errors = process.stderr.read()
        assert process.wait(PATIENCE_SECONDS) == 130
    assert time.monotonic() - began < 20, "it waited for Pub/Sub"
    assert "0 published, 1 refused." in errors
    assert "No answer for 1 of the lines from line 2 on" in errors


def test_tables_are_made_once(fleet, database_url):
    shard = fleet.shards[0]
    step = provision_database(fleet, shard, database_url)
    assert step.action == "create"
    assert {"customers", "orders", "shardctl_inbox"} <= set(step.fields)
    assert provision_database(fleet, shard, database_url).action == "identical"
    with pytest.raises(ProvisionError) as error:
        provision_database(fleet, shard, "postgresql+psycopg://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value)
