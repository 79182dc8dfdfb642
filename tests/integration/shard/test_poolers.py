"""Through a transaction pooler: each transaction may get another server session, and other clients had it before.

PgBouncer runs with few sessions that take turns, so that a transaction nearly never gets the one it had. What each test would
see of the sessions that psycopg and libpq keep by default, `test_prepared_statements_meet_other_clients` shows.
"""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from consumer_kit import FLEET, Shard, write
from patience import PATIENCE_SECONDS
from pgbouncer_kit import PgBouncer
from rowcopy_kit import MOMENT, Side, copy
from sqlalchemy import text
from sqlalchemy.engine import make_url
from verify_kit import Fleet

from consumer.database import sessions
from consumer.errors import TransientError
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local.servers import PostgresServer
from shardctl.local.servers.process import wait_until
from shardctl.provision import provision_database
from shardctl.shard import database as control

pytestmark = pytest.mark.slow

CLIENTS, BATCHES, WRITES = 8, 40, 10


@pytest.fixture(params=["", "options,extra_float_digits"], ids=["refuses parameters", "ignores parameters"])
def pooler(request, postgres_server):
    made = PgBouncer(make_url(postgres_server.url("postgres")), ignores=request.param)
    yield made
    made.stop()


@pytest.fixture
def shard(pooler, database_url):
    """A consumer's database behind the pooler. It has habits of its own: another time zone, another way to write dates."""
    configure(database_url)
    made = Shard(pooler.url(database_url))
    yield made
    made.close()


@pytest.fixture
def bounded_shard(pooler, database_url):
    """The same, where a transaction that hangs for a second is cut off."""
    configure(database_url)
    made = Shard(pooler.url(database_url), statement_timeout=timedelta(seconds=1))
    yield made
    made.close()


def configure(database_url):
    name = make_url(database_url).database
    with closing(psycopg.connect(plain(database_url), autocommit=True)) as connection:
        connection.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
        connection.execute(f"ALTER DATABASE {name} SET datestyle = 'SQL, DMY'")


def plain(url):
    return url.replace("postgresql+psycopg", "postgresql")


@contextmanager
def another_client(shard):
    """Of the same pooler, database and user, and not ours: it is careless with its sessions."""
    with closing(
        psycopg.connect(plain(shard.url.render_as_string(hide_password=False)), autocommit=True)
    ) as connection:
        connection.prepare_threshold = None
        yield connection


def spoil_every_session(shard, statement):
    """Leave a setting in each server session that the pooler has: held open together, transactions take them all."""
    clients = [psycopg.connect(plain(shard.url.render_as_string(hide_password=False))) for _ in range(3)]
    for client in clients:
        client.prepare_threshold = None
        client.execute(statement)
    for client in clients:
        client.commit()
        client.close()


# --- what would go wrong ------------------------------------------------------------------------------------------------


def test_prepared_statements_meet_other_clients(pooler, database_url):
    """What psycopg does unasked after five uses: one client runs what another has prepared, and nobody gets an error."""
    clients = {name: psycopg.connect(plain(pooler.url(database_url)), prepare_threshold=0) for name in "ab"}
    sessions = {}
    for name, client in clients.items():  # both at once, so that each has a session of its own
        assert client.execute(f"SELECT '{name}', %s", ("x",)).fetchone() == (name, "x")
        sessions[client.execute("SELECT pg_backend_pid()", prepare=False).fetchone()[0]] = name
    assert len(sessions) == 2
    for client in clients.values():
        client.commit()
    for _ in range(20):
        session = clients["a"].execute("SELECT pg_backend_pid()", prepare=False).fetchone()[0]
        if sessions.get(session) == "b":
            assert clients["a"].execute("SELECT 'a', %s", ("x",)).fetchone() == ("b", "x")
            break
        clients["a"].commit()
    else:
        raise AssertionError("the pooler never gave one client the other's session")
    for client in clients.values():
        client.close()


# --- the consumer ---------------------------------------------------------------------------------------------------------


def test_writes_of_many_clients_at_once_land_in_their_own_tables(pooler, shard):
    failures = []

    def replica(number):
        kind = ("customer", "profile")[number % 2]
        engine = sessions.engine_of(shard.url, shard.config.consumer)
        store = shard.new_store()
        store._engine = engine
        for batch in range(BATCHES):
            keys = [f"{kind}-{number}-{batch}-{index}" for index in range(WRITES)]
            try:
                store.apply([write(kind, {"customer_id": key}) for key in keys])
            except TransientError as error:
                failures.append(error)
        engine.dispose()

    threads = [threading.Thread(target=replica, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    key_sets = [
        {key for (key,) in shard.rows(f"SELECT customer_id FROM {table}")} for table in ("customers", "profiles")
    ]
    assert [{key.partition("-")[0] for key in keys} for keys in key_sets] == [{"customer"}, {"profile"}]
    assert sum(map(len, key_sets)) == len(shard.inbox()) == CLIENTS * BATCHES * WRITES


def test_a_moment_is_stored_in_utc_whatever_the_database_and_other_clients_have_set(shard):
    shard.run("ALTER TABLE stamped ALTER changed_at TYPE timestamp")
    spoil_every_session(shard, "SET timezone = 'America/New_York'")
    shard.settle(write("stamped", {"id": "1", "changed_at": "2026-01-01T12:00:00Z"}))
    assert shard.rows("SELECT changed_at FROM stamped") == [(datetime(2026, 1, 1, 12),)]  # noqa: DTZ001


def test_a_table_is_found_where_the_database_has_it_whatever_search_path_another_client_left(shard):
    shard.run("CREATE SCHEMA other")
    shard.run("CREATE TABLE other.customers (LIKE public.customers INCLUDING ALL)")
    spoil_every_session(shard, "SET search_path = other, public")
    shard.settle(write("customer", {"customer_id": "1"}))
    assert shard.rows("SELECT (SELECT count(*) FROM public.customers), (SELECT count(*) FROM other.customers)") == [
        (1, 0)
    ]


def test_every_transaction_is_bounded_and_leaves_nothing_in_its_session(shard):
    names = ("statement_timeout", "idle_in_transaction_session_timeout", "timezone", "datestyle")
    spoil_every_session(shard, "SET statement_timeout = 0")
    for _ in range(6):
        assert [shard.rows(f"SHOW {name}")[0][0] for name in names] == ["30s", "30s", "UTC", "ISO, DMY"]
    with another_client(shard) as other:
        left = {other.execute("SHOW statement_timeout").fetchone()[0] for _ in range(6)}
    assert left == {"0"}


def test_a_statement_that_takes_too_long_is_ended(bounded_shard):
    with (
        pytest.raises(TransientError, match="statement timeout"),
        sessions.transaction(bounded_shard.engine, bounded_shard.dialect) as at,
    ):
        at.execute(text("SELECT pg_sleep(30)"))


def test_a_replica_that_stops_in_its_transaction_is_cut_off(bounded_shard):
    with bounded_shard.engine.connect() as stopped, another_client(bounded_shard) as mover:
        bounded_shard.store._fence.share(stopped)
        mover.execute("UPDATE shardctl_fence SET version = version + 1")  # waits for the share to end
        with pytest.raises(TransientError), sessions.translated():
            bounded_shard.store._fence.share(stopped)
    assert bounded_shard.settle(write("customer", {"customer_id": "1"})).applied == 1


def test_a_server_that_only_reads_is_tried_again(shard):
    spoil_every_session(shard, "SET default_transaction_read_only = on")
    with pytest.raises(TransientError, match="read-only"):
        shard.store.apply([write("customer", {"customer_id": "1"})])
    spoil_every_session(shard, "RESET default_transaction_read_only")
    assert shard.settle(write("customer", {"customer_id": "1"})).applied == 1


def test_a_pooler_that_met_its_server_as_a_standby_is_no_hindrance_once_it_takes_writes(tmp_path):
    """PgBouncer answers new clients with what its first session said, and libpq would refuse that for ever."""
    server = PostgresServer(tmp_path / "postgres", durable=False)
    server.start()
    url = server.create_database("moody")

    def only_reads(value):
        with closing(psycopg.connect(plain(url), autocommit=True)) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            connection.execute("SELECT pg_reload_conf()")

    only_reads("on")
    pooler = PgBouncer(make_url(url))
    engine = control.connect(pooler.url(url))
    with pytest.raises(control.DatabaseError, match="read-only"), control.snapshot(engine):
        pass
    only_reads("off")

    def writes():
        with suppress(control.DatabaseError), control.writing(engine) as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS t (n integer)")
            return True

    assert wait_until(writes, PATIENCE_SECONDS)
    engine.dispose()
    pooler.stop()
    server.delete()


# --- the control plane ----------------------------------------------------------------------------------------------------


def test_tables_are_made_and_found_through_it(pooler, database_url):
    fleet = fleet_from(parse(FLEET, "test"))
    first, again = (provision_database(fleet, fleet.shards[0], pooler.url(database_url)) for _ in range(2))
    assert (first.action, again.action) == ("create", "identical")


def test_a_snapshot_stays_as_it_is_and_cant_write(pooler, database_url):
    engine = control.connect(pooler.url(database_url))
    with control.writing(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE t AS SELECT 1 AS n")
    with control.snapshot(engine) as view:
        with control.writing(engine) as connection:
            connection.exec_driver_sql("UPDATE t SET n = 2")
        assert view.exec_driver_sql("SELECT n FROM t").scalar() == 1
        settings = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
        assert tuple(view.exec_driver_sql(settings).one()) == ("repeatable read", "on")
    engine.dispose()


def test_a_slot_is_copied_through_it(pooler, postgres_server):
    names = ("pooled_source", "pooled_destination")
    for name in names:
        postgres_server.drop_database(name)
    sides = [Side(pooler.url(postgres_server.create_database(name))) for name in names]
    source, destination = sides
    for number in range(2_500):
        source.thing(id=f"k{number}") if number < 50 else None
    source.record(5, *(f"i{number}" for number in range(2_500)))
    source.park(5, "a", b"x", b"y")
    assert copy(source, destination, 5).total_rows == 50 + 2_500 + 3
    with control.snapshot(destination.engine) as view:
        assert view.exec_driver_sql("SELECT DISTINCT a_time FROM things").all() == [(MOMENT.astimezone(UTC),)]
    for side in sides:
        side.close()
    for name in names:
        postgres_server.drop_database(name)


def test_verify_reads_through_it(pooler, postgres_server, tmp_path):
    names = [f"pooled_verify_{shard}" for shard in ("s0", "s1", "s2")]
    for name in names:
        postgres_server.drop_database(name)
    fleet = Fleet(tmp_path, lambda shard: pooler.url(postgres_server.create_database(f"pooled_verify_{shard}")))
    fleet.fill()
    assert fleet.report().faults == ()
    assert fleet.report().totals()["things"][0] == 16
    fleet.close()
    for name in names:
        postgres_server.drop_database(name)
