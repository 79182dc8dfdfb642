import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psycopg
import pymysql
import pytest
import redis
from patience import PATIENCE_SECONDS
from sqlalchemy import create_engine, text

from shardctl.local.servers import (
    BinaryMissingError,
    MariaDBServer,
    PostgresServer,
    RedisServer,
    ServerError,
    StartError,
)
from shardctl.local.servers.family import alive, children
from shardctl.local.servers.install import find_bin_dir
from shardctl.local.servers.process import HOST, wait_until
from shardctl.local.servers.watchdog import Guard

pytestmark = pytest.mark.slow


def query(server, sql, database="postgres"):
    with psycopg.connect(server.url(database).replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else None


@pytest.fixture
def postgres(tmp_path):
    server = PostgresServer(tmp_path / "primary")
    yield server
    server.delete()


@pytest.fixture
def standby(tmp_path, postgres):
    with postgres, postgres.replica(tmp_path / "standby", synchronous=True) as server:
        yield server
        server.delete()


@pytest.fixture
def redis_here(tmp_path):
    with RedisServer(tmp_path / "redis") as server:
        yield server


def client(server):
    return redis.Redis.from_url(server.url, socket_timeout=0.3, retry=None)


def test_postgres_answers_sqlalchemy_at_its_url(postgres):
    postgres.start()
    with create_engine(postgres.create_database("orders")).connect() as connection:
        assert connection.execute(text("SELECT current_database()")).scalar_one() == "orders"


def test_postgres_listens_on_loopback_with_durable_commits(postgres):
    postgres.start()
    names = ("listen_addresses", "fsync", "synchronous_commit", "server_encoding", "unix_socket_directories")
    assert [query(postgres, f"SHOW {name}")[0][0] for name in names] == [HOST, "on", "on", "UTF8", ""]


def test_creating_a_database_twice_keeps_it(postgres):
    postgres.start()
    postgres.create_database("orders")
    query(postgres, "CREATE TABLE kept AS SELECT 1 AS id", "orders")
    assert postgres.create_database("orders") == postgres.url("orders")
    assert query(postgres, "SELECT id FROM kept", "orders") == [(1,)]
    for _ in range(2):
        postgres.create_database("orders", ["billing"])
    query(postgres, "CREATE TABLE billing.invoices AS SELECT 1 AS id", "orders")


def test_settings_given_win(tmp_path):
    server = PostgresServer(tmp_path, durable=False, settings={"max_connections": "17"})
    try:
        server.start()
        assert query(server, "SHOW max_connections") == [("17",)]
        assert query(server, "SHOW fsync") == [("off",)]
    finally:
        server.delete()


@pytest.mark.parametrize("end", ["kill", "stop", "immediate", "somebody else's kill -9"])
def test_a_committed_row_and_the_port_survive(postgres, end):
    postgres.start()
    port, family = postgres.port, [postgres.pid, *children(postgres.pid)]
    query(postgres, "CREATE TABLE kept AS SELECT 1 AS id")
    if end == "kill":
        postgres.kill()
        assert not any(alive(pid) for pid in family)
    elif end == "stop":
        postgres.stop()
    elif end == "immediate":
        postgres.stop(mode="immediate")
    else:
        os.kill(postgres.pid, signal.SIGKILL)
        assert wait_until(lambda: not any(alive(pid) for pid in family), PATIENCE_SECONDS)
    assert not postgres.running
    postgres.start()
    assert (query(postgres, "SELECT id FROM kept"), postgres.port) == ([(1,)], port)


def test_another_object_takes_up_the_data_of_an_earlier_one(tmp_path, postgres):
    with postgres:
        query(postgres, "CREATE TABLE kept AS SELECT 1 AS id")
    with PostgresServer(tmp_path / "primary") as again:
        assert query(again, "SELECT id FROM kept") == [(1,)]


def test_kill_takes_a_backend_in_the_middle_of_a_query(postgres):
    postgres.start()
    with psycopg.connect(postgres.url().replace("+psycopg", "")) as connection:
        backend = connection.info.backend_pid
        running = threading.Thread(target=lambda: suppressed(connection.execute, "SELECT pg_sleep(600)"))
        running.start()
        postgres.kill()
        running.join(PATIENCE_SECONDS)
        assert not running.is_alive()
        assert not alive(backend)


def suppressed(call, *arguments):
    with suppress(psycopg.OperationalError):
        call(*arguments)


def test_a_paused_postgres_is_silent_until_it_is_resumed(postgres):
    postgres.start()
    with psycopg.connect(postgres.url().replace("+psycopg", "")) as connection:
        answers = []
        asking = threading.Thread(target=lambda: answers.append(connection.execute("SELECT 1").fetchone()))
        postgres.pause()
        asking.start()
        asking.join(0.2)
        assert answers == []
        postgres.resume()
        asking.join(PATIENCE_SECONDS)
        assert answers == [(1,)]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_paused_server_can_be_ended(postgres, end):
    postgres.start()
    postgres.pause()
    getattr(postgres, end)()
    assert not postgres.running


def test_a_promoted_synchronous_replica_has_every_row_and_takes_writes(postgres, standby):
    query(postgres, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        query(standby, "CREATE TABLE refused ()")
    postgres.kill()
    standby.promote()
    query(standby, "INSERT INTO kept VALUES (1001)")
    standby.restart()
    assert query(standby, "SELECT count(*), max(id) FROM kept") == [(1001, 1001)]


def test_a_commit_waits_for_a_paused_synchronous_replica(postgres, standby):
    query(postgres, "CREATE TABLE kept (id int)")
    standby.pause()
    writing = threading.Thread(target=query, args=(postgres, "INSERT INTO kept VALUES (1)"))
    writing.start()
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    assert wait_until(lambda: len(query(postgres, waiting)) == 1, PATIENCE_SECONDS)
    standby.resume()
    writing.join(PATIENCE_SECONDS)
    assert not writing.is_alive()


def test_a_replica_of_a_server_that_has_a_synchronous_one_waits_for_nobody(tmp_path, postgres, standby):
    second = postgres.replica(tmp_path / "second")
    try:
        postgres.kill()
        standby.kill()
        second.promote()
        query(second, "CREATE TABLE written ()")
    finally:
        second.delete()


def test_servers_live_side_by_side(tmp_path, postgres, redis_here):
    postgres.start()
    other = PostgresServer(tmp_path / "other")
    try:
        other.start()
        query(other, "CREATE TABLE only_here ()")
        assert query(postgres, "SELECT to_regclass('only_here')") == [(None,)]
        assert len({postgres.port, other.port, redis_here.port}) == 3
    finally:
        other.delete()


def test_redis_answers_and_keeps_nothing_on_disk(redis_here):
    with client(redis_here) as connection:
        connection.set("key", "value")
    with redis.Redis.from_url(redis_here.admin_url) as administrator:
        assert administrator.config_get("save") in ({"save": ""}, {b"save": b""})
    assert [path.name for path in redis_here.data_dir.iterdir()] == ["server.log"]


@pytest.mark.parametrize(
    "command",
    [
        "CONFIG SET dir /tmp",
        "CONFIG GET dir",
        "MODULE LIST",
        "REPLICAOF 127.0.0.1 1",
        "DEBUG SLEEP 0",
        "ACL LIST",
        "SAVE",
    ],
)
def test_a_client_of_redis_may_not_administer_it(redis_here, command):
    with client(redis_here) as connection, pytest.raises(redis.ResponseError, match=r"no permissions|not allowed"):
        connection.execute_command(*command.split())


def test_redis_and_mariadb_refuse_clients_without_a_password(redis_here, mariadb_server):
    with redis.Redis(port=redis_here.port, retry=None) as connection, pytest.raises(redis.AuthenticationError):
        connection.ping()
    for user in ("root", "", "mysql", "mariadb.sys"):
        with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
            pymysql.connect(host=HOST, port=mariadb_server.port, user=user)


def test_a_cluster_without_a_kept_password_is_not_started(postgres):
    """One that an earlier release made trusts every user of the machine."""
    postgres.start()
    postgres.stop()
    (postgres.data_dir / "password").unlink()
    with pytest.raises(ServerError, match="no file `password`"):
        postgres.start()


@pytest.mark.parametrize("end", ["restart", "kill"])
def test_redis_is_empty_at_the_same_url_after(redis_here, end):
    url = redis_here.url
    with client(redis_here) as connection:
        connection.set("key", "value")
    getattr(redis_here, end)()
    redis_here.start()
    with client(redis_here) as connection:
        assert (connection.get("key"), redis_here.url) == (None, url)


def test_a_killed_redis_refuses_connections(redis_here):
    redis_here.kill()
    with client(redis_here) as connection, pytest.raises(redis.ConnectionError):
        connection.ping()


def test_a_paused_redis_times_out_and_a_resumed_one_answers(redis_here):
    redis_here.pause()
    with client(redis_here) as connection:
        with pytest.raises(redis.TimeoutError):
            connection.ping()
        redis_here.resume()
    with client(redis_here) as connection:
        assert connection.ping()


@pytest.fixture(params=[PostgresServer, RedisServer])
def start_here(request, tmp_path):
    """Starts servers of one kind in folders of that name, and ends them."""
    servers = []

    def start(name, port=0, before=lambda _server: None):
        server = request.param(tmp_path / name, port)
        servers.append(server)
        before(server)
        return server.start()

    yield start
    for server in servers:
        server.delete() if isinstance(server, PostgresServer) else server.stop()


def test_a_named_port_that_a_server_of_its_kind_has_is_an_error_that_shows_the_log(start_here):
    first = start_here("first")
    with pytest.raises(StartError, match="Address already in use"):
        start_here("second", first.port)
    assert first.running


def test_a_free_port_that_another_takes_meanwhile_is_replaced(start_here):
    second = start_here("second", before=lambda server: start_here("first", server.port))
    assert second.running


@pytest.mark.parametrize(
    ("kind", "variable", "fix"),
    [
        (PostgresServer, "SHARDCTL_POSTGRES_BIN", "postgres not found: pip install 'shardctl[local]'"),
        (RedisServer, "SHARDCTL_REDIS_SERVER", "redis-server not found: pip install 'shardctl[local]'"),
    ],
)
def test_a_missing_program_is_named_with_the_fix(tmp_path, monkeypatch, kind, variable, fix):
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("shardctl.local.servers.install._DEBIAN", tmp_path)
    with pytest.raises(BinaryMissingError, match=fix.replace("[", r"\[").replace("]", r"\]")) as raised:
        kind(tmp_path / "server").start()
    assert f"or set {variable}" in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "variable"), [(PostgresServer, "SHARDCTL_POSTGRES_BIN"), (RedisServer, "SHARDCTL_REDIS_SERVER")]
)
def test_a_variable_that_names_nothing_is_an_error(tmp_path, monkeypatch, kind, variable):
    monkeypatch.setenv(variable, str(tmp_path / "nothing"))
    with pytest.raises(BinaryMissingError, match=f"{variable} names"):
        kind(tmp_path / "server").start()


def test_a_server_that_is_down_is_an_error_with_its_address(postgres):
    with pytest.raises(ServerError, match=f"{HOST}:{postgres.port} takes no connection"):
        postgres.create_database("orders")
    with pytest.raises(ServerError, match="call start"):
        _ = postgres.pid


@pytest.mark.proof
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs under another account")
def test_root_runs_programs_and_data_that_the_account_cannot_reach(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    bin_dir = find_bin_dir()
    site = bin_dir.parents[2]
    for tree in (bin_dir.parent, *site.glob(f"{bin_dir.parents[1].name}.libs")):
        shutil.copytree(tree, tmp_path / tree.relative_to(site), ignore=shutil.ignore_patterns("include", "*.a"))
    monkeypatch.setenv("SHARDCTL_POSTGRES_BIN", str(tmp_path / bin_dir.relative_to(site)))
    server = PostgresServer(tmp_path / "data")
    try:
        server.start()
        assert not server.pgdata.is_relative_to(tmp_path)
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        target = server.pgdata
    finally:
        server.delete()
    assert not target.exists()


ABANDON = """
import json, signal, sys
from pathlib import Path
from shardctl.local.servers import PostgresServer, RedisServer
from shardctl.local.servers.family import children
folder = Path(sys.argv[1])
servers = [PostgresServer(folder / "abandoned").start(), RedisServer(folder / "redis").start()]
print(json.dumps([pid for server in servers for pid in (server.pid, *children(server.pid))]), flush=True)
if sys.argv[2] == "paused":
    servers[1].pause()  # a paused PostgreSQL ends too, after the 5 s that its postmaster gives its children
if sys.argv[2] == "exit":
    sys.exit()
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("state", ["running", "paused", "exit"])
def test_no_process_outlives_a_parent_that_is_killed_or_forgets(tmp_path, state):
    command = [sys.executable, "-c", ABANDON, str(tmp_path), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pids = json.loads(parent.stdout.readline())
        assert len(pids) > 2
        if state != "exit":
            assert parent.stdout.readline() == "ready\n"
            parent.kill()
    try:
        assert wait_until(lambda: not any(alive(pid) for pid in pids), PATIENCE_SECONDS)
    finally:
        PostgresServer(tmp_path / "abandoned").delete()


def test_a_server_outlives_the_thread_that_started_it(redis_here):
    redis_here.stop()
    starter = threading.Thread(target=redis_here.start)
    starter.start()
    starter.join(PATIENCE_SECONDS)
    with client(redis_here) as connection:
        assert connection.ping()


def test_a_released_guard_shoots_nobody():
    with subprocess.Popen(["/bin/sh", "-c", "read -r _"], stdin=subprocess.PIPE) as bystander:
        guard = Guard(signal.SIGKILL)
        guard.watch(bystander.pid)
        guard.release()
        assert bystander.poll() is None


@pytest.mark.parametrize("_again", range(2))
def test_each_test_gets_an_empty_database_and_an_empty_redis(database_url, redis_url, _again):
    with create_engine(database_url).begin() as connection:
        connection.execute(text("CREATE TABLE mine ()"))
    with redis.Redis.from_url(redis_url) as connection:
        assert connection.dbsize() == 0
        connection.set("mine", 1)


# --- MariaDB ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mariadb(tmp_path, mariadb_server):
    """One of the test's own; the shared one is asked for so that a machine without MariaDB skips."""
    server = MariaDBServer(tmp_path / "a folder" / ("deep" * 30))  # no path for a socket
    yield server.start()
    server.delete()


def on(server, statement, database="shop"):
    with create_engine(server.url(database)).begin() as connection:
        result = connection.execute(text(statement))
        return result.all() if result.returns_rows else None


def test_mariadb_listens_on_loopback_with_durable_commits(mariadb):
    names = "@@bind_address, @@innodb_flush_log_at_trx_commit, @@port"
    assert on(mariadb, f"SELECT {names}", "mysql") == [(HOST, 1, mariadb.port)]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_mariadb_keeps_rows_and_port_when_it_is_started_again(mariadb, end):
    assert mariadb.create_database("shop") == mariadb.url("shop")
    on(mariadb, "CREATE TABLE kept AS SELECT 1 AS id")
    port = mariadb.port
    getattr(mariadb, end)()
    assert not mariadb.running
    mariadb.start()
    assert mariadb.port == port
    mariadb.create_database("shop")
    assert on(mariadb, "SELECT id FROM kept") == [(1,)]


def test_a_mariadb_that_starts_leaves_anothers_temporary_tables_alone(mariadb, mariadb_server):
    """It deletes those it finds in its folder."""
    mariadb_server.create_database("temporary")
    with create_engine(mariadb_server.url("temporary")).connect() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE kept ENGINE=Aria SELECT 1 AS id"))
        mariadb.restart()
        assert connection.execute(text("SELECT id FROM kept")).all() == [(1,)]
    mariadb_server.drop_database("temporary")


def test_a_missing_mariadb_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDCTL_MARIADB_BIN", str(tmp_path))
    with pytest.raises(BinaryMissingError, match="mariadb-server"):
        MariaDBServer(tmp_path / "server").start()
