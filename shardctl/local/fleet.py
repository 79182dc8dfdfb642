"""A whole fleet on this machine: a broker, Redis, a database for each shard, and consumers, each a process of its own."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any, Self

import grpc

from shardctl import atomicfile
from shardctl import broker as brokers
from shardctl.broker.faults import NONE, Faults
from shardctl.errors import ShardctlError
from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet, Shard
from shardctl.fleet.topology import database_url_variable
from shardctl.local import secrets
from shardctl.local.changes import CantApplyError, why_not
from shardctl.local.consumers import Consumers, at_once, settle_port
from shardctl.local.processes import BrokerProcess, ConsumerProcess
from shardctl.local.servers import PostgresServer, RedisServer
from shardctl.local.servers.account import unprivileged
from shardctl.local.servers.install import SUPERUSER
from shardctl.local.servers.process import HOST
from shardctl.local.standins import on_this_machine
from shardctl.migrate import newshard
from shardctl.migrate.errors import RebalanceOpenError
from shardctl.provision import provision_database, provision_pubsub
from shardctl.publisher import Publisher
from shardctl.status.localfile import VARIABLE, LocalConsumer, LocalFile
from shardctl.wire.message import Write

EMULATOR_VARIABLE = "PUBSUB_EMULATOR_HOST"
REST_VARIABLE = "PUBSUB_URL"  # for programs that publish over HTTP
POLL_SECONDS = 0.1
ANSWER_SECONDS, ANSWER_TRIES = 10.0, 6  # for the broker to report, while it runs
SESSIONS_BESIDE_CONSUMERS = 60  # of PostgreSQL: the oracle's, a rebalance's, a person's
SHARDS_TO_COME = 8  # PostgreSQL's sessions are counted once, at its start; each costs it some kilobytes

# A commit reaches the kernel before it returns. So the server may be killed at any time; only a crash of the machine loses data.
_KILLABLE = {"synchronous_commit": "on"}
# Records when each transaction committed, from which the pause of a moving slot is measured.
_TELLING = {"track_commit_timestamp": "on"}

_environment = threading.Lock()


class NotDrainedError(ShardctlError):
    """Messages are left, and for some time none was settled."""

    def __init__(self, backlog: Mapping[str, int], quiet_seconds: float, logs: Path) -> None:
        left = ", ".join(f"{name} {count:,}" for name, count in backlog.items() if count)
        super().__init__(
            f"no message was settled for {quiet_seconds:g} s, and there is a backlog: {left}. The consumers' logs: {logs}"
        )
        self.backlog = dict(backlog)


def new_folder(directory: Path) -> Path:
    """A folder for one run, named by its time. Other users can't look into it; root's servers pass through it to their data."""
    folder = directory / f"run-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
    folder.mkdir(mode=0o711 if unprivileged() else 0o700, parents=True)
    return folder


class LocalFleet:
    """`with LocalFleet(fleet, folder) as local: local.publish(writes); local.wait_drained()`.

    Every process ends with the `with` block, or when this process dies. All servers listen on loopback alone. Other users of the
    machine come that far: PostgreSQL and Redis ask them for passwords, which only files and environments of ours hold.

    `directory` takes the databases, the logs and each consumer's configuration; all but the databases is left there, and the
    databases too with `keep`. `replicas` replaces `local.replicas` of the spec. Tests may use its parts one by one:
    `local.replicas["s0"][0].kill()`, `local.redis.stop()`, `local.broker.pause()`.

    The revisions beside `file` are applied to each database before consumers write to it; while a rebalance is open there, they
    wait for the file that finishes it.

    A file with a rebalance in it starts as if that were finished: in new databases there is nothing to move.
    """

    def __init__(
        self,
        spec: Fleet,
        directory: Path,
        *,
        replicas: int | None = None,
        faults: Faults = NONE,
        keep: bool = False,
        file: Path | None = None,
    ) -> None:
        spec = on_this_machine(spec)
        self.spec = spec.settled() if spec.rebalancing else spec
        secrets.environment(self.spec, os.environ)  # missing ones are reported before anything starts
        self.directory = directory.absolute()
        self.keep = keep
        self._file = file
        self.broker = BrokerProcess(self.directory / "broker", faults=faults)
        self.redis = RedisServer(self.directory / "redis")
        self._replicas = replicas or spec.local.replicas
        self._sessions = self._sessions_of(spec, SHARDS_TO_COME)
        settings = {**_KILLABLE, **_TELLING, "max_connections": str(self._sessions)}
        self.postgres = (
            PostgresServer(self.directory / "postgres", durable=False, settings=settings)
            if spec.local.database == "postgresql"
            else None
        )
        taken: set[int] = set()
        for server in (self.broker, self.redis, self.postgres):
            if server is not None:
                settle_port(server, taken)
        self._crew = Consumers(self.directory, self._replicas, taken, self.consumer_environment, self.tell)
        self._telling = threading.Lock()
        for shard in self.spec.shards:
            self._crew.make(self.spec, shard)
        self._follows = ""
        self._coming: tuple[Shard, ...] = ()  # shards that have a database already, and nothing else

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
        at_once(server.start for server in (self.broker, self.redis, self.postgres) if server is not None)

    def provision(self) -> None:
        """Topics, subscriptions and tables, by the code that makes the real ones."""
        self._provision_pubsub(self.spec)
        for shard in self.spec.shards:
            self._provision_database(self.spec, shard)

    def start_consumers(self) -> None:
        """Every replica of every shard; ready when it returns."""
        self._crew.start(self.spec)
        self.tell()

    def prepare(self, spec: Fleet) -> tuple[str, ...]:
        """Make databases for shards of `spec` that aren't here yet, and return which. `environment` knows them from now on.

        So a rebalance can begin, which wants the new shard's database, before `apply` brings the rest.
        """
        known = {shard.name for shard in (*self.spec.shards, *self._coming)}
        new = tuple(shard for shard in spec.shards if shard.name not in known)
        for shard in new:
            before, self._coming = self._coming, (*self._coming, shard)
            try:
                self._provision_database(spec, shard)
            except BaseException:
                self._coming = before
                raise
        if new:
            self.tell()
        return tuple(shard.name for shard in new)

    def apply(self, spec: Fleet) -> tuple[str, ...]:
        """Become what `spec` says while everything runs, as after `kubectl apply`; the shards whose consumers changed.

        New shards get databases and consumers; consumers whose configuration differs are replaced one by one; those of a shard
        that is gone end, and its database stays until the fleet ends. Nothing is taken off Pub/Sub: what a rebalance leaves
        behind, it deletes itself. Raises CantApplyError before anything is changed. After another error it may be called again.
        """
        spec = on_this_machine(spec)
        secrets.environment(spec, os.environ)
        reasons = why_not(self.spec, spec)
        if self._sessions_of(spec) > self._sessions:
            reasons += ("PostgreSQL was started for fewer sessions than so many shards take",)
        if reasons:
            raise CantApplyError(reasons)
        self.prepare(spec)
        for shard in spec.shards:
            self._provision_database(spec, shard)
        self._provision_pubsub(spec)
        self.spec, self._coming = spec, ()
        return self._crew.apply(spec)

    def stop(self) -> None:
        """Consumers drain first, all at once; then what they work with ends. Safe to call again."""
        self._crew.stop()
        at_once([self.broker.stop, self.redis.stop, self._end_postgres])
        if not self.keep:
            shutil.rmtree(self.directory / "sqlite", ignore_errors=True)

    def revive(self) -> list[ConsumerProcess]:
        """Restart processes that died, as Kubernetes would, with growing pauses if they die at once. Returns which."""
        return self._crew.revive()

    # -- use ---------------------------------------------------------------------------------------------------------

    @property
    def consumers(self) -> list[ConsumerProcess]:
        """Every replica of every shard."""
        return self._crew.all

    @property
    def replicas(self) -> Mapping[str, tuple[ConsumerProcess, ...]]:
        """By shard. `apply` replaces them."""
        return self._crew.by_shard

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
        """Publish writes and wait until the broker has all of them; how many it accepted."""
        with self.publisher() as publisher:
            return sum(outcome.message_id is not None for outcome in publisher.publish_all(writes))

    def database_url(self, shard: str) -> str:
        """For SQLAlchemy."""
        if self.postgres is None:
            return f"sqlite:///{self.directory / 'sqlite' / f'{shard}.db'}"
        coming = next((candidate for candidate in self._coming if candidate.name == shard), None)
        return self.postgres.url(self._database_name(coming or self.spec.shard(shard)))

    @property
    def databases(self) -> dict[str, str]:
        """URLs by shard."""
        return {shard.name: self.database_url(shard.name) for shard in self.spec.shards}

    def environment(self) -> dict[str, str]:
        """What other commands need to work on this fleet."""
        shards = (*self.spec.shards, *self._coming)
        databases = {database_url_variable(shard): self.database_url(shard.name) for shard in shards}
        pubsub = {EMULATOR_VARIABLE: self.broker.host, REST_VARIABLE: self.broker.rest_url}
        return {**pubsub, "REDIS_URL": self.redis.url, VARIABLE: str(self._local_file_path), **databases}

    def local_file(self) -> LocalFile:
        """The present addresses of consumers and databases."""
        listed = (
            LocalConsumer(consumer.name, shard, f"http://{HOST}:{consumer.port}")
            for shard, replicas in list(self.replicas.items())
            for consumer in replicas
        )
        databases = {shard.name: self.database_url(shard.name) for shard in (*self.spec.shards, *self._coming)}
        return LocalFile(tuple(listed), databases, self._follows)

    def follow(self, file: Path) -> None:
        """Commands that look at the fleet see from now on that somebody applies what changes in this file."""
        self._follows = str(file.resolve())
        self.tell()

    def tell(self) -> None:
        """Write `local_file` to the path that the environment names, for commands that read the fleet."""
        with self._telling:
            self.local_file().write(self._local_file_path)

    @property
    def _local_file_path(self) -> Path:
        return self.directory / "fleet.json"

    def write_environment(self) -> Path:
        """The same as a file for a shell to source; it replaces an earlier one atomically.

        In that shell `psql` and `redis-cli` find the passwords, too. Only our user can read them.
        """
        path, passwords = self.directory / "env", self.directory / "pgpass"
        exported = {**self.environment(), "REDISCLI_AUTH": self.redis.password}
        if self.postgres is not None:
            line = f"{HOST}:{self.postgres.port}:*:{SUPERUSER}:{self.postgres.password}\n"
            atomicfile.write(passwords, line.encode(), private=True)
            exported["PGPASSFILE"] = str(passwords)
        lines = (f"export {name}={quote(value)}\n" for name, value in exported.items())
        atomicfile.write(path, "".join(lines).encode(), private=True)
        return path

    def consumer_environment(self, shard: str) -> dict[str, str]:
        """What the shard's consumers take from Secrets."""
        return {
            "DATABASE_URL": self.database_url(shard),
            "REDIS_URL": self.redis.url,
            EMULATOR_VARIABLE: self.broker.host,
            **secrets.environment(self.spec, os.environ),
        }

    def subscriptions(self) -> dict[str, dict[str, Any]]:
        """What the broker reports of each subscription, by id; see `shardctl.broker.stats`."""
        subscriptions = self._broker_stats()["subscriptions"]
        return {name.rpartition("/")[2]: standing for name, standing in subscriptions.items()}

    def _broker_stats(self) -> dict[str, Any]:
        """Asks again while the broker runs: on a busy machine it answers late."""
        for tries_left in reversed(range(ANSWER_TRIES)):
            try:
                return brokers.stats(self.broker.host, timeout_seconds=ANSWER_SECONDS)
            except grpc.RpcError as error:
                if not self.broker.running:
                    raise ShardctlError(f"the broker has ended; its log: {self.broker.log_file}") from error
                if not tries_left:
                    late = f"the broker has not answered for {ANSWER_TRIES * ANSWER_SECONDS:g} s"
                    raise ShardctlError(f"{late}; its log: {self.broker.log_file}") from error
        raise AssertionError("unreachable")

    def backlog(self) -> dict[str, int]:
        """Messages not yet acked, for each shard's subscriptions by id, of every generation; 0 where it is gone."""
        standing = self.subscriptions()
        names = [name for shard in self.spec.shards for name in self.subscription_ids(shard)]
        return {name: standing[name]["undelivered"] if name in standing else 0 for name in names}

    def subscription_ids(self, shard: Shard) -> list[str]:
        return [subscription.id for subscription in topology.every_subscription(self.spec, shard)]

    def wait_drained(self, quiet_seconds: float = 60.0, *, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Returns once no shard has a backlog; calls `meanwhile` repeatedly.

        Raises NotDrainedError once the backlog has not become smaller for `quiet_seconds`: a slow machine needs longer, a fleet
        that is stuck never ends.
        """
        least, deadline = None, 0.0
        while left := sum((backlog := self.backlog()).values()):
            if least is None or left < least:
                least, deadline = left, time.monotonic() + quiet_seconds
            elif time.monotonic() > deadline:
                raise NotDrainedError(backlog, quiet_seconds, self.directory / "consumers")
            meanwhile()
            time.sleep(POLL_SECONDS)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _sessions_of(self, spec: Fleet, more_shards: int = 0) -> int:
        """What PostgreSQL must have room for; a rollout has one replica more of each shard."""
        sessions = [shard.consumer.concurrency + 1 + bool(spec.emitted_by(shard)) for shard in spec.shards]
        return (sum(sessions) + more_shards * max(sessions)) * (self._replicas + 1) + SESSIONS_BESIDE_CONSUMERS

    def _provision_pubsub(self, spec: Fleet) -> None:
        from google.cloud import pubsub_v1

        with self.as_emulator():
            publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
        try:
            provision_pubsub(spec, publisher, subscriber)
        finally:
            publisher.stop()
            subscriber.close()

    def _provision_database(self, spec: Fleet, shard: Shard) -> None:
        self._make_database(spec, shard)
        url = self.database_url(shard.name)
        provision_database(spec, shard, url)
        if self._file is not None:
            # Revisions wait for the end of an open rebalance, whose own file may be the one that is applied here.
            with suppress(RebalanceOpenError):
                newshard.bring_up(self._file, spec, {shard.name: url})

    def _database_name(self, shard: Shard) -> str:
        return topology.shard_id(self.spec, shard).replace("-", "_")

    def _make_database(self, spec: Fleet, shard: Shard) -> None:
        if self.postgres is None:
            (self.directory / "sqlite").mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            self.postgres.create_database(self._database_name(shard), _schemas(spec))

    def _end_postgres(self) -> None:
        if self.postgres is None:
            return
        if self.keep:
            self.postgres.stop()
        else:
            self.postgres.delete()


def _schemas(spec: Fleet) -> list[str]:
    """Of the tables `schema.table`: on a cluster they are there already."""
    return sorted({kind.table.partition(".")[0] for kind in spec.message_types.values() if "." in kind.table})
