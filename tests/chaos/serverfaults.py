"""Faults of the servers that consumers work with: Redis and PostgreSQL."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
from redis import Redis, RedisError

from tests.chaos.fault import Aim, Fault

REDIS, POSTGRES = "redis", "postgres"
LOCKABLE = ("shardctl_inbox", "shardctl_fence", "shardctl_lanes", "journal", "counter")

# --- Redis ------------------------------------------------------------------------------------------------------------


class RedisStop(Fault):
    """Gone, and empty when it comes back."""

    kind = REDIS
    seconds = (1.0, 6.0)

    def inject(self) -> None:
        self.local.redis.stop()

    def heal(self) -> None:
        self.local.redis.start()


class RedisPause(Fault):
    """Takes connections and answers nothing."""

    kind = REDIS
    seconds = (1.0, 6.0)

    def inject(self) -> None:
        self.local.redis.pause()

    def heal(self) -> None:
        self.local.redis.resume()


class RedisFlush(Fault):
    """Forgets every lock, again and again: two replicas believe that they hold one slot."""

    kind = REDIS
    seconds = (2.0, 6.0)

    def inject(self) -> None:
        self.hold()

    def hold(self) -> None:
        with contextlib.suppress(RedisError), Redis.from_url(self.local.redis.url, socket_timeout=2) as client:
            client.flushall()


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


class PostgresFault(Fault):
    kind = POSTGRES

    @property
    def server(self) -> Any:
        return self.local.postgres

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """To the database of the shard that is aimed at."""
        url = self.scene.database_url(self.aim.shard).replace("+psycopg", "")
        return psycopg.connect(url, autocommit=True, connect_timeout=5, **options)


class PostgresRestart(PostgresFault):
    """Sessions are ended, a checkpoint is written, and it comes back."""

    seconds = (0.5, 3.0)

    def inject(self) -> None:
        self.server.stop()

    def heal(self) -> None:
        self.server.start()


class PostgresKill(PostgresFault):
    """SIGKILL to all its processes; it comes back through recovery."""

    seconds = (0.5, 4.0)

    def inject(self) -> None:
        self.server.kill()

    def heal(self) -> None:
        self.server.start()


class PostgresPause(PostgresFault):
    """Every process is frozen: connections stay open and nothing answers."""

    seconds = (1.0, 8.0)

    def inject(self) -> None:
        self.server.pause()

    def heal(self) -> None:
        self.server.resume()


class PostgresTerminateBackends(PostgresFault):
    """Sessions are cut one by one, in the middle of whatever they do."""

    seconds = (1.0, 4.0)

    def inject(self) -> None:
        self.hold()

    def hold(self) -> None:
        with contextlib.suppress(psycopg.OperationalError), self.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'shardctl%' AND random() < 0.5"
            )


class PostgresLock(PostgresFault):
    """Somebody holds a table, as a migration does, longer than a statement may take."""

    seconds = (2.0, 8.0)

    @classmethod
    def target(cls, aim: Aim) -> str:
        return f"{aim.table} of {aim.shard}"

    _holder: psycopg.Connection[Any] | None = None

    def inject(self) -> None:
        self._holder = self.connect()
        self._holder.autocommit = False
        self._holder.execute(f"LOCK TABLE {self.aim.table} IN ACCESS EXCLUSIVE MODE")

    def heal(self) -> None:
        if self._holder is not None:
            self._holder.close()


class PostgresReadonly(PostgresFault):
    """Refuses writes, as a replica that isn't promoted yet."""

    seconds = (1.0, 6.0)

    def inject(self) -> None:
        self._set("SET default_transaction_read_only = on")

    def heal(self) -> None:
        self._set("RESET default_transaction_read_only")

    def _set(self, what: str) -> None:
        with self.connect() as connection:
            connection.execute(f"ALTER SYSTEM {what}")
            connection.execute("SELECT pg_reload_conf()")
