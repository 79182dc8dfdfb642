"""How much WAL a write costs: it is what replicas, archives and the disk of a shard's database have to bear for each message.

Full-page images are left out: how many there are depends on checkpoints, and not on what the consumer writes. So the server runs
with `full_page_writes = off`, which `durable=False` sets. Nothing else writes in it: the log grows by the consumer's records.
"""

from __future__ import annotations

import pytest
from consumer_kit import Shard, write

from shardctl.local.servers import PostgresServer
from shardctl.wire.identity import new_key

pytestmark = pytest.mark.slow

QUIET = {"wal_log_hints": "off", "autovacuum": "off", "checkpoint_timeout": "1d"}
BATCHES, MESSAGES = 400, 2_000  # at most
# Bytes a message, by messages a batch: 601, 610 and 697 on PostgreSQL 18, and the same in each run. Another index on either table
# takes 70 bytes and more.
BOUNDS = {1_000: 625, 10: 635, 1: 725}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = PostgresServer(tmp_path_factory.mktemp("wal"), durable=False, settings=QUIET).start()
    yield server
    server.delete()


@pytest.fixture
def shard(server):
    server.drop_database("wal")
    shard = Shard(server.create_database("wal"))
    yield shard
    shard.close()


def customers(first, count):
    """New rows of a table with one index, of all slots in no order, under keys such as a publisher makes."""
    return [
        write(
            "customer",
            {
                "customer_id": f"customer-{number:06}",
                "name": f"Customer {number}",
                "email": "c@example.com",
                "credit": 1,
            },
            ident=new_key(),
        )
        for number in range(first, first + count)
    ]


@pytest.mark.parametrize("batch_rows", BOUNDS)
def test_a_write_is_logged_in_few_bytes(shard, batch_rows):
    shard.settle(*customers(0, 1_000))
    messages = min(MESSAGES, BATCHES * batch_rows)
    batches = [customers(first, batch_rows) for first in range(1_000, 1_000 + messages, batch_rows)]
    shard.run("CHECKPOINT")
    before = shard.rows("SELECT pg_current_wal_insert_lsn()::text")[0][0]
    for batch in batches:
        assert shard.store.apply(batch).applied == batch_rows
    ((logged,),) = shard.rows(f"SELECT pg_current_wal_insert_lsn() - '{before}'::pg_lsn")
    assert logged / messages <= BOUNDS[batch_rows]
