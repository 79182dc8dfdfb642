"""A password that is rotated while a consumer runs: new connections log in with the new one, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from functools import partial

import pytest
from consumer_kit import Shard, write
from patience import PATIENCE_SECONDS
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError
from sqlalchemy.engine import URL

from consumer.database import sessions
from consumer.errors import TransientError
from consumer.process.credentials import Credentials
from consumer.process.settings import _parsed_database, _parsed_redis
from consumer.redis.client import connect
from consumer.redis.url import parse
from shardctl.local.servers.process import wait_until

pytestmark = pytest.mark.slow
BATCH, BATCHES = 5, 20


@pytest.fixture
def file(tmp_path):
    return tmp_path / "url"


def rewrite(file, url: URL, password: str) -> None:
    file.write_text(url.set(username="rotating", password=password).render_as_string(hide_password=False))


def shard_of(file, url: URL) -> Shard:
    """A shard whose connections log in as the file says."""
    rewrite(file, url, "first")
    login = Credentials("DATABASE_URL_FILE", file, _parsed_database)
    shard = Shard(login.url, create=False)
    shard.engine = sessions.engine_of(shard.url, shard.config.consumer, login)
    shard.store = shard.new_store()
    return shard


class Load(threading.Thread):
    """Writes batch after batch, and each of them again until it is committed."""

    def __init__(self, shard: Shard) -> None:
        super().__init__()
        self.shard, self.committed, self.refusals, self.ending = shard, 0, [], threading.Event()

    def run(self) -> None:
        for number in itertools.count():
            writes = [
                write("customer", {"customer_id": f"c{number}-{at}", "name": "Ada"}, ident=f"w{number}-{at}")
                for at in range(BATCH)
            ]
            while not self._apply(writes) and not self.ending.is_set():
                pass
            if self.ending.is_set():
                return

    def _apply(self, writes) -> bool:
        try:
            self.shard.settle(*writes)
        except TransientError as error:
            self.refusals.append(str(error))
            return False
        self.committed += 1
        return True

    def wait(self, condition: Callable[[], bool]) -> None:
        assert wait_until(condition, timeout_seconds=PATIENCE_SECONDS)


def test_on_postgresql_under_load(database_url, file):
    owner = Shard(database_url)
    owner.run("CREATE ROLE rotating LOGIN PASSWORD 'first'")
    owner.run(
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO rotating; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO rotating"
    )
    shard = shard_of(file, owner.url)
    load = Load(shard)
    load.start()
    try:
        load.wait(lambda: load.committed >= BATCHES)
        owner.run("ALTER ROLE rotating PASSWORD 'second'")
        owner.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotating'")
        load.wait(lambda: any("password authentication failed" in refusal for refusal in load.refusals))
        before = load.committed
        rewrite(file, owner.url, "second")
        load.wait(lambda: load.committed >= before + BATCHES)
    finally:
        load.ending.set()
        load.join()
        shard.engine.dispose()
        names = [row[0] for row in owner.rows("SELECT customer_id FROM customers")]
        recorded = len(owner.inbox())
        owner.run("DROP OWNED BY rotating; DROP ROLE rotating")
        owner.engine.dispose()
    assert len(names) == len(set(names)) == recorded == load.committed * BATCH


def test_on_mariadb(mariadb_server, file):
    owner = Shard(mariadb_server.create_database("rotation"))
    try:
        owner.run("CREATE USER rotating@'%' IDENTIFIED BY 'first'")
        owner.run("GRANT ALL ON rotation.* TO rotating@'%'")
        shard = shard_of(file, owner.url)
        assert shard.settle(write("customer", {"customer_id": "a", "name": "Ada"}, on="mysql")).applied
        owner.run("ALTER USER rotating@'%' IDENTIFIED BY 'second'")
        shard.engine.dispose()
        with pytest.raises(TransientError, match="Access denied"):
            shard.settle(write("customer", {"customer_id": "b", "name": "Ada"}, on="mysql"))
        rewrite(file, owner.url, "second")
        assert shard.settle(write("customer", {"customer_id": "b", "name": "Ada"}, on="mysql")).applied
        shard.engine.dispose()
    finally:
        owner.run("DROP USER rotating@'%'")
        owner.engine.dispose()
        mariadb_server.drop_database("rotation")


def test_on_redis(redis_server, file):
    def url(password):
        return redis_server.url.replace(f":{redis_server.password}@", f"rotating:{password}@")

    async def play(administrator):
        file.write_text(url("first"))
        login = Credentials("REDIS_URL_FILE", file, partial(_parsed_redis, "server"))
        client = connect(parse(login.url), PATIENCE_SECONDS, logins=login)
        async with client:
            assert await client.ping()
            administrator.acl_setuser("rotating", enabled=True, reset_passwords=True, passwords=["+second"])
            administrator.client_kill_filter(user="rotating", skipme=False)
            with pytest.raises(RedisError):  # of the connection that was ended, or of a new one
                await client.ping()
            with pytest.raises(AuthenticationError):
                await client.ping()
            file.write_text(url("second"))
            assert await client.ping()

    with Redis.from_url(redis_server.admin_url) as administrator:
        administrator.acl_setuser("rotating", enabled=True, passwords=["+first"], keys=["*"], categories=["+@all"])
        try:
            asyncio.run(play(administrator))
        finally:
            administrator.acl_deluser("rotating")
