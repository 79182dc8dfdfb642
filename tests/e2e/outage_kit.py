"""One shard with two replicas that outages happen to, one after another, under one story of writes that an oracle checks."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import psycopg
from patience import PATIENCE_SECONDS
from redis import Redis

from shardctl.broker import protos
from shardctl.fleet import spec, yamlfile
from shardctl.fleet.keyspace import digits_of, slot_of
from shardctl.fleet.load import fleet_from
from shardctl.local.feed import Feed
from shardctl.local.fleet import LocalFleet
from shardctl.local.load import Publication, Stream
from shardctl.local.oracle import verify
from shardctl.local.processes import ConsumerProcess
from shardctl.local.servers.account import temporary_folder, unprivileged
from shardctl.local.servers.install import SUPERUSER
from shardctl.local.servers.process import wait_until
from shardctl.wire.message import Write

MEBIBYTE = 1 << 20
HELD_BYTES = 4 * MEBIBYTE
STATEMENT_SECONDS = 2
TABLESPACE_MEBIBYTES = 8

FLEET = f"""
fleet: hurt
project: my-project
image: example.com/consumer:1
message_types:
  customer: {{table: customers, key: customer_id, columns: {{customer_id: text, name: text, credit: decimal, revision: bigint}}}}
  order: {{table: orders, key: order_id, columns: {{order_id: text, customer_id: text, lines: json, placed_at: timestamp}}}}
subscription: {{retry_minimum: 0s, retry_maximum: 0s}}
consumer: {{lease: 10s, lock_ttl: 2s, statement_timeout: {STATEMENT_SECONDS}s, max_outstanding_bytes: {HELD_BYTES}}}
shards:
  - {{name: s0, slots: 0-1023}}
"""

# What PostgreSQL says when a table can't grow, for machines where no small file system can be had.
FULL = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE 'could not extend file "base/1/2": No space left on device' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON shardctl_inbox EXECUTE FUNCTION full_disk();
"""
SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$;
CREATE TRIGGER slow BEFORE INSERT ON shardctl_inbox EXECUTE FUNCTION slow();
"""


class HurtFleet(LocalFleet):
    """Its consumers are an ordinary role, to which the server's limits apply."""

    role = "writer"

    def _make_database(self, fleet: spec.Fleet, shard: spec.Shard) -> None:
        name = self._database_name(shard)
        self.postgres.create_database(name)
        with self.admin("postgres") as sql:
            sql.execute(f"CREATE ROLE {self.role} LOGIN PASSWORD '{self.postgres.password}'")
            sql.execute(f"ALTER DATABASE {name} OWNER TO {self.role}")

    def database_url(self, shard: str) -> str:
        return super().database_url(shard).replace(f"{SUPERUSER}:", f"{self.role}:")

    def admin(self, database: str = "hurt_s0") -> psycopg.Connection:
        return psycopg.connect(self.postgres.url(database).replace("+psycopg", ""), sslmode="disable", autocommit=True)


class Stage:
    """The fleet, its writes so far, and what can be done to it."""

    def __init__(self, folder: Path, kind: type[HurtFleet] = HurtFleet) -> None:
        self.local = kind(fleet_from(yamlfile.parse(FLEET, "shards.yaml")), folder, replicas=2)
        self.replicas = self.local.replicas["s0"]
        self._story = iter(Stream(self.local.spec, None, 2_000, seed=11))
        self._writes: list[Write] = []
        self._feed: Feed | None = None
        self._pids: list[int] = []
        self.verified = False
        self.local.__enter__()

    def close(self) -> None:
        if self._feed is not None:
            self._feed.stop()
        self.local.stop()

    # -- load --------------------------------------------------------------------------------------------------------

    def load(self, writes_per_second: float = 1_500) -> None:
        """Go on with the story until `pause`. From here to `verify` no replica may be started again, but by `started_anew`."""
        self.started_anew()
        self._feed = Feed(self.local.spec, self.local.broker.host, self._story, writes_per_second=writes_per_second)
        self._feed.start()

    def pause(self) -> None:
        """End what `load` began. Returns once the broker has it."""
        if self._feed is not None:
            self._feed.stop()
            self._writes += self._feed.writes
            self._feed = None

    def go_on(self) -> None:
        """For a little while after what happened, if the story hasn't been ended."""
        if self._feed is not None:
            self.until_published(500)

    def publish(self, writes: list[Write]) -> None:
        """Publish these beside the story, and wait until the broker has them."""
        self.pause()
        self.started_anew()
        feed = Feed(self.local.spec, self.local.broker.host, map(Publication, writes))
        feed.start()
        feed.join()
        self._writes += writes

    def until_published(self, more: int) -> None:
        """So many of the story from here on."""
        feed = self._feed
        end = feed.published + more
        assert wait_until(lambda: feed.published >= end or not feed.running, PATIENCE_SECONDS)
        assert feed.published >= end

    # -- looking -----------------------------------------------------------------------------------------------------

    def started_anew(self) -> None:
        self._pids = [replica.pid for replica in self.replicas]

    def unready(self, why: str) -> None:
        """Every replica says that it can't work, and why."""
        for replica in self.replicas:
            matches = wait_until(lambda replica=replica: why in replica.why_not_ready, PATIENCE_SECONDS)
            assert matches, f"{replica.name} says {replica.why_not_ready!r}, not {why!r}"

    def ready(self) -> None:
        assert wait_until(lambda: all(replica.ready for replica in self.replicas), PATIENCE_SECONDS), [
            replica.why_not_ready for replica in self.replicas
        ]

    def metric(self, name: str) -> float:
        return sum(replica.metrics().get(f"shardctl_{name}", 0.0) for replica in self.replicas)

    def degraded(self, count: int) -> None:
        """So many replicas work without slot locks; none of them is unready for it."""
        assert wait_until(lambda: self.metric("redis_degraded") == count, PATIENCE_SECONDS), self.metric(
            "redis_degraded"
        )
        assert all(replica.ready for replica in self.replicas)

    def counts(self) -> dict[str, int]:
        return self.local.subscriptions()["hurt-s0-g1"]["counts"]

    def verify(self) -> None:
        """Everything is written once, and who was there before is still there and ready."""
        self.pause()
        self.local.wait_drained(40)
        verdict = verify(self.local.spec, self._writes, self.local.databases)
        assert not verdict.findings, "\n".join(map(str, verdict.findings[:20]))
        assert verdict.shards[0].applied == len(self._writes)
        self.ready()
        assert [replica.pid for replica in self.replicas] == self._pids
        assert all(replica.running for replica in self.replicas)
        self.verified = True

    # -- the database ------------------------------------------------------------------------------------------------

    def sql(self, *statements: str) -> list[tuple]:
        """Run them as the administrator; the rows of the last."""
        with self.local.admin() as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def until_waiting(self, count: int = 1) -> list[int]:
        """Client ports of the consumers' sessions that wait for a lock, once there are so many."""
        query = "SELECT client_port FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'writer'"
        assert wait_until(lambda: len(self.sql(query)) >= count, PATIENCE_SECONDS), "no consumer waits for the lock"
        return [port for (port,) in self.sql(query)]

    @contextlib.contextmanager
    def locked(self, table: str) -> Iterator[psycopg.Connection]:
        """Nobody else writes to the table meanwhile. The lock is given up when the transaction yielded is, or at the end."""
        with self.local.admin() as rival:
            rival.execute("SET deadlock_timeout = '1min'")  # so that the other side is the victim
            rival.execute("BEGIN")
            rival.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
            yield rival
            rival.execute("ROLLBACK")

    @contextlib.contextmanager
    def trigger(self, script: str, name: str) -> Iterator[None]:
        self.sql(script)
        yield
        self.sql(f"DROP FUNCTION {name} CASCADE")

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """The inbox lies on a file system that is full. Where none can be mounted, a trigger says so in the server's words."""
        account = unprivileged()
        folder = temporary_folder(account, "shardctl-small-")
        command = ["mount", "-t", "tmpfs", "-o", f"size={TABLESPACE_MEBIBYTES}m", "none", str(folder)]
        if account is None or subprocess.run(command, check=False, capture_output=True).returncode:
            folder.rmdir()
            with self.trigger(FULL, "full_disk"):
                yield
            return
        try:
            space = folder / "space"
            space.mkdir()
            for path in (folder, space):
                path.chmod(0o700)
                subprocess.run(["chown", account.name, str(path)], check=True)
            self.sql(
                f"CREATE TABLESPACE small OWNER writer LOCATION '{space}'",
                "ALTER TABLE shardctl_inbox SET TABLESPACE small",
            )
            filler = folder / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            yield
            filler.unlink()
            self.sql("ALTER TABLE shardctl_inbox SET TABLESPACE pg_default", "CHECKPOINT", "DROP TABLESPACE small")
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
            folder.rmdir()

    # -- Redis and the broker ----------------------------------------------------------------------------------------

    def redis(self, *command: str) -> None:
        with Redis.from_url(self.local.redis.admin_url) as client:
            client.execute_command(*command)

    def publish_raw(self, data: bytes, key: str, idempotency_key: str) -> None:
        """A customer's message that no producer's library would publish."""
        slot = digits_of(slot_of(key, 10), 10)
        attributes = {
            "slot": slot, "partition_key": key, "message_type": "customer", "idempotency_key": idempotency_key,
        }  # fmt: skip
        request = protos.of("PublishRequest")(topic="projects/my-project/topics/data-writes")
        request.messages.add(data=data, attributes=attributes, ordering_key=slot)
        self._call("Publisher/Publish", request, "PublishResponse")

    def expect(self, write: Write) -> None:
        """What was published raw is one of the writes to be found."""
        self._writes.append(write)

    def dead_letters(self) -> list[protos.Proto]:
        """What lies on the dead-letter topic's subscription now; taken off it."""
        name = "projects/my-project/subscriptions/hurt-dead"
        request = protos.of("PullRequest")(subscription=name, max_messages=10)
        received = self._call("Subscriber/Pull", request, "PullResponse").received_messages
        if received:
            acks = protos.of("AcknowledgeRequest")(subscription=name, ack_ids=[message.ack_id for message in received])
            self._call("Subscriber/Acknowledge", acks, None)
        return [message.message for message in received]

    def _call(self, method: str, request: protos.Proto, answer: str | None) -> protos.Proto:
        unlimited = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(self.local.broker.host, options=unlimited) as channel:
            read = protos.of(answer).FromString if answer else bytes
            call = channel.unary_unary(f"/google.pubsub.v1.{method}", type(request).SerializeToString, read)
            return call(request, timeout=PATIENCE_SECONDS)


def client_ports(replica: ConsumerProcess) -> set[int]:
    """Local ports of its connections."""
    import psutil

    return {connection.laddr.port for connection in psutil.Process(replica.pid).net_connections("tcp")}


def rss_bytes(replica: ConsumerProcess) -> int:
    pages = int(Path(f"/proc/{replica.pid}/statm").read_text().split()[1])
    return pages * 4096
