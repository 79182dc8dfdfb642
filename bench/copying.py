"""How fast slots are copied from one PostgreSQL database to another that do nothing else, beside bare pipes of COPY.

    python -m bench.copying [--json] [--slot-rows N] [--inbox-rows N] [--rounds N]

Two slots at once, as many as `rebalance run` copies ahead at once. By turns, over the same rows:

- `copy_…`: the copy of `rebalance run`, which sums the rows up at both ends and compares the sums;
- `bare_…`: for each slot and table `COPY (SELECT …) TO STDOUT` into `COPY … FROM STDIN`, and nothing else.

Each round is rolled back: the commit is in none. The destination's tables are truncated before each, so that no round meets what
another has left. Both databases are on one server, which shares the processors with this program.

- `rows_per_s`: rows and inbox rows by the time from the beginning of the first slot to the end of the last; median of the rounds.
- `cpu_us_per_row`: what PostgreSQL and this program took, `python_cpu_us_per_row` of it this program; medians.
- `rate_ratio`, `cpu_ratio`: the copy's to the bare pipes'.
- `cpu_elsewhere`: the part of the processors that others took. Where it isn't near 0, the times above are theirs too.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
from sqlalchemy import MetaData

from bench.meter import Processors, cpu_seconds
from bench.report import parser_of, say, show
from bench.rig import FLEET, fill_inbox, plain
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local.servers import PostgresServer
from shardctl.rebalance.rows.rowcopy import copy_slots
from shardctl.shard import database, schema

SLOTS = (0, 1)
SETTINGS = {"autovacuum": "off", "max_wal_size": "8GB"}
GOALS = {"rate_ratio": ">= 0.5"}
KINDS = {"customer": fleet_from(parse(FLEET, "bench")).message_types["customer"]}
TABLES = (schema.table_of(KINDS["customer"], MetaData()), schema.inbox)


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--slot-rows", type=int, default=250_000, help="of each of the two slots")
    parser.add_argument("--inbox-rows", type=int, default=750_000, help="of each of the two slots")
    parser.add_argument("--rounds", type=int, default=5, help="of each way")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shardctl-bench-") as folder, ExitStack() as opened:
        server = PostgresServer(Path(folder), settings=SETTINGS).start()
        opened.callback(server.delete)
        say("loading …")
        source, destination = (Database(server, name) for name in ("source", "destination"))
        for side in (source, destination):
            opened.callback(side.engine.dispose)
        source.fill(options.slot_rows * len(SLOTS), options.inbox_rows * len(SLOTS))
        result = measure(server, source, destination, options.rounds)
    show(result, options.json, GOALS)


def measure(server, source, destination, rounds):
    ways = {"copy": copy, "bare": pipe}
    figures = {name: [] for name in ways}
    before = Processors()
    for number in range(rounds):
        for name, way in ways.items():
            say(f"round {number + 1}, {name} …")
            destination.empty()
            figures[name].append(timed(server, way, source, destination))
    elsewhere = before.elsewhere(Processors())
    result = {}
    for name, rows in figures.items():
        for figure in ("rows_per_s", "cpu_us_per_row", "python_cpu_us_per_row"):
            value = statistics.median(row[figure] for row in rows)
            result[f"{name}_{figure}"] = round(value) if figure == "rows_per_s" else round(value, 2)
    (count,) = {row["rows"] for rows in figures.values() for row in rows}
    copies, pipes = result["copy_cpu_us_per_row"], result["bare_cpu_us_per_row"]
    return result | {
        "rate_ratio": round(result["copy_rows_per_s"] / result["bare_rows_per_s"], 2),
        "cpu_ratio": round(copies / pipes, 2) if pipes else None,  # the kernel counts in steps of 10 ms
        "rows": count,
        "cpu_elsewhere": round(elsewhere, 2),
    }


def timed(server, way, source, destination):
    its, ours, began = cpu_seconds(server.pid), own_seconds(), time.perf_counter()
    with ThreadPoolExecutor(len(SLOTS)) as threads:
        rows = sum(threads.map(lambda slot: way(source, destination, slot), SLOTS))
    took = time.perf_counter() - began
    its, ours = cpu_seconds(server.pid) - its, own_seconds() - ours
    return {
        "rows": rows,
        "rows_per_s": rows / took,
        "cpu_us_per_row": (its + ours) / rows * 1e6,
        "python_cpu_us_per_row": ours / rows * 1e6,
    }


def own_seconds():
    """Without those of the server, which is a child."""
    return sum(psutil.Process().cpu_times()[:2])


def copy(source, destination, slot):
    with (
        suppress(_RollbackError),
        database.snapshot(source.engine) as out,
        database.writing(destination.engine) as into,
    ):
        rows = copy_slots(out, into, KINDS, (slot,)).total_rows
        raise _RollbackError
    return rows


def pipe(source, destination, slot):
    rows = 0
    with source.session() as out, destination.session() as into:
        for table in TABLES:
            columns = ", ".join(column.name for column in table.columns)
            query = f"COPY (SELECT {columns} FROM {table.name} WHERE slot = {slot}) TO STDOUT"
            with into.cursor() as cursor:
                with (
                    out.cursor().copy(query) as lines,
                    cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN") as sink,
                ):
                    forward(lines, sink)
                rows += cursor.rowcount
    return rows


def forward(lines, sink):
    block = bytearray()
    for line in lines:
        block += line
        if len(block) > 1 << 16:
            sink.write(block)
            block = bytearray()
    sink.write(block)


class _RollbackError(Exception):
    pass


class Database:
    def __init__(self, server, name):
        self.url = server.create_database(name)
        self.engine = database.connect(self.url)
        schema.create(self.engine, KINDS, SlotSet(), 1)

    def fill(self, rows, inbox_rows):
        self._execute(
            "INSERT INTO customers (customer_id, name, email, credit, revision, slot) "
            "SELECT 'c' || lpad(n::text, 8, '0'), 'name ' || n, 'customer-' || n || '@example.com', n, n % 7, "
            f"n % {len(SLOTS)} FROM generate_series(1, {rows}) AS n"
        )
        self._execute("VACUUM ANALYZE customers")
        fill_inbox(self.url, inbox_rows, len(SLOTS))

    @contextmanager
    def session(self):
        """The driver's own, rolled back at the end. It stays open: of one that is just ending, the kernel may report no CPU."""
        with self.engine.connect() as connection:
            yield connection.connection.driver_connection

    def empty(self):
        for table in TABLES:
            self._execute(f"TRUNCATE {table.name}")
        self._execute("CHECKPOINT")

    def _execute(self, text):
        with psycopg.connect(plain(self.url), autocommit=True) as connection:
            connection.execute(text)


if __name__ == "__main__":
    main()
