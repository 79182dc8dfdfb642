"""The fleet that is measured: one shard, one consumer, the embedded broker, real Redis, real PostgreSQL with durable commits."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path

import psycopg

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local.fleet import LocalFleet
from shardctl.local.processes import BrokerProcess
from shardctl.local.servers import PostgresServer
from shardctl.shard import schema

FLEET = """
fleet: bench
project: bench-project
image: consumer:bench
message_types:
  customer:
    table: customers
    key: customer_id
    columns: {customer_id: text, name: text, email: text, credit: bigint, revision: bigint}
  order:
    table: orders
    key: order_id
    columns: {order_id: text, customer_id: text, status: text, amount: decimal, placed_at: timestamp, revision: bigint}
shards:
  - {name: s0, slots: 0-1023}
"""
SHARD = "s0"
SUBSCRIPTION = "bench-s0-g1"
# Commits can be asked for their times, and what was logged in a window is still there when it is counted.
SETTINGS = {"track_commit_timestamp": "on", "wal_keep_size": "1GB"}

# Rows as the product writes them, of the last 7 days, all younger than what is purged: each column of the inbox as an expression
# of the row's number `n`, counted from the oldest. Identities begin with a time, as those of a publisher's own keys do; see
# `shardctl.wire.identity`.
_PUBLISHED = "now() - interval '7 days' + n * (interval '7 days' / {rows})"
_OLD_ROW = {
    "reason": "NULL",
    "slot": "('x' || substr(md5('slot' || n), 1, 8))::bit(32)::bigint % {slots}",
    "identity": "(lpad(to_hex((extract(epoch FROM " + _PUBLISHED + ") * 1000)::bigint), 12, '0') "
    "|| substr(md5('identity' || n), 1, 20))::uuid",
    "key_hash": "('x' || substr(md5('key' || n % 50000), 1, 8))::bit(32)::integer",
    "fingerprint": "('x' || substr(md5('body' || n), 1, 8))::bit(32)::integer",
    "published": f"extract(epoch FROM {_PUBLISHED})::bigint - {schema.PUBLISHED_FROM}",
    "outcome": "NULL",
}


class Rig(LocalFleet):
    """`with rig() as local:` gives servers, topics and tables. Consumers start when the benchmark says so."""

    def __init__(self, directory, broker=BrokerProcess):
        super().__init__(fleet_from(parse(FLEET, "bench")), directory, replicas=1)
        self.broker = broker(self.directory / "broker")
        self.postgres = PostgresServer(self.directory / "postgres", settings=SETTINGS)

    def __enter__(self):
        try:
            self.start_servers()
            self.provision()
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def consumer(self):
        return self.consumers[0]

    @contextmanager
    def connection(self):
        """To the shard's database, each statement a transaction of its own."""
        with psycopg.connect(plain(self.database_url(SHARD)), autocommit=True) as connection:
            yield connection

    def query(self, text, *values):
        """The rows of one statement."""
        with self.connection() as connection:
            return connection.execute(text, values or None).fetchall()

    def execute(self, text):
        with self.connection() as connection:
            connection.execute(text)

    def checkpoint(self):
        """Whatever is written first after this is logged with its whole page."""
        self.execute("CHECKPOINT")

    def inbox_bytes_per_row(self):
        """With indexes."""
        ((size, rows),) = self.query("SELECT pg_total_relation_size('shardctl_inbox'), count(*) FROM shardctl_inbox")
        return size / rows


@contextmanager
def rig(broker=BrokerProcess):
    with tempfile.TemporaryDirectory(prefix="shardctl-bench-") as folder, Rig(Path(folder), broker) as local:
        yield local


def fill_inbox(url, rows, slots=1024):
    """Rows in the order in which they would have come, so that the indexes are as they would be; then a CHECKPOINT."""
    names = [column.name for column in schema.inbox.columns]
    values = ", ".join(_OLD_ROW[name].format(rows=rows, slots=slots) for name in names)
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute(
            f"INSERT INTO shardctl_inbox ({', '.join(names)}) SELECT {values} FROM generate_series(1, {rows}) AS n"
        )
        connection.execute("VACUUM ANALYZE shardctl_inbox")
        connection.execute("CHECKPOINT")


def plain(url):
    """A URL of SQLAlchemy's as psycopg reads it."""
    return url.replace("postgresql+psycopg", "postgresql")
