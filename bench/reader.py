"""What a read by key costs over a bare session: the same row, from the same PostgreSQL, turn by turn.

    python -m bench.reader [--json] [--reads N]

Both read one row by its primary key through a mapped class, with a pooled connection: `bare` by `Session(engine)`, `keyed` by
`Reader.session`, which also finds the slot's database and checks in the snapshot that the slot is active there. Microseconds of
wall time, the median of turns of 50 reads each; `ratio` is of the two medians. `noise` is the same ratio of the bare session's
even turns to its odd ones: what is nearer to 1 than that means nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from sqlalchemy import create_engine, insert, select
from sqlalchemy.orm import Session

from bench.report import parser_of, show
from examples.reading import FILE, Order
from shardctl import Reader
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local.servers import PostgresServer
from shardctl.provision import provision_database

TURN = 50
KEYS = [f"o-{number}" for number in range(500)]
GOALS = {"ratio": "≤ 1.2"}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--reads", type=int, default=20_000, help="of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder)).start()
        try:
            result = _measure(server, max(4, options.reads // TURN))
        finally:
            server.delete()
    show(result, options.json, GOALS)


def _measure(server, turns):
    fleet = fleet_from(parse(FILE, "bench"))
    engines = {shard.name: create_engine(server.create_database(shard.name)) for shard in fleet.shards}
    for shard in fleet.shards:
        provision_database(fleet, shard, engines[shard.name].url.render_as_string(hide_password=False))
    homes = {}
    for key in KEYS:
        slot = fleet.routing.rule.slot_of(key)
        homes[key] = engines["s0" if slot < 512 else "s1"]
        with homes[key].begin() as connection:
            connection.execute(insert(Order).values(order_id=key, amount=1, slot=slot))
    reader = Reader(fleet, engines)

    def bare(key):
        with Session(homes[key]) as session:
            return session.scalars(select(Order).where(Order.order_id == key)).one()

    def keyed(key):
        with reader.session(key) as session:
            return session.scalars(select(Order).where(Order.order_id == key)).one()

    times = {bare: [], keyed: []}
    for turn in range(turns + 2):
        for read in (bare, keyed) if turn % 2 else (keyed, bare):
            keys = [KEYS[(turn * TURN + number) % len(KEYS)] for number in range(TURN)]
            began = time.perf_counter()
            for key in keys:
                read(key)
            if turn > 1:  # the first two warm up
                times[read].append((time.perf_counter() - began) / TURN * 1e6)
    for engine in engines.values():
        engine.dispose()
    median = statistics.median
    return {
        "bare_us": round(median(times[bare]), 1),
        "keyed_us": round(median(times[keyed]), 1),
        "ratio": round(median(times[keyed]) / median(times[bare]), 3),
        "noise": round(median(times[bare][::2]) / median(times[bare][1::2]), 3),
    }


if __name__ == "__main__":
    main()
