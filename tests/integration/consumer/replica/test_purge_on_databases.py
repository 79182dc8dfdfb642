"""The purge on a PostgreSQL that is slow, and on every database what is forgotten beside the inbox."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from hashlib import md5

import pytest
from consumer_kit import Shard
from products_kit import PRODUCTS, empty_database
from redis.asyncio import Redis
from sqlalchemy import insert, update

from consumer.errors import TransientError
from consumer.observability.metrics import Metrics
from consumer.redis.breaker import RedisBreaker
from consumer.replica import maintenance, pace
from consumer.replica.maintenance import Maintenance
from consumer.store import sweep
from consumer.store.sweep import Retention
from shardctl.shard import schema
from shardctl.shard.engine import MYSQL
from shardctl.shard.schema import InboxOutcome

pytestmark = pytest.mark.slow

OLD_ROWS = 60
DAY = 86_400
FILL = f"""
INSERT INTO shardctl_inbox (slot, identity, key_hash, published)
SELECT n % 64, md5('old-' || n)::uuid, n, extract(epoch FROM now())::bigint - {schema.PUBLISHED_FROM} - 9 * {DAY}
FROM generate_series(1, {OLD_ROWS}) AS n
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
                    Maintenance(
                        shard.store, print, client, gate, "f:s", Retention(8 * DAY, 38 * DAY), threads, metrics
                    ),
                    client,
                )

    asyncio.run(run())


def old_rows(shard):
    return shard.rows("SELECT count(*) FROM shardctl_inbox")[0][0]


def test_a_purge_outlasts_chunks_that_take_longer_than_its_turn(slow_shard, redis_url, monkeypatch):
    """The turn is over before a chunk and its rest are."""
    for module, name, value in (
        (maintenance, "TURN_SECONDS", 0.1),
        (pace, "CHUNK_SECONDS", 0.1),
        (sweep, "ROWS_A_PAGE", 5),
        (sweep, "_FIRST_PAGES_VERSION", (99,)),  # by key: all the rows are on one page
    ):
        monkeypatch.setattr(module, name, value)

    slow_shard.run("UPDATE shardctl_inbox SET slot = 0")

    async def scenario(maintaining, _):
        maintaining._at, maintaining._pace.rest = (0, bytes(16)), 2.0
        await maintaining.purge()

    play(slow_shard, redis_url, scenario)
    assert old_rows(slow_shard) == 0


def test_a_chunk_over_the_statement_timeout_is_made_smaller_until_it_ends(slow_shard, redis_url, monkeypatch):
    monkeypatch.setattr(pace, "REST_SECONDS", 0.05)
    monkeypatch.setattr(sweep, "ROWS_A_PAGE", 8)
    monkeypatch.setattr(sweep, "_FIRST_PAGES_VERSION", (99,))
    slow_shard.run("UPDATE shardctl_inbox SET slot = 0")

    async def scenario(maintaining, _):
        failures, maintaining._at, maintaining._pace.rest = 0, (0, bytes(16)), 1.0
        while old_rows(slow_shard):
            try:
                await maintaining.purge()
            except TransientError:
                failures += 1
                assert failures < 5
        assert failures

    play(slow_shard, redis_url, scenario)


@pytest.fixture(params=PRODUCTS)
def shard(request):
    with empty_database(request, request.param) as url, closing(Shard(url)) as shard:
        yield shard


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


# --- a walk through the inbox -----------------------------------------------------------------------------------------

BEGINNING = {"postgresql": 0, "sqlite": (0, bytes(16)), "mysql": (0, bytes(16)), "mariadb": (0, bytes(16))}


def fill(shard, count, *, slots=64, ago=0, **more):
    """Rows that were published so long ago."""
    rows = [
        {"slot": number % slots, "identity": md5(f"{ago} {number}".encode()).digest(), "key_hash": 1, **more}
        for number in range(count)
    ]
    with shard.engine.begin() as connection:
        moment = schema.published_now(connection) - ago
        connection.execute(insert(schema.inbox), [row | {"published": moment} for row in rows])


def walk(shard, pages=1, at=...):
    """How many rows went in each chunk, from the beginning, or from elsewhere."""
    at, gone = BEGINNING[shard.engine.dialect.name] if at is ... else at, []
    while True:
        chunk = shard.store.purge(Retention(8 * DAY, 38 * DAY), at, pages)
        gone.append(chunk.gone)
        at = chunk.at
        if chunk.over:
            assert at == BEGINNING[shard.engine.dialect.name]
            return gone


def left(shard):
    return shard.rows("SELECT count(*), min(published) FROM shardctl_inbox")[0]


@pytest.fixture(params=["by page", "by key"])
def either_way(request, shard, monkeypatch):
    """On PostgreSQL also as before version 14."""
    if request.param == "by key":
        monkeypatch.setattr(sweep, "_FIRST_PAGES_VERSION", (99,))
        monkeypatch.setitem(BEGINNING, "postgresql", (0, bytes(16)))
    elif shard.engine.dialect.name != "postgresql":
        pytest.skip("its rows are walked through by key")
    return shard


def test_a_walk_forgets_what_is_old_and_nothing_else(either_way):
    fill(either_way, 3_000, ago=9 * DAY)
    fill(either_way, 500, ago=7 * DAY)
    fill(either_way, 10, ago=90 * DAY, outcome=InboxOutcome.PARKED)
    fill(either_way, 10, ago=91 * DAY, outcome=InboxOutcome.DEAD)
    gone = walk(either_way)
    assert sum(gone) == 3_010
    assert len(gone) > 20
    assert max(gone) <= 291  # no more than a page can have
    assert left(either_way)[0] == 510
    assert walk(either_way, pages=128)[-1] == 0


def test_the_row_of_a_letter_stays_as_long_as_the_letter_may(either_way):
    for days, outcome in enumerate(InboxOutcome, 30):
        fill(either_way, 10, ago=days * DAY, outcome=outcome)
    assert sum(walk(either_way)) == 10
    kept = {outcome for (outcome,) in either_way.rows("SELECT DISTINCT outcome FROM shardctl_inbox")}
    assert kept == set(schema.OUTCOME_CODES.values())


def test_a_walk_begins_anywhere_and_still_visits_every_row(either_way, monkeypatch):
    fill(either_way, 2_000, ago=9 * DAY)
    monkeypatch.setattr(random, "randrange", lambda most: most // 2)
    first = sum(walk(either_way, at=None))
    assert 0 < first < 2_000
    assert first + sum(walk(either_way)) == 2_000


def test_an_empty_inbox_is_walked_through_at_once(either_way):
    assert walk(either_way) == [0]
    assert walk(either_way, at=None) == [0]


def test_a_walk_passes_over_rows_that_somebody_has_locked(either_way):
    """Waiting for a writer that waits for another row would end in a deadlock."""
    if either_way.engine.dialect.name == "sqlite":
        pytest.skip("one transaction writes at a time")
    fill(either_way, 100, slots=1, ago=9 * DAY)
    its_identity = md5(f"{9 * DAY} 7".encode()).digest()
    with either_way.engine.begin() as writer:
        row = schema.inbox.c.slot == 0, schema.inbox.c.identity == its_identity
        writer.execute(update(schema.inbox).where(*row).values(published=schema.published_now(writer)))
        assert sum(walk(either_way)) == 99
    assert sum(walk(either_way)) == 0  # by now it is young
    assert left(either_way)[0] == 1


def test_a_walk_does_not_wait_for_a_row_that_is_being_inserted(either_way):
    if either_way.engine.dialect.name == "sqlite":
        pytest.skip("one transaction writes at a time")
    fill(either_way, 100, slots=1, ago=9 * DAY)
    with either_way.engine.begin() as writer:
        row = {"slot": 0, "identity": bytes(15) + b"\x01", "key_hash": 1, "published": schema.published_now(writer)}
        writer.execute(insert(schema.inbox).values(row))
        assert sum(walk(either_way)) == 100


# --- how large it is --------------------------------------------------------------------------------------------------

ANALYZE = {"postgresql": "ANALYZE shardctl_inbox"} | dict.fromkeys(MYSQL, "ANALYZE TABLE shardctl_inbox")


def measured(shard):
    return shard.store.measure(Retention(8 * DAY, 38 * DAY))


def knows_size(shard):
    return shard.engine.dialect.name in ANALYZE


def analyzed(shard):
    if knows_size(shard):
        with shard.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(ANALYZE[shard.engine.dialect.name]).close()
    return shard


def test_an_empty_inbox_has_no_rows_and_nothing_to_forget(shard):
    size = measured(shard)
    assert size.rows == (0 if knows_size(shard) else None)
    assert size.overdue_seconds is None


def test_rows_and_bytes_are_those_of_the_statistics(shard):
    fill(shard, 1_000)
    size = measured(analyzed(shard))
    if knows_size(shard):
        assert size.rows == pytest.approx(1_000, rel=0.1)
        assert 60 * 1_000 < size.bytes < 400 * 1_000
    else:
        assert (size.rows, size.bytes) == (None, None)


def test_rows_that_were_never_counted_are_unknown(database_url):
    shard = Shard(database_url)
    shard.run("ALTER TABLE shardctl_inbox SET (autovacuum_enabled = false)")
    fill(shard, 100)
    size = measured(shard)
    shard.close()
    assert size.rows is None
    assert size.bytes > 0


def test_rows_are_reckoned_by_the_pages_that_came_since_they_were_counted(database_url):
    shard = Shard(database_url)
    shard.run("ALTER TABLE shardctl_inbox SET (autovacuum_enabled = false)")
    fill(shard, 3_000)
    analyzed(shard)
    fill(shard, 3_000, ago=1)
    size = measured(shard)
    shard.close()
    assert size.rows == pytest.approx(6_000, rel=0.05)


def test_the_oldest_applied_row_shows_how_far_the_purge_is_behind(shard):
    fill(shard, 50, ago=3 * DAY)
    fill(shard, 50, ago=90 * DAY, outcome=InboxOutcome.PARKED)
    fill(shard, 50, ago=30 * DAY, outcome=InboxOutcome.DEAD)
    assert measured(shard).overdue_seconds == 0
    fill(shard, 50, slots=1, ago=10 * DAY)
    shard.run("UPDATE shardctl_inbox SET slot = 0")  # elsewhere a sample is a slot's
    assert measured(shard).overdue_seconds == pytest.approx(2 * DAY, abs=60)
