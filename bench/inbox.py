"""What the inbox takes and costs: bytes and WAL a write, and the rate of writes beside old rows and beside a walk through them.

    python -m bench.inbox [--json] [--rows N] [--seconds S]

Batches of new writes go to two databases of one server by turns: one whose inbox is empty at first, and one with `--rows` old
rows in it. So both meet the same moments of the machine. Each begins with a CHECKPOINT. Nothing but the inbox is written to.

- `heap_bytes`, `index_bytes`, `bytes`: a row of the old ones, which were inserted in the order of their keys.
- `disordered_bytes`: the same where 2,000 writes at a time come in no order, as from many producers and replicas.
- `wal_bytes`: of records a write into the inbox that was empty; `full_wal_bytes`: into the other. Without full-page images.
- `writes_per_s`, `full_writes_per_s`, `full_ratio`: medians of batches, and the second to the first.
- `swept_writes_per_s`, `swept_ratio`: the same into the full inbox while it is walked through at the pace of a replica, all of
  whose rows may go, and that to the full one without.
- `forgotten_per_s`: rows a second of such a walk's own time, without its rests.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from uuid import UUID

import psycopg
from sqlalchemy.engine import make_url

from bench.meter import wal_between
from bench.report import parser_of, say, show
from bench.rig import plain
from consumer.database import sessions
from consumer.delivery import Delivery
from consumer.replica.pace import Pace
from consumer.store import sweep
from consumer.store.inbox import Inbox
from shardctl.fleet.settings.consuming import Batching
from shardctl.local.servers import PostgresServer
from shardctl.shard import schema
from shardctl.wire import identity

GOALS = {"bytes": "<= 100", "full_ratio": ">= 0.8"}
SETTINGS = {"wal_keep_size": "1GB", "autovacuum": "off"}
SLOTS = 1_024
BATCH_ROWS = 500
KEPT = sweep.Retention(86_400, 86_400)
DISORDER = 2_000
BYTES_ROWS = 300_000  # of the inbox whose bytes are measured, at most


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="old rows in the inbox")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement of rates")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shardctl-bench-") as folder:
        server = PostgresServer(Path(folder), settings=SETTINGS).start()
        try:
            show(measure(server, options.rows, options.seconds), options.json, GOALS)
        finally:
            server.delete()


def measure(server, rows, seconds):
    say("bytes …")
    some = min(rows, BYTES_ROWS)
    with Database(server, "ordered") as ordered, Database(server, "disordered") as disordered:
        ordered.fill(in_order(some))
        disordered.fill(disorder(in_order(some)))
        heap, indexes = ordered.bytes_a_row()
        result = {
            "heap_bytes": round(heap, 1),
            "index_bytes": round(indexes, 1),
            "bytes": round(heap + indexes, 1),
            "disordered_bytes": round(sum(disordered.bytes_a_row()), 1),
        }
    say(f"{rows:,} old rows …")
    with Database(server, "empty") as empty, Database(server, "full") as full:
        full.fill_at_once(rows)
        say("writes …")
        (rate, wal), (full_rate, full_wal) = by_turns((empty, full), seconds)
        say("writes beside a walk …")
        with Walk(full) as walk:
            ((swept_rate, _),) = by_turns((full,), seconds)
    return result | {
        "wal_bytes": round(wal),
        "full_wal_bytes": round(full_wal),
        "writes_per_s": round(rate),
        "full_writes_per_s": round(full_rate),
        "full_ratio": round(full_rate / rate, 2),
        "swept_writes_per_s": round(swept_rate),
        "swept_ratio": round(swept_rate / full_rate, 2),
        "forgotten": walk.gone,
        "forgotten_per_s": round(walk.gone / walk.seconds) if walk.seconds else 0,
        "old_rows": rows,
    }


def by_turns(databases, seconds):
    """Writes a second and bytes of WAL a write, of each database."""
    writes = {database: in_order() for database in databases}
    took, wal = {database: [] for database in databases}, dict.fromkeys(databases, 0)
    databases[0].execute("CHECKPOINT")
    ends = time.monotonic() + seconds
    while time.monotonic() < ends or len(took[databases[-1]]) < 3:
        for database in databases:
            batch = [next(writes[database]) for _ in range(BATCH_ROWS)]
            before = database.wal_end()
            took[database].append(database.add(batch))
            wal[database] += database.wal_since(before)
    return [
        (BATCH_ROWS / statistics.median(took[database]), wal[database] / BATCH_ROWS / len(took[database]))
        for database in databases
    ]


def in_order(count=None, draw=None):
    """Deliveries of writes of all slots, under keys such as a publisher makes: one a millisecond, by a clock of their own.

    How full a page of the index gets depends on how many keys share a millisecond, so the machine's speed must not decide it.
    """
    draw, start_ns = draw or random.Random(1), time.time_ns()
    keys = identity.Keys(lambda: moment_ns)
    for number in itertools.count() if count is None else range(count):
        moment_ns = start_ns + number * 1_000_000
        slot, message_id, key = draw.randrange(SLOTS), f"m{number}", keys.new()
        yield Delivery(
            "", "", None, message_id, moment_ns // 1_000, 100, 0.0, slot, f"customer-{number % 50_000}", "customer",
            "upsert", key, identity.in_slot(identity.of_key("", "customer", key), slot), draw.randrange(1 << 31),
        )  # fmt: skip


def disorder(deliveries):
    """Each at most so many places from its own."""
    draw, waiting = random.Random(1), []
    for delivery in deliveries:
        waiting.append(delivery)
        if len(waiting) >= DISORDER:
            at = draw.randrange(DISORDER)
            waiting[at], waiting[-1] = waiting[-1], waiting[at]
            yield waiting.pop()
    yield from waiting


class Database:
    """One with nothing in it but the tables of shardctl."""

    def __init__(self, server, name):
        self._server, self._name = server, name
        self.url = server.create_database(name)
        self._engine = sessions.engine_of(make_url(self.url), Batching())
        self._inbox = Inbox(sessions.dialect_of(make_url(self.url)))

    def __enter__(self):
        with self._engine.begin() as connection:
            schema.metadata.create_all(connection)
        self._plain = psycopg.connect(plain(self.url), autocommit=True)
        return self

    def __exit__(self, *_):
        self._plain.close()
        self._engine.dispose()
        self._server.drop_database(self._name)

    def add(self, deliveries):
        """As a consumer does, in a transaction; the seconds that it took."""
        began = time.perf_counter()
        with self._engine.begin() as connection:
            self._inbox.add(connection, deliveries)
        return time.perf_counter() - began

    def fill(self, deliveries):
        batch = []
        for delivery in deliveries:
            batch.append(delivery)
            if len(batch) == BATCH_ROWS:
                self.add(batch)
                batch = []
        if batch:
            self.add(batch)

    def fill_at_once(self, rows):
        """Old rows, all of which may be forgotten."""
        draw = random.Random(2)
        with self._plain.cursor().copy(
            "COPY shardctl_inbox (identity, slot, key_hash, fingerprint, published) FROM STDIN"
        ) as copy:
            for number in range(rows):
                moment_ms = 1_600_000_000_000 + number
                its_identity = UUID(int=moment_ms << 80 | draw.getrandbits(80))
                numbers = (
                    draw.randrange(SLOTS),
                    draw.getrandbits(31),
                    draw.getrandbits(31),
                    moment_ms // 1_000 - schema.PUBLISHED_FROM,
                )
                copy.write("\t".join(map(str, (its_identity, *numbers))) + "\n")
        self.execute("VACUUM ANALYZE shardctl_inbox")

    def execute(self, text):
        self._plain.execute(text)

    def bytes_a_row(self):
        return self._plain.execute(
            "SELECT pg_relation_size('shardctl_inbox')::float8 / count(*), pg_indexes_size('shardctl_inbox')::float8 / count(*) "
            "FROM shardctl_inbox"
        ).fetchone()

    def wal_end(self):
        return self._plain.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()[0]

    def wal_since(self, start):
        """Of records alone, and of whatever else wrote meanwhile: nothing."""
        return wal_between(self._server.pgdata, start, self.wal_end()).records

    def purge(self, at, pages):
        with self._engine.begin() as connection:
            return sweep.chunk(connection, sweep.forgettable(schema.published_now(connection), KEPT), at, pages)


class Walk:
    """Through a database's inbox in a thread, as a replica's maintenance does it, until it is over or stopped."""

    def __init__(self, database):
        self._database, self._stop = database, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.gone, self.seconds = 0, 0.0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        pace, at = Pace(pass_seconds=8 * 86_400 / 20), 0
        pace.begin(time.monotonic())
        while not self._stop.is_set():
            began = time.monotonic()
            swept = self._database.purge(at, pace.pages)
            took = time.monotonic() - began
            self.gone, self.seconds, at = self.gone + swept.gone, self.seconds + took, swept.at
            if swept.over:
                return
            self._stop.wait(pace.purged(took, time.monotonic()))


if __name__ == "__main__":
    main()
