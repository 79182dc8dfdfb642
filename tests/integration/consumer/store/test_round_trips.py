"""How often a replica asks its database for one batch. A network's delay comes as often, so no more than this, unseen."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from consumer_kit import Shard, write

pytestmark = pytest.mark.slow

# BEGIN with its settings and the fence; inbox, which also says whether any key is parked; rows; COMMIT.
POSTGRESQL = 4
# Fence, which also verifies the session; inbox, read and then written; parked keys; rows, updated and then inserted; COMMIT; the
# pool's ROLLBACK. Its ping is no question.
MYSQL = 8


def customers(first):
    return [write("customer", {"customer_id": f"{first}-{number}", "name": "x"}) for number in range(100)]


def test_a_batch_on_postgresql(database_url, tmp_path):
    shard = Shard(database_url, statement_timeout=timedelta(seconds=30))
    shard.settle(*customers(0))
    trace = tmp_path / "trace"
    with shard.engine.connect() as connection:
        driver = connection.connection.driver_connection
    with trace.open("wb") as file:
        driver.pgconn.trace(file.fileno())
        shard.settle(*customers(1))
        driver.pgconn.untrace()
    requests = re.findall(r"^.*\tF\t\d+\t(Query|Sync)\b.*$", trace.read_text(errors="replace"), re.MULTILINE)
    shard.close()
    assert len(requests) == POSTGRESQL


def test_a_batch_on_mariadb(mariadb_server):
    mariadb_server.drop_database("round_trips")
    shard = Shard(mariadb_server.create_database("round_trips"), statement_timeout=timedelta(seconds=30))
    shard.settle(*customers(0))
    asked = "SELECT variable_value FROM information_schema.session_status WHERE variable_name = 'Questions'"
    before = int(shard.rows(asked)[0][0])
    shard.settle(*customers(1))
    after = int(shard.rows(asked)[0][0])
    shard.close()
    mariadb_server.drop_database("round_trips")
    assert after - before - 2 == MYSQL  # without the question itself, and the end of its transaction
