"""A reader on PostgreSQL: what its check costs, and servers that it must not take for primaries."""

from datetime import timedelta

import pytest
from sqlalchemy import create_engine, event, insert, select
from sqlalchemy.exc import InternalError
from sqlalchemy.pool import NullPool

from examples.reading import FILE, Order
from shardctl import Reader, ReadError
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.provision import provision_database
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


def test_the_check_sends_no_statement_of_its_own_through_the_driver(fleet, engine):
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    with Reader(fleet, {"s0": engine}).session(KEY) as session:
        session.scalar(select(Order.amount))
    assert len(statements) == 1


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
        reads = []
        event.listen(standby, "before_cursor_execute", lambda *call: reads.append(call[2]))
        with pytest.raises(ReadError, match="a standby"):
            Reader(fleet, {"s0": standby}).get(Order, KEY)
        reader = Reader(fleet, {"s0": engine}, replicas={"s0": [standby]})
        assert not reads
        assert reader.get(Order, KEY, max_staleness=timedelta(hours=1)).amount == 1
        assert len(reads) == 1
        assert reader.get(Order, KEY, max_staleness=timedelta(0)).amount == 1
        assert len(reads) == 1
        standby.dispose()
