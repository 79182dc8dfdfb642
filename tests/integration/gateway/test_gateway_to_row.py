"""A write's whole way: HTTP request, topic, consumer, a row in a real database."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from consumer_kit import FLEET, Shard
from gateway_process import Broker, Gateway, until
from patience import PATIENCE_SECONDS
from sqlalchemy import text

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local.servers.process import free_port

pytestmark = pytest.mark.slow


def test_a_request_becomes_a_row_once(tmp_path, database_url, redis_url):
    fleet = fleet_from(parse(FLEET + "gateway: {auth: none}\n", "test"))
    shard = Shard(database_url)
    file, log = tmp_path / "shard.json", tmp_path / "consumer.log"
    file.write_text(shard.config.model_dump_json())
    environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "PORT": str(free_port()), "HOST": "127.0.0.1"}
    with Broker(tmp_path, fleet) as broker:
        broker.subscribe("shop-s0-g1", fleet)
        environment["PUBSUB_EMULATOR_HOST"] = broker.host
        with log.open("wb") as errors:
            consumer = subprocess.Popen(
                [sys.executable, "-m", "consumer", "--config", str(file)], env=os.environ | environment, stderr=errors
            )
        try:
            with Gateway(tmp_path, fleet, broker.host) as gateway:
                body = b'{"Id": 9007199254740993, "aText": "k", "aDecimal": 12345678901234567890.10}'
                for _ in range(2):  # the second is the same write, sent again
                    assert gateway.write("mixed", body, key="once").status_code == 202
                (response,) = gateway.batch({"type": "customer", "body": {"customer_id": "c", "name": "Ann"}})
                assert response["status"] == 202

                def rows():
                    with shard.engine.connect() as connection:
                        mixed = connection.execute(text('SELECT "Id", "aDecimal" FROM "Everything"')).all()
                        names = connection.execute(text("SELECT name FROM customers")).all()
                        inbox = connection.execute(text("SELECT count(*) FROM shardctl_inbox")).scalar()
                        return (mixed, names, inbox) if mixed and names else None

                mixed, names, inbox = until(rows, 40, "the rows")
                assert [(row[0], str(row[1])) for row in mixed] == [(9007199254740993, "12345678901234567890.10")]
                assert names == [("Ann",)]
                assert inbox == 2, "two writes, of which one came twice"
        finally:
            consumer.terminate()
            consumer.wait(PATIENCE_SECONDS)
