"""What can be done to a running fleet, a class a fault: `inject` it, `hold` it up while it lasts, `heal` it."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg
from redis import Redis, RedisError

from tests.chaos.scene import Scene

CONSUMER, REDIS, POSTGRES, BROKER = "consumer", "redis", "postgres", "broker"
GRACE_SECONDS = 15.0  # as a pod's: what hasn't ended by then is killed
LOCKABLE = ("shardctl_inbox", "shardctl_fence", "shardctl_slots", "journal", "counter")


@dataclass(frozen=True, slots=True)
class Aim:
    """Whom a fault hits, drawn with the schedule. A fault takes of it what it needs."""

    shard: str
    replica: int  # of the shard, from 0
    table: str


class Fault:
    """Two faults on one resource never overlap. `seconds` are the shortest and the longest it lasts."""

    kind: ClassVar[str]
    seconds: ClassVar[tuple[float, float]]

    def __init__(self, scene: Scene, aim: Aim) -> None:
        self.scene, self.local, self.aim = scene, scene.local, aim

    @classmethod
    def resource(cls, aim: Aim) -> str:
        return cls.kind

    @classmethod
    def target(cls, aim: Aim) -> str:
        """What it hits, for people."""
        return ""

    def inject(self) -> None: ...

    def hold(self) -> None:
        """Called several times a second until the fault is healed."""

    def heal(self) -> None: ...


# --- consumers --------------------------------------------------------------------------------------------------------


class ConsumerFault(Fault):
    kind = CONSUMER
    seconds = (1.0, 6.0)

    def __init__(self, scene: Scene, aim: Aim) -> None:
        super().__init__(scene, aim)
        self.consumer = self.local.replicas[aim.shard][aim.replica]

    @classmethod
    def resource(cls, aim: Aim) -> str:
        return f"{aim.shard}-{aim.replica}"

    @classmethod
    def target(cls, aim: Aim) -> str:
        return cls.resource(aim)

    def heal(self) -> None:
        if not self.consumer.running:
            self.consumer.revive()


class ConsumerKill(ConsumerFault):
    """SIGKILL, as when a node dies."""

    def inject(self) -> None:
        self.consumer.kill()


class ConsumerPause(ConsumerFault):
    """SIGSTOP for longer than its leases and locks live: it wakes up holding what others have by then."""

    seconds = (11.0, 15.0)

    def inject(self) -> None:
        self.consumer.pause()

    def heal(self) -> None:
        self.consumer.resume()


class ConsumerTerm(ConsumerFault):
    """SIGTERM, as when a pod is replaced; SIGKILL after the grace period."""

    seconds = (2.0, 7.0)

    def inject(self) -> None:
        self.consumer.terminate()
        self._deadline = time.monotonic() + GRACE_SECONDS

    def heal(self) -> None:
        self.consumer.stop(max(0.1, self._deadline - time.monotonic()))
        if self.consumer.exit_code == -signal.SIGKILL:
            self.scene.overstayed.append(self.consumer.name)
        super().heal()


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
        url = self.local.database_url(self.aim.shard).replace("+psycopg", "")
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
    """Every process stands still: connections stay open and nothing answers."""

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
                "WHERE application_name = 'shardctl-consumer' AND random() < 0.5"
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


# --- the broker -------------------------------------------------------------------------------------------------------


class BrokerPause(Fault):
    """Stands still: leases end behind everybody's back."""

    kind = BROKER
    seconds = (2.0, 8.0)  # less than a call for its faults waits

    def inject(self) -> None:
        self.local.broker.pause()

    def heal(self) -> None:
        self.local.broker.resume()


class BrokerFault(Fault):
    """A habit of the broker; several may be in force at once."""

    kind = BROKER
    seconds = (3.0, 10.0)
    settings: ClassVar[dict[str, float]]

    @classmethod
    def resource(cls, aim: Aim) -> str:
        return cls.__name__

    def inject(self) -> None:
        with self.scene.turn("habits"):
            self.scene.broker_faults[type(self).__name__] = self.settings
            self.scene.set_broker_faults()

    def heal(self) -> None:
        with self.scene.turn("habits"):
            self.scene.broker_faults.pop(type(self).__name__, None)
            self.scene.set_broker_faults()


class BrokerDuplicates(BrokerFault):
    settings: ClassVar = {"duplicate_rate": 0.05, "replay_acked": True}


class BrokerEarlyExpiry(BrokerFault):
    settings: ClassVar = {"early_expiry_rate": 0.03}


class BrokerDropAcks(BrokerFault):
    settings: ClassVar = {"drop_ack_rate": 0.1}


class BrokerCutStreams(BrokerFault):
    settings: ClassVar = {"cut_stream_rate": 0.1}


class BrokerUnavailable(BrokerFault):
    settings: ClassVar = {"unavailable_rate": 0.5}


class BrokerDelay(BrokerFault):
    settings: ClassVar = {"delay_rate": 0.1, "delay_seconds": 2.0}


class BrokerLostReply(BrokerFault):
    settings: ClassVar = {"lost_reply_rate": 0.3}


FAULTS: dict[str, type[Fault]] = {
    "consumer_kill": ConsumerKill,
    "consumer_pause": ConsumerPause,
    "consumer_term": ConsumerTerm,
    "redis_stop": RedisStop,
    "redis_pause": RedisPause,
    "redis_flush": RedisFlush,
    "postgres_restart": PostgresRestart,
    "postgres_kill": PostgresKill,
    "postgres_terminate_backends": PostgresTerminateBackends,
    "postgres_lock": PostgresLock,
    "postgres_readonly": PostgresReadonly,
    "postgres_pause": PostgresPause,
    "broker_duplicates": BrokerDuplicates,
    "broker_early_expiry": BrokerEarlyExpiry,
    "broker_drop_acks": BrokerDropAcks,
    "broker_cut_streams": BrokerCutStreams,
    "broker_unavailable": BrokerUnavailable,
    "broker_delay": BrokerDelay,
    "broker_lost_reply": BrokerLostReply,
    "broker_pause": BrokerPause,
}
