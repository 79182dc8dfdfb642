"""What fails around a consumer costs time, never a write; and it goes on by itself when the fault is gone.

Each outage meets a shard under load. Then an oracle that shares no code with the consumer reads the database: every write is
there once, in order, and the processes are the ones that were there before.
"""

from __future__ import annotations

import contextlib
import time

import orjson
import pytest
from outage_kit import HELD_BYTES, MEBIBYTE, SLOW, STATEMENT_SECONDS, HurtFleet, Stage, client_ports, rss_bytes
from patience import PATIENCE_SECONDS

from shardctl.broker import set_faults
from shardctl.broker.faults import Faults
from shardctl.local.servers import BinaryMissingError, PostgresServer
from shardctl.local.servers.process import HOST, wait_until
from shardctl.shard.schema import OUTCOME_CODES, InboxOutcome
from shardctl.wire.identity import key_hash
from shardctl.wire.message import Write

pytestmark = pytest.mark.proof

_stage: list[Stage] = []


@pytest.fixture(scope="module", autouse=True)
def _end():
    yield
    while _stage:
        _stage.pop().close()


@pytest.fixture
def stage(tmp_path_factory):
    """One for all tests here; a new one after a test that didn't reach its verdict, since what it left would fail the others."""
    if not _stage:
        try:
            _stage.append(Stage(tmp_path_factory.mktemp("outages")))
        except BinaryMissingError as missing:
            pytest.skip(str(missing))
    _stage[0].verified = False
    yield _stage[0]
    if not _stage[0].verified:
        _stage.pop().close()


# --- the database -----------------------------------------------------------------------------------------------------


def refused_at_start(stage):
    """The consumers start first."""
    for replica in stage.replicas:
        replica.terminate()
    for replica in stage.replicas:
        replica.stop()
    stage.local.postgres.stop()
    for replica in stage.replicas:
        replica.revive()
    stage.unready("the database can't be used yet: ")
    assert stage.metric("messages_received_total") == 0, "messages are held that nobody here can write"
    assert stage.metric("database_up") == 0
    stage.started_anew()
    stage.local.postgres.start()


def restarted(stage):
    stage.local.postgres.stop()
    stage.unready("database: ")
    stage.local.postgres.start()


def killed(stage):
    stage.local.postgres.kill()
    stage.unready("database: ")
    stage.local.postgres.start()


def disk_full(stage):
    with stage.full_disk():
        stage.unready("No space left on device")


def deadlock(stage):
    count = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'hurt_s0'"
    ((before,),) = stage.sql(count)
    with stage.locked("customers") as rival:
        stage.until_waiting()
        rival.execute("LOCK TABLE shardctl_inbox IN EXCLUSIVE MODE")  # which the one that waits has written to
    assert wait_until(lambda: stage.sql(count) > [(before,)], PATIENCE_SECONDS), (
        "there was no deadlock: the test proves nothing"
    )


def statement_timeout(stage):
    """What needs the table waits; the replicas stay ready, since the database works."""
    with stage.locked("customers"):
        assert wait_until(lambda: stage.metric("slot_failing_seconds") > STATEMENT_SECONDS, PATIENCE_SECONDS)
        stage.ready()


def connection_limit(stage):
    stage.sql(
        "ALTER ROLE writer CONNECTION LIMIT 0",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'writer'",
    )
    stage.unready("too many connections")
    stage.sql("ALTER ROLE writer CONNECTION LIMIT -1")


def read_only(stage):
    """As a server says that was made a standby, or that guards its last free space."""
    sessions = "SELECT pid FROM pg_stat_activity WHERE usename = 'writer'"
    before = set(stage.sql(sessions))
    stage.sql("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    stage.unready("read-only")
    assert wait_until(lambda: not before & set(stage.sql(sessions)), PATIENCE_SECONDS), (
        "a session that can't write was kept"
    )
    # Sessions of the administrator are read-only too.
    stage.sql("SET default_transaction_read_only = off", "ALTER SYSTEM RESET default_transaction_read_only",
              "SELECT pg_reload_conf()")  # fmt: skip


def stopped_mid_transaction(stage):
    """For longer than its lock and its leases last, while it holds a transaction open. The other replica takes over."""
    sleeper, other = stage.replicas
    with stage.locked("customers"):
        assert wait_until(lambda: client_ports(sleeper) & set(stage.until_waiting()), PATIENCE_SECONDS)
        sleeper.pause()
        ports = client_ports(sleeper) & set(stage.until_waiting())
    mine = f"usename = 'writer' AND client_port IN ({','.join(map(str, ports))})"
    idle = f"SELECT FROM pg_stat_activity WHERE {mine} AND state = 'idle in transaction'"
    # The server ends the session that would keep everybody's locks.
    query = f"SELECT count(*) FROM pg_stat_activity WHERE {mine}"
    assert wait_until(lambda: stage.sql(idle) or stage.sql(query) == [(0,)], PATIENCE_SECONDS)
    assert wait_until(lambda: stage.sql(query) == [(0,)], STATEMENT_SECONDS + 5), "its transaction is still open"
    applied = other.metrics()["shardctl_messages_applied_total"]
    expired = stage.counts().get("expired", 0)
    assert wait_until(lambda: stage.counts().get("expired", 0) > expired, PATIENCE_SECONDS)
    assert wait_until(lambda: other.metrics()["shardctl_messages_applied_total"] > applied, PATIENCE_SECONDS)
    sleeper.resume()


# --- Redis ------------------------------------------------------------------------------------------------------------


def redis_down_at_start(stage):
    first = stage.replicas[0]
    first.stop()
    stage.local.redis.stop()
    first.start()
    stage.started_anew()
    stage.degraded(2)
    stage.local.redis.start()
    stage.degraded(0)


def redis_refuses(stage):
    stage.redis("CONFIG", "SET", "requirepass", "other")
    stage.redis("CLIENT", "KILL", "TYPE", "normal")
    stage.degraded(2)
    stage.redis("CONFIG", "SET", "requirepass", stage.local.redis.password)
    stage.degraded(0)


def redis_hangs(stage):
    stage.local.redis.pause()
    stage.degraded(2)
    stage.local.redis.resume()
    stage.degraded(0)


def redis_flushed(stage):
    """Locks vanish while they are held, again and again."""
    for _ in range(20):
        stage.until_published(100)
        stage.redis("FLUSHALL")
        stage.redis("SCRIPT", "FLUSH")
    stage.degraded(0)


def redis_fails_over(stage):
    """Another one, empty, at the same address."""
    stage.local.redis.kill()
    stage.local.redis.start()
    stage.degraded(0)


# --- Pub/Sub ----------------------------------------------------------------------------------------------------------


def streams_are_cut(stage):
    received = stage.metric("messages_received_total")
    set_faults(stage.local.broker.host, Faults(cut_stream_rate=0.5, seed=1))
    stage.until_published(2_000)
    assert stage.metric("messages_received_total") > received
    set_faults(stage.local.broker.host)


def calls_are_refused(stage):
    """Acks and leases meet UNAVAILABLE, or take effect and are answered with it; streams are cut."""
    with stage.locked("customers"):  # so that everything is published before publishing is refused too
        stage.until_published(2_000)
        stage.pause()
        set_faults(
            stage.local.broker.host, Faults(unavailable_rate=0.3, lost_reply_rate=0.3, cut_stream_rate=0.2, seed=1)
        )
    stage.ready()
    assert wait_until(lambda: sum(stage.local.backlog().values()) < 300, PATIENCE_SECONDS)
    set_faults(stage.local.broker.host)


def leases_end_early(stage):
    """Messages come again while they are worked on, acks come late, and acked messages come again too."""
    duplicates = stage.metric("messages_duplicate_total")
    faults = Faults(early_expiry_rate=0.1, duplicate_rate=0.1, replay_acked=True, seed=1)
    set_faults(stage.local.broker.host, faults)
    assert wait_until(lambda: stage.metric("messages_duplicate_total") > duplicates + 20, PATIENCE_SECONDS)
    set_faults(stage.local.broker.host)


OUTAGES = {
    "database refused at start": refused_at_start,
    "database restarted": restarted,
    "database killed": killed,
    "database disk full": disk_full,
    "database deadlock": deadlock,
    "database statement timeout": statement_timeout,
    "database connection limit": connection_limit,
    "database read-only": read_only,
    "Redis down at start": redis_down_at_start,
    "Redis refuses authentication": redis_refuses,
    "Redis hangs": redis_hangs,
    "Redis flushed": redis_flushed,
    "Redis fails over": redis_fails_over,
    "Pub/Sub cuts streams": streams_are_cut,
    "Pub/Sub refuses calls": calls_are_refused,
    "Pub/Sub ends leases early": leases_end_early,
    "replica stopped in a transaction": stopped_mid_transaction,
}


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)
def test_an_outage_loses_and_doubles_nothing(stage, outage):
    stage.load()
    stage.until_published(500)
    outage(stage)
    stage.go_on()
    stage.verify()


# --- sizes ------------------------------------------------------------------------------------------------------------

LARGEST = 10_000_000 - 700  # data that leaves room in a request for the topic and the attributes


def test_the_largest_message_lands(stage):
    """It is larger than all that a replica may hold at once."""
    assert LARGEST > HELD_BYTES
    frame = len(orjson.dumps({"customer_id": "large", "name": ""}))
    write = Write("customer", {"customer_id": "large", "name": "x" * (LARGEST - frame)}, idempotency_key="large")
    stage.load()
    stage.publish_raw(orjson.dumps(write.body), "large", "large")
    stage.expect(write)
    stage.until_published(500)
    stage.verify()


def test_the_largest_message_that_can_t_succeed_is_dead_lettered_and_the_next_one_lands(stage):
    """The reason would push it over what Pub/Sub takes: what the topic gets is shortened, and says so."""
    data = b"{" + b"x" * (LARGEST - 1)
    stage.publish_raw(data, "bad", "too large")
    stage.publish([Write("customer", {"customer_id": "bad", "name": "next"}, idempotency_key="next")])
    letters = []
    assert wait_until(lambda: letters.extend(stage.dead_letters()) or letters, PATIENCE_SECONDS)
    (letter,) = letters
    assert letter.attributes["shardctl-reason"] == "bad_json"
    assert letter.attributes["shardctl-shortened"] == f"{len(letter.data):,} of {len(data):,} bytes"
    assert data.startswith(letter.data)
    assert len(data) - len(letter.data) < 2_000
    # Recorded behind the letter. The oracle knows nothing of it.
    forget = f"DELETE FROM shardctl_inbox WHERE outcome = {OUTCOME_CODES[InboxOutcome.DEAD]} RETURNING key_hash"
    assert wait_until(lambda: stage.sql(forget) == [(key_hash("customer", "bad"),)], PATIENCE_SECONDS)
    stage.verify()


def test_memory_stays_flat_when_a_flood_meets_a_slow_database(stage):
    """What waits, waits at Pub/Sub: a replica holds what its bounds allow."""
    stage.load()
    stage.until_published(2_000)
    stage.verify()
    before = {replica: rss_bytes(replica) for replica in stage.replicas}
    flood = [
        Write(
            "customer", {"customer_id": f"flood-{number % 97}", "name": "x" * 20_000}, idempotency_key=f"flood#{number}"
        )
        for number in range(4_000)
    ]
    peak, outstanding = dict(before), 0.0
    with stage.trigger(SLOW, "slow"):
        stage.publish(flood)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            peak = {replica: max(peak[replica], rss_bytes(replica)) for replica in stage.replicas}
            outstanding = max(
                outstanding, *(replica.metrics().get("shardctl_outstanding_bytes", 0) for replica in stage.replicas)
            )
        waiting = sum(stage.local.backlog().values()) * 20_000
    assert waiting > 4 * HELD_BYTES, "the flood was over before it was looked at"
    assert HELD_BYTES / 2 < outstanding < 2 * HELD_BYTES
    grown = max(peak[replica] - before[replica] for replica in stage.replicas)
    assert grown < 12 * HELD_BYTES < len(flood) * 20_000, f"{grown / MEBIBYTE:.0f} MiB more"
    stage.verify()


# --- fail-over --------------------------------------------------------------------------------------------------------


class Pair(HurtFleet):
    """Its database has a synchronous standby; the consumers' URL names both."""

    standby: PostgresServer

    def start_servers(self):
        super().start_servers()
        self.standby = self.postgres.replica(self.directory / "standby", synchronous=True)

    def database_url(self, shard):
        ports = f"host={HOST}:{self.postgres.port}&host={HOST}:{self.standby.port}"
        return f"postgresql+psycopg://{self.role}:{self.postgres.password}@/{self._database_name(self.spec.shard(shard))}?{ports}"

    def consumer_environment(self, shard):
        places = f"{HOST}:{self.standby.port},{HOST}:{self.postgres.port}"  # the standby first: order doesn't matter
        url = f"postgresql://{self.role}:{self.postgres.password}@{places}/hurt_s0"
        return {**super().consumer_environment(shard), "DATABASE_URL": url}

    def stop(self):
        super().stop()
        self.standby.delete()


def test_a_database_that_fails_over_is_followed_and_nothing_is_lost(tmp_path):
    """The primary dies in mid-air; the consumers find the standby once it is promoted, without a restart."""
    try:
        stage = Stage(tmp_path, Pair)
    except BinaryMissingError as missing:
        pytest.skip(str(missing))
    with contextlib.closing(stage):
        stage.load()
        stage.until_published(2_000)
        assert stage.metric("messages_applied_total") > 0
        stage.local.postgres.kill()
        stage.unready("database: ")
        stage.local.standby.promote()
        stage.ready()
        stage.until_published(1_000)
        stage.verify()
