"""How often a replica asks its database and Redis for a batch. A network's delay comes as often, so no more than this, unseen."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import timedelta

import pytest
import redis_kit
from consumer_kit import Shard, write

from consumer.observability.metrics import Metrics
from consumer.redis.breaker import RedisBreaker
from consumer.redis.lock import SlotLocks
from consumer.redis.seenfilter import SeenFilter
from shardctl.fleet.keyspace import lane_of

pytestmark = pytest.mark.slow

# BEGIN with its settings and the fence; inbox, which also says whether any key is parked; rows; COMMIT.
POSTGRESQL = 4
# Fence, which also verifies the session; inbox, read and then written; parked keys; rows, updated and then inserted; COMMIT; the
# pool's ROLLBACK. Its ping is no question.
MYSQL = 8
# Locks taken and released. Done messages are marked at most twice a second.
REDIS = 2

SIZES = (1, 10, 1_000)  # of a batch


def customers(first, count=100):
    return [write("customer", {"customer_id": f"{first}-{number}", "name": "x"}) for number in range(count)]


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_on_postgresql(database_url, tmp_path, size):
    shard, batch = Shard(database_url, statement_timeout=timedelta(seconds=30)), customers(1, size)
    shard.settle(*customers(0, 1))
    trace = tmp_path / "trace"
    with shard.engine.connect() as connection:
        driver = connection.connection.driver_connection
    with trace.open("wb") as file:
        driver.pgconn.trace(file.fileno())
        shard.settle(*batch)
        driver.pgconn.untrace()
    # Before them may come the pool's ping, on a machine that took a second since the batch before.
    transaction = trace.read_text(errors="replace").partition("BEGIN")[2]
    requests = re.findall(r"^.*\tF\t\d+\t(Query|Sync)\b.*$", transaction, re.MULTILINE)
    shard.close()
    assert 1 + len(requests) == POSTGRESQL


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


def test_batches_on_redis(tmp_path):
    """Each has as many lanes as messages."""

    async def settle(locks, recent, size):
        lanes = [lane_of(slot, 1) for slot in range(size)]
        assert await locks.take(lanes) == set(lanes)
        await locks.release(lanes)
        await recent.mark(customers(0, 1))

    async def scenario(place):
        metrics, moment, commands = Metrics(), time.time(), []
        async with place.client() as redis, place.administrator() as administrator:
            gate = RedisBreaker(time.monotonic, metrics)
            locks = SlotLocks(redis, gate, "f:s", 600_000, metrics)
            recent = SeenFilter(redis, gate, "f:s", lambda: moment)
            await settle(locks, recent, 1)  # from which the server knows the scripts
            async with administrator.monitor() as monitor:
                for size in SIZES:
                    await settle(locks, recent, size)
                await redis.get("{f:s}:end")
                async for command in monitor.listen():
                    if command["command"].startswith("GET {f:s}:end"):
                        return commands
                    if command["client_type"] != "lua":  # else a script runs it, inside the server
                        commands.append(command["command"].split()[0])
        return commands

    with redis_kit.one_server(tmp_path, "f:s") as place:
        assert asyncio.run(scenario(place)) == ["EVALSHA"] * REDIS * len(SIZES)
