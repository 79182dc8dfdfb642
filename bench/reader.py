"""What a read by key costs over a bare session: the same row, from the same PostgreSQL, read by read.

    python -m bench.reader [--json] [--reads N]

Both read one row by its primary key through a mapped class, with a pooled connection: `bare` by `Session(engine)`, `keyed` by
`Reader.session`, which also finds the slot's database and checks in the snapshot that the slot is active there. Each has engines
of its own, and they take turns read by read, so that both meet the same moments of a busy machine. Microseconds of wall time,
the median of all reads; `ratio` is of the two medians. `noise` is the same ratio of every other bare read to the rest: what is
nearer to 1 than that means nothing. `async_` is the same with async engines, `AsyncSession` and `AsyncReader`, one read after the
other.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from sqlalchemy import create_engine, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from bench.report import parser_of, show
from examples.reading import FILE, Order
from shardctl import AsyncReader, Reader
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local.servers import PostgresServer
from shardctl.provision import provision_database

WARM_UP = 200  # reads of each kind
KEYS = [f"o-{number}" for number in range(500)]
GOALS = {"ratio": "≤ 1.2", "async_ratio": "≤ 1.2"}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--reads", type=int, default=20_000, help="of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder)).start()
        try:
            result = _measure(server, options.reads)
        finally:
            server.delete()
    show(result, options.json, GOALS)


def _measure(server, reads):
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
    return _sync(fleet, engines, homes, reads) | asyncio.run(_async(fleet, engines, homes, reads))


def _sync(fleet, engines, homes, reads):
    own = {name: create_engine(engine.url) for name, engine in engines.items()}
    reader = Reader(fleet, own)

    async def bare(key):
        with Session(homes[key]) as session:
            session.scalars(_one(key)).one()

    async def keyed(key):
        with reader.session(key) as session:
            session.scalars(_one(key)).one()

    result = asyncio.run(_compared(bare, keyed, reads))
    for engine in (*engines.values(), *own.values()):
        engine.dispose()
    return result


async def _async(fleet, sync_engines, sync_homes, reads):
    own = {name: create_async_engine(engine.url) for name, engine in sync_engines.items()}
    engines = {name: create_async_engine(engine.url) for name, engine in sync_engines.items()}
    homes = {key: engines[engine.url.database] for key, engine in sync_homes.items()}
    reader = AsyncReader(fleet, own)

    async def bare(key):
        async with AsyncSession(homes[key]) as session:
            (await session.scalars(_one(key))).one()

    async def keyed(key):
        async with reader.session(key) as session:
            (await session.scalars(_one(key))).one()

    result = await _compared(bare, keyed, reads)
    for engine in (*engines.values(), *own.values()):
        await engine.dispose()
    return {f"async_{name}": value for name, value in result.items()}


def _one(key):
    return select(Order).where(Order.order_id == key)


async def _compared(bare, keyed, reads):
    times = {bare: [], keyed: []}
    for number in range(WARM_UP + reads):
        key = KEYS[number % len(KEYS)]
        for read in (bare, keyed) if number % 2 else (keyed, bare):
            began = time.perf_counter()
            await read(key)
            if number >= WARM_UP:
                times[read].append((time.perf_counter() - began) * 1e6)
    median = statistics.median
    return {
        "bare_us": round(median(times[bare]), 1),
        "keyed_us": round(median(times[keyed]), 1),
        "ratio": round(median(times[keyed]) / median(times[bare]), 3),
        "noise": round(median(times[bare][::2]) / median(times[bare][1::2]), 3),
    }


if __name__ == "__main__":
    main()
