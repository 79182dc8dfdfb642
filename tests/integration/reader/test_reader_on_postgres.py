"""A reader on PostgreSQL: what its check costs, and servers that it must not take for primaries."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, event, insert, select, text
from sqlalchemy.exc import InternalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from examples.reading import FILE, Order
from shardctl import AsyncReader, PartialReadError, Reader, ReadError
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.provision import provision_database
from shardctl.shard import membership
from shardctl.shard.database import DatabaseError
from shardctl.shard.schema import replicas

pytestmark = pytest.mark.slow
KEY = "o-1"


@pytest.fixture
def fleet():
    """One shard, so that one database is enough."""
    return fleet_from(parse(FILE[: FILE.index("shards:")] + "shards: [{name: s0, slots: 0-1023}]\n"))


@pytest.fixture
def engine(fleet, database_url):
    provision_database(fleet, fleet.shards[0], database_url)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        slot = fleet.routing.rule.slot_of(KEY)
        connection.execute(insert(Order).values(order_id=KEY, amount=1, slot=slot))
    yield engine
    engine.dispose()


def test_a_read_sees_one_snapshot_and_the_pooled_connection_is_as_before(fleet, engine):
    with Reader(fleet, {"s0": engine}).session(KEY) as session:
        assert session.scalar(select(Order.amount)) == 1
        with engine.begin() as connection:
            connection.execute(Order.__table__.update().values(amount=2))
        assert session.scalar(select(Order.amount)) == 1
        with pytest.raises(InternalError, match="read-only"):
            session.execute(insert(Order).values(order_id="x", amount=1, slot=1))
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
        assert connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "off"


def statements_of(engine):
    """Those that come from now on, but for the comparison of whose the database is, which comes once an engine."""
    statements = []

    def note(*call):
        if membership.table.name not in call[2]:
            statements.append(call[2])

    event.listen(engine, "before_cursor_execute", note)
    return statements


def test_whose_the_database_is_is_compared_once_an_engine(fleet, engine):
    statements, reader = [], Reader(fleet, {"s0": engine})
    event.listen(engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    for count in (2, 2, 2):
        with reader.session(KEY):
            pass
        assert len(statements) == count


def test_the_check_sends_no_statement_of_its_own_through_the_driver(fleet, engine):
    statements = statements_of(engine)
    with Reader(fleet, {"s0": engine}).session(KEY) as session:
        session.scalar(select(Order.amount))
    assert len(statements) == 1


def test_what_is_prepared_serves_the_next_session_too(fleet, engine):
    reader = Reader(fleet, {"s0": engine})
    for _ in range(7):  # psycopg prepares what it has sent five times
        with reader.session(KEY) as session:
            assert session.scalar(select(Order.amount)) == 1
    assert len(_prepared(engine)) == 2


@pytest.mark.parametrize(
    ("before", "between"),
    [("", "DEALLOCATE ALL"), ("PREPARE shardctl_lane AS SELECT 1", "SELECT 1")],
    ids=["lost", "taken"],
)
def test_a_read_goes_on_where_a_pooler_mixes_up_what_was_prepared(fleet, engine, before, between):
    reader = Reader(fleet, {"s0": engine})
    for statement in filter(None, (before, "SELECT 1", between)):
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        for _ in range(2):
            assert reader.get(Order, KEY).amount == 1
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "off"


def test_nothing_is_prepared_where_the_driver_may_not(fleet, engine):
    careful = create_engine(engine.url, connect_args={"prepare_threshold": None})
    for _ in range(7):
        assert Reader(fleet, {"s0": careful}).get(Order, KEY).amount == 1
    assert _prepared(careful) == []
    careful.dispose()


def _prepared(engine):
    with engine.connect() as connection:
        return connection.exec_driver_sql("SELECT name FROM pg_prepared_statements").scalars().all()


def test_an_async_engine_gets_the_same_snapshot_in_as_few_statements(fleet, engine):
    async def read():
        async_engine = create_async_engine(engine.url)
        statements = statements_of(async_engine.sync_engine)
        reader = AsyncReader(fleet, {"s0": async_engine})
        async with reader.session(KEY) as session:
            assert await session.scalar(select(Order.amount)) == 1
            assert len(statements) == 1
            with engine.begin() as connection:
                connection.execute(Order.__table__.update().values(amount=2))
            assert await session.scalar(select(Order.amount)) == 1
            with pytest.raises(InternalError, match="read-only"):
                await session.execute(insert(Order).values(order_id="x", amount=1, slot=1))
        with pytest.raises(PartialReadError, match="nowhere"):
            await reader.scatter(select(text("nowhere")).select_from(Order))
        async with async_engine.connect() as connection:
            assert (await connection.exec_driver_sql("SHOW transaction_isolation")).scalar() == "read committed"
        await async_engine.dispose()

    asyncio.run(read())


def test_an_async_scatter_ends_a_slow_statement_on_the_server(fleet, engine):
    async def read():
        async_engine = create_async_engine(engine.url)
        with create_engine(engine.url).connect() as other:
            other.exec_driver_sql("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            reader = AsyncReader(fleet, {"s0": async_engine})
            rows = await reader.scatter(select(Order), timeout=timedelta(seconds=0.2), partial=True)
        assert [(failure.shard, len(failure.slots)) for failure in rows.failures] == [("s0", 1024)]
        await async_engine.dispose()

    asyncio.run(read())


def test_a_connection_that_the_server_has_closed_is_replaced(fleet, engine):
    reader = Reader(fleet, {"s0": engine})
    assert reader.get(Order, KEY).amount == 1
    with engine.connect() as connection:
        number = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    with create_engine(engine.url, poolclass=NullPool).connect() as connection:
        connection.exec_driver_sql(f"SELECT pg_terminate_backend({number}, 5000)")
    assert reader.get(Order, KEY).amount == 1


def test_a_scatter_ends_a_slow_statement_on_the_server(fleet, engine):
    reader = Reader(fleet, {"s0": engine})
    with create_engine(engine.url).connect() as other:
        other.exec_driver_sql("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        read = reader.scatter(select(Order), timeout=timedelta(seconds=0.2), partial=True)
    assert [(failure.shard, len(failure.slots)) for failure in read.failures] == [("s0", 1024)]


def test_missing_tables_are_named_with_the_way_out(fleet, database_url):
    engine = create_engine(database_url)
    with pytest.raises(DatabaseError, match="shardctl provision"):
        Reader(fleet, {"s0": engine}).get(Order, KEY)
    engine.dispose()


def test_a_standby_serves_as_a_replica_and_not_as_a_database(fleet, engine, postgres_server, tmp_path):
    with engine.begin() as connection:
        connection.execute(insert(replicas).values(replica="r", generations="1"))
    with postgres_server.replica(tmp_path / "standby") as server:
        standby = create_engine(server.url(engine.url.database))
        reads = statements_of(standby)
        with pytest.raises(ReadError, match="a standby"):
            Reader(fleet, {"s0": standby}).get(Order, KEY)
        reader = Reader(fleet, {"s0": engine}, replicas={"s0": [standby]})
        assert not reads
        assert reader.get(Order, KEY, max_staleness=timedelta(hours=1)).amount == 1
        assert len(reads) == 1
        assert reader.get(Order, KEY, max_staleness=timedelta(0)).amount == 1
        assert len(reads) == 1
        standby.dispose()
