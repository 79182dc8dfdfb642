"""A whole fleet on this machine: a broker, Redis, a database for each shard, and consumers, each a process of its own."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import grpc

from shardctl import topology
from shardctl.errors import ShardctlError
from shardctl.local import broker as brokers
from shardctl.local.broker.faults import NONE, Faults
from shardctl.local.processes import BrokerProcess, ConsumerProcess
from shardctl.local.servers import PostgresServer, RedisServer
from shardctl.local.servers.process import free_port
from shardctl.message import Write
from shardctl.provision import database_url_variable, provision_database, provision_pubsub
from shardctl.publisher import Publisher
from shardctl.render import config_text
from shardctl.spec import Fleet, Shard

EMULATOR_VARIABLE = "PUBSUB_EMULATOR_HOST"
POLL_SECONDS = 0.1
START_SECONDS, START_SECONDS_A_CONSUMER = 30.0, 2.0  # each takes a second of a core, and they all start at once
STOP_MARGIN_SECONDS = 10.0  # beyond the consumer's own drain, as in the rendered Deployment
SESSIONS_BESIDE_CONSUMERS = 40  # of PostgreSQL: the oracle's, a person's
LONGEST_REVIVE_PAUSE_SECONDS = 10.0

# A commit reaches the kernel before it returns. So the server may be killed at any time, and only the machine's end loses data.
_KILLABLE = {"synchronous_commit": "on"}

_environment = threading.Lock()


class NotDrainedError(ShardctlError):
    """Messages are left where none should be."""

    def __init__(self, backlog: Mapping[str, int], timeout_seconds: float, logs: Path) -> None:
        left = ", ".join(f"{name} {count:,}" for name, count in backlog.items() if count)
        super().__init__(f"after {timeout_seconds:g} s there is still a backlog: {left}. The consumers' logs: {logs}")
        self.backlog = dict(backlog)


def new_folder(directory: Path) -> Path:
    """A folder for one run, named by its time."""
    folder = directory / f"run-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
    folder.mkdir(parents=True)
    return folder


class LocalFleet:
    """`with LocalFleet(fleet, folder) as local: local.publish(writes); local.wait_drained()`.

    Every process ends with the `with` block, or when this process dies. All servers listen on loopback alone.

    `directory` takes the databases, the logs and each consumer's configuration; all but the databases is left there, and the
    databases too with `keep`. `replicas` replaces `local.replicas` of the spec. Tests may use its parts one by one:
    `local.replicas["s0"][0].kill()`, `local.redis.stop()`, `local.broker.pause()`.
    """

    def __init__(
        self, spec: Fleet, directory: Path, *, replicas: int | None = None, faults: Faults = NONE, keep: bool = False
    ) -> None:
        self.spec = spec
        self.directory = directory.absolute()
        self.broker = BrokerProcess(self.directory / "broker", faults=faults)
        self.redis = RedisServer(self.directory / "redis")
        count = replicas or spec.local.replicas
        sessions = sum(count * spec.consumer_of(shard).concurrency for shard in spec.shards) + SESSIONS_BESIDE_CONSUMERS
        self.postgres = (
            PostgresServer(
                self.directory / "postgres", durable=False, settings={**_KILLABLE, "max_connections": str(sessions)}
            )
            if spec.local.database == "postgresql"
            else None
        )
        self.replicas = {shard.name: self._make_replicas(shard, count) for shard in spec.shards}
        self.keep = keep
        self._settle_ports()
        self._revive_at: dict[str, float] = {}

    # -- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.start_servers()
            self.provision()
            self.start_consumers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_servers(self) -> None:
        """Broker, Redis and PostgreSQL, all at once."""
        _at_once(server.start for server in (self.broker, self.redis, self.postgres) if server is not None)

    def provision(self) -> None:
        """Topics, subscriptions and tables, by the code that makes the real ones."""
        from google.cloud import pubsub_v1

        with self.as_emulator():
            publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
        provision_pubsub(self.spec, publisher, subscriber)
        publisher.stop()
        subscriber.close()
        for shard in self.spec.shards:
            self._make_database(shard)
            provision_database(self.spec, shard, self.database_url(shard.name))

    def start_consumers(self) -> None:
        """Every replica of every shard; ready when it returns."""
        for shard in self.spec.shards:
            config = self._config_file(shard)
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(config_text(self.spec, shard))
        _at_once(self._starter(consumer) for consumer in self.consumers)

    def stop(self) -> None:
        """Consumers drain first, all at once; then what they work with ends. Safe to call again."""
        for consumer in self.consumers:
            consumer.resume()
            consumer.terminate()
        drain = max(self.spec.consumer_of(shard).drain_timeout.total_seconds() for shard in self.spec.shards)
        _at_once(_stopper(consumer, drain + STOP_MARGIN_SECONDS) for consumer in self.consumers)
        _at_once([self.broker.stop, self.redis.stop, self._end_postgres])
        if not self.keep:
            shutil.rmtree(self.directory / "sqlite", ignore_errors=True)

    def revive(self) -> list[ConsumerProcess]:
        """Start again what died by itself, as Kubernetes would: later and later when it dies at once. Returns which."""
        revived = []
        for consumer in self.consumers:
            if not consumer.died:
                continue
            due = self._revive_at.setdefault(
                consumer.name, time.monotonic() + min(LONGEST_REVIVE_PAUSE_SECONDS, consumer.restarts * 2.0)
            )
            if time.monotonic() >= due:
                del self._revive_at[consumer.name]
                consumer.revive()
                revived.append(consumer)
        return revived

    # -- use ---------------------------------------------------------------------------------------------------------

    @property
    def consumers(self) -> list[ConsumerProcess]:
        """Every replica of every shard."""
        return [consumer for replicas in self.replicas.values() for consumer in replicas]

    @contextmanager
    def as_emulator(self) -> Iterator[None]:
        """Google's clients that are made inside talk to this fleet's broker, also after the block has ended."""
        with _environment:
            before = os.environ.get(EMULATOR_VARIABLE)
            os.environ[EMULATOR_VARIABLE] = self.broker.host
            try:
                yield
            finally:
                if before is None:
                    del os.environ[EMULATOR_VARIABLE]
                else:
                    os.environ[EMULATOR_VARIABLE] = before

    def publisher(self) -> Publisher:
        """The publisher that producers use. Close it after use."""
        with self.as_emulator():
            return Publisher(self.spec)

    def publish(self, writes: Iterable[Write]) -> int:
        """Publish writes and wait until the broker has all of them; how many it took."""
        with self.publisher() as publisher:
            return sum(outcome.message_id is not None for outcome in publisher.publish_all(writes))

    def database_url(self, shard: str) -> str:
        """For SQLAlchemy."""
        if self.postgres is None:
            return f"sqlite:///{self.directory / 'sqlite' / f'{shard}.db'}"
        return self.postgres.url(self._database_name(self.spec.shard(shard)))

    @property
    def databases(self) -> dict[str, str]:
        """URLs by shard."""
        return {shard.name: self.database_url(shard.name) for shard in self.spec.shards}

    def environment(self) -> dict[str, str]:
        """What other commands need to work on this fleet."""
        databases = {database_url_variable(shard): self.database_url(shard.name) for shard in self.spec.shards}
        return {EMULATOR_VARIABLE: self.broker.host, "REDIS_URL": self.redis.url, **databases}

    def subscriptions(self) -> dict[str, dict[str, Any]]:
        """What the broker tells of each subscription, by id; see `shardctl.local.broker.stats`."""
        try:
            found = brokers.stats(self.broker.host)["subscriptions"]
        except grpc.RpcError as error:
            raise ShardctlError(f"the broker doesn't answer any more; its log: {self.broker.log_file}") from error
        return {name.rpartition("/")[2]: standing for name, standing in found.items()}

    def backlog(self) -> dict[str, int]:
        """Messages not yet acked, for each shard's subscriptions by id."""
        standing = self.subscriptions()
        return {
            name: standing[name]["undelivered"] for shard in self.spec.shards for name in self.subscription_ids(shard)
        }

    def subscription_ids(self, shard: Shard) -> list[str]:
        return [subscription.id for subscription in topology.every_subscription(self.spec, shard)]

    def wait_drained(self, timeout_seconds: float = 60.0, *, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Returns once no shard has a backlog; calls `meanwhile` again and again. Raises NotDrainedError."""
        deadline = time.monotonic() + timeout_seconds
        while any((backlog := self.backlog()).values()):
            if time.monotonic() > deadline:
                raise NotDrainedError(backlog, timeout_seconds, self.directory / "consumers")
            meanwhile()
            time.sleep(POLL_SECONDS)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _settle_ports(self) -> None:
        """No two of ours on one port: each was free when it was picked, and still is, so a pick may come twice."""
        taken: set[int] = set()
        for server in (self.broker, self.redis, self.postgres, *self.consumers):
            while server is not None and server.port in taken:
                server.port = free_port()
            if server is not None:
                taken.add(server.port)

    def _make_replicas(self, shard: Shard, count: int) -> tuple[ConsumerProcess, ...]:
        folder = self.directory / "consumers"
        names = [f"{topology.shard_id(self.spec, shard)}-{number}" for number in range(count)]
        return tuple(ConsumerProcess(folder / name, name, self._config_file(shard)) for name in names)

    def _starter(self, consumer: ConsumerProcess) -> Callable[[], object]:
        shard = next(name for name, replicas in self.replicas.items() if consumer in replicas)
        consumer.environment = {
            "DATABASE_URL": self.database_url(shard),
            "REDIS_URL": self.redis.url,
            EMULATOR_VARIABLE: self.broker.host,
        }
        return lambda: consumer.start(START_SECONDS + START_SECONDS_A_CONSUMER * len(self.consumers))

    def _config_file(self, shard: Shard) -> Path:
        """The same text as the rendered ConfigMap's."""
        return self.directory / "config" / shard.name / "shard.json"

    def _database_name(self, shard: Shard) -> str:
        return topology.shard_id(self.spec, shard).replace("-", "_")

    def _make_database(self, shard: Shard) -> None:
        if self.postgres is None:
            (self.directory / "sqlite").mkdir(parents=True, exist_ok=True)
        else:
            self.postgres.create_database(self._database_name(shard))

    def _end_postgres(self) -> None:
        if self.postgres is None:
            return
        if self.keep:
            self.postgres.stop()
        else:
            self.postgres.delete()


def _stopper(consumer: ConsumerProcess, timeout_seconds: float) -> Callable[[], object]:
    return lambda: consumer.stop(timeout_seconds)


def _at_once(calls: Iterable[Callable[[], object]]) -> None:
    """Run them all in threads; when some raise, the first error once all have ended."""
    listed = list(calls)
    with ThreadPoolExecutor(len(listed), thread_name_prefix="fleet") as threads:
        for future in [threads.submit(call) for call in listed]:
            future.result()
