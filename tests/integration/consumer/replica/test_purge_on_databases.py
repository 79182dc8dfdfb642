"""The purge on a PostgreSQL that is slow, and on every database what is forgotten beside the inbox."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from consumer_kit import Shard
from redis.asyncio import Redis

from consumer.errors import TransientError
from consumer.observability.metrics import Metrics
from consumer.redis.breaker import RedisBreaker
from consumer.replica import maintenance, pace
from consumer.replica.maintenance import Maintenance

pytestmark = pytest.mark.slow

OLD_ROWS = 60
FILL = f"""
INSERT INTO shardctl_inbox (slot, identity, message_type, partition_key, message_id, publish_time, outcome, applied_time)
SELECT n % 64, decode(md5('old-' || n), 'hex'), 'customer', 'c', 'm' || n, old, 'applied', old
FROM generate_series(1, {OLD_ROWS}) AS n, (SELECT now() - interval '9 days') AS nine_days_ago(old)
"""
SLOW = """
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN OLD; END $$;
CREATE TRIGGER slowly BEFORE DELETE ON shardctl_inbox FOR EACH ROW EXECUTE FUNCTION slowly();
"""


@pytest.fixture
def slow_shard(database_url):
    """Each row takes 20 ms to delete, and a statement no longer than a second."""
    shard = Shard(database_url, statement_timeout=timedelta(seconds=1))
    shard.run(FILL)
    shard.run(SLOW)
    yield shard
    shard.close()


def play(shard, redis_url, scenario):
    async def run():
        metrics = Metrics()
        async with Redis.from_url(redis_url, socket_timeout=10) as client:
            with ThreadPoolExecutor(1) as threads:
                gate = RedisBreaker(asyncio.get_running_loop().time, metrics)
                await scenario(
                    Maintenance(shard.store, print, client, gate, "f:s", timedelta(days=8), threads, metrics), client
                )

    asyncio.run(run())


def old_rows(shard):
    return shard.rows("SELECT count(*) FROM shardctl_inbox")[0][0]


def test_a_purge_outlasts_chunks_that_take_longer_than_its_turn(slow_shard, redis_url, monkeypatch):
    """The turn is over before a chunk and its rest are."""
    for module, name, value in (
        (maintenance, "PURGE_SECONDS", 0.1),
        (maintenance, "TURN_SECONDS", 0.1),
        (pace, "CHUNK_SECONDS", 0.1),
        (pace, "LONGEST_REST", 2.0),
    ):
        monkeypatch.setattr(module, name, value, raising=False)

    async def scenario(maintaining, _):
        maintaining._pace.rows = 20
        await maintaining.purge()

    play(slow_shard, redis_url, scenario)
    assert old_rows(slow_shard) == 0


def test_a_chunk_over_the_statement_timeout_is_made_smaller_until_it_ends(slow_shard, redis_url, monkeypatch):
    monkeypatch.setattr(pace, "REST_SECONDS", 0.5)

    async def scenario(maintaining, _):
        failures = 0
        while old_rows(slow_shard):
            try:
                await maintaining.purge()
            except TransientError:
                failures += 1
                assert failures < 5
        assert failures

    play(slow_shard, redis_url, scenario)


@pytest.fixture(params=["postgresql", "sqlite", "mariadb"])
def shard(request, tmp_path):
    if request.param == "sqlite":
        shard = Shard(f"sqlite:///{tmp_path}/shard.db")
    elif request.param == "postgresql":
        shard = Shard(request.getfixturevalue("database_url"))
    else:
        shard = Shard(request.getfixturevalue("mariadb_server").create_database("purge_tests"))
    yield shard
    shard.close()
    if request.param == "mariadb":
        request.getfixturevalue("mariadb_server").drop_database("purge_tests")


def test_replicas_that_have_been_silent_for_long_are_forgotten(shard):
    for name in ("here", "quiet", "dead"):
        shard.store.report_presence(name, [1, 2])
    ago = {
        "postgresql": "now() - interval '{}' hour",
        "sqlite": "datetime('now', '-{} hours')",
        "mysql": "utc_timestamp() - INTERVAL {} HOUR",
    }[shard.url.get_backend_name()]
    for name, hours in (("quiet", 23), ("dead", 25)):
        shard.run(f"UPDATE shardctl_replicas SET seen_time = {ago.format(hours)} WHERE replica = '{name}'")
    assert shard.store.forget_replicas(86_400) == 1
    assert sorted(name for (name,) in shard.rows("SELECT replica FROM shardctl_replicas")) == ["here", "quiet"]
    shard.store.report_presence("dead", [2])  # it was only stopped for long
    assert shard.rows("SELECT generations FROM shardctl_replicas WHERE replica = 'dead'") == [("2",)]
