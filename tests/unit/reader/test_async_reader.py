"""The reader for asyncio: the same answers over async engines, and nothing left behind by a cancelled read."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from shop_kit import Order
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only

from shardctl import AsyncReader, PartialReadError, ReadError
from shardctl.reader.errors import SlotMovingError


@asynccontextmanager
async def reading(shop, **settings):
    urls = {name: engine.url.set(drivername="sqlite+aiosqlite") for name, engine in shop.engines.items()}
    engines = {name: create_async_engine(url) for name, url in urls.items()}
    try:
        yield AsyncReader(shop.fleet, engines, **settings), engines
    finally:
        for engine in engines.values():
            await engine.dispose()


def test_it_reads_by_key_and_over_all_shards(shop):
    async def read():
        async with reading(shop) as (reader, _):
            orders = await asyncio.gather(*(reader.get(Order, key) for key in shop.keys[:4]))
            assert [order.amount for order in orders] == [0, 1, 2, 3]
            async with reader.session("o-3") as session:
                assert await session.scalar(select(Order.amount).where(Order.order_id == "o-3")) == 3
                await session.rollback()
                with pytest.raises(ReadError, match="open another session"):
                    await session.execute(select(Order))
            rows = await reader.scatter(select(Order.amount), order_by=[Order.amount.desc()], limit=3)
            assert rows.scalars() == [19, 18, 17]

    asyncio.run(read())


def test_it_waits_for_a_slot_that_changes_hands_and_lets_other_tasks_go_on(shop):
    slot, home = shop.slot("o-3"), shop.home("o-3")
    other = "s1" if home == "s0" else "s0"
    shop.put(other, "o-3", 33)
    shop.lane(home, slot, "left")
    shop.lane(other, slot, "due")

    async def read():
        async with reading(shop, patience=timedelta(minutes=5)) as (reader, _):
            waiting = asyncio.create_task(reader.get(Order, "o-3"))
            await reader.get(Order, next(key for key in shop.keys if shop.slot(key) != slot))
            assert not waiting.done()
            shop.lane(other, slot, "active")
            assert (await waiting).amount == 33
        async with reading(shop, patience=timedelta(0)) as (reader, _):
            shop.lane(other, slot, "due")
            with pytest.raises(SlotMovingError):
                await reader.get(Order, "o-3")
            with pytest.raises(PartialReadError, match="changing hands"):
                await reader.scatter(select(Order))

    asyncio.run(read())


def test_a_cancelled_read_returns_its_connections(shop):
    async def read():
        async with reading(shop) as (reader, engines):
            opened, over = asyncio.Event(), asyncio.Event()

            async def hold():
                async with reader.session("o-3"):
                    opened.set()
                    await over.wait()

            holding = asyncio.create_task(hold())
            await opened.wait()
            scattering = asyncio.create_task(reader.scatter(select(Order)))
            await asyncio.sleep(0)
            for task in (holding, scattering):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            async with asyncio.timeout(60):
                while any(engine.pool.checkedout() for engine in engines.values()):  # noqa: ASYNC110 - a pool has no event
                    await asyncio.sleep(0)
            assert len(await reader.scatter(select(Order))) == 20

    asyncio.run(read())


def test_a_call_without_an_answer_is_reported_and_its_shard_not_asked_again(shop):
    async def read():
        async with reading(shop) as (reader, engines):
            hung = asyncio.Event()

            async def hang(*_):
                await hung.wait()

            await reader.scatter(select(Order))  # which opens the connections
            event.listen(engines["s1"].sync_engine, "before_cursor_execute", lambda *_: await_only(hang()))
            rows = await reader.scatter(select(Order), timeout=timedelta(seconds=0.05), partial=True)
            assert [failure.shard for failure in rows.failures] == ["s1"]
            hung.set()
            async with asyncio.timeout(60):
                while engines["s1"].pool.checkedout():  # noqa: ASYNC110 - the same
                    await asyncio.sleep(0)
            assert len(await reader.scatter(select(Order))) == 20

    asyncio.run(read())
