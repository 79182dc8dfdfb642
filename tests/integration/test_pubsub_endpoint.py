"""`topic.endpoint`: all that a file configures reaches Pub/Sub there, over TLS and with the process's own credentials."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import trustme
from deadletter_kit import BrokerThread
from tls_kit import HOST, Certificates, Front

pytestmark = pytest.mark.slow

FLEET = """
fleet: shop
project: test-project
image: consumer:1.0.0
provisioner: api
topic: {{name: writes, endpoint: "{host}:{port}"}}
routing: {{slot_bits: 4}}
message_types:
  order: {{table: orders, key: order_id, columns: {{order_id: text}}}}
shards: [{{name: s0, slots: 0-15}}]
"""
# Google's library reads the authorities that it trusts once in a process.
EVERY_CLIENT = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path

from consumer.pubsub import calls, protos
from shardctl.cli import main
from shardctl.fleet.load import load_fleet
from shardctl.fleet.shardconfig import slice_of
from shardctl.gateway import pubsub
from shardctl.publisher import Publisher, Write
from shardctl.rebalance.driver import BarrierPublisher
from shardctl.wire.message import encode

file, writes = sys.argv[1:]
assert main(["provision", "-f", file, "--no-databases"]) == 0
assert main(["publish", writes, "-f", file]) == 0
assert main(["deadletter", "list", "-f", file, "--wait", "1"]) == 0
fleet = load_fleet(Path(file))
with Publisher(fleet) as publisher:
    publisher.publish(Write("order", {"order_id": "2"})).result(60)
barriers = BarrierPublisher(fleet)
barriers(encode(fleet, Write("order", {"order_id": "3"}), datetime.now(UTC))).result(60)
barriers.close()

async def data_plane():
    topics = pubsub.connect(fleet, None)
    assert await topics.probe() is None
    await topics.close()
    endpoint = slice_of(fleet, fleet.shards[0]).pubsub_endpoint
    message = protos.PubsubMessage(data=b"{}", attributes={"slot": "0000"})
    await calls.publisher(None, endpoint).publish("projects/test-project/topics/writes", [message], 60)
    answer = await calls.subscriber(None, endpoint).pull("projects/test-project/subscriptions/shop-s0-g1", 10, 60)
    print(len(answer.received_messages), "messages")

asyncio.run(data_plane())
"""


def test_all_clients_use_the_endpoint(tmp_path):
    certificates = Certificates(tmp_path, HOST)
    key = trustme.CA(key_type=trustme.KeyType.RSA).private_key_pem.bytes().decode()
    account = {
        "type": "service_account",
        "client_email": "shop@test-project.iam.gserviceaccount.com",
        "private_key": key,
    }
    account["token_uri"] = f"https://{HOST}:1/token"  # not asked: the library signs its tokens itself
    (tmp_path / "account.json").write_text(json.dumps(account))
    (tmp_path / "writes.jsonl").write_text('{"type": "order", "body": {"order_id": "1"}}\n')
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PUBSUB_")}
    environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(tmp_path / "account.json")
    environment["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] = str(certificates.ca)
    broker = BrokerThread()
    try:
        port = int(broker.host.rpartition(":")[2])
        with Front(port, certificates, asks=False, speaks="h2") as front:
            (tmp_path / "shards.yaml").write_text(FLEET.format(host=HOST, port=front.port))
            command = [
                sys.executable,
                "-c",
                EVERY_CLIENT,
                str(tmp_path / "shards.yaml"),
                str(tmp_path / "writes.jsonl"),
            ]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    finally:
        broker.stop()
    assert (ended.returncode, ended.stdout.splitlines()[-1:]) == (0, ["4 messages"]), ended.stderr
