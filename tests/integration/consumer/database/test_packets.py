"""MariaDB ends a connection that sends more than max_allowed_packet: nothing of ours ever does."""

from __future__ import annotations

from datetime import timedelta

import orjson
import pymysql
import pytest
from consumer_kit import Shard, write
from sqlalchemy import text

from consumer.database import packet, sessions
from consumer.errors import TransientError
from shardctl.local.servers import BinaryMissingError, MariaDBServer

pytestmark = pytest.mark.slow

MEBIBYTE = 1024**2


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With the packets that 0.1.0 asked for: four times a batch of 4 MiB."""
    made = MariaDBServer(tmp_path_factory.mktemp("packets"), durable=False, settings={"max-allowed-packet": "16M"})
    try:
        made.start()
    except BinaryMissingError as missing:
        pytest.skip(str(missing))
    yield made
    made.delete()


@pytest.fixture
def shard(server):
    server.drop_database("packets")
    made = Shard(server.create_database("packets"), statement_timeout=timedelta(seconds=60))
    yield made
    made.close()


def of_size(kind, key, characters, operation="upsert", *, parks=False, **more):
    """A write whose text has so many characters, each of which is escaped on the wire."""
    column = {"customer": "name", "profile": "bio"}[kind]
    made = write(kind, {"customer_id": key, column: '"' * characters}, operation, **more)
    made.parks = parks
    return made


def test_the_size_is_what_the_driver_sends(shard):
    texts = ("plain", "quotes ' and \" and \\", "\0\n\r\x1a", "ü🦓", "")
    with shard.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert [packet.wire_bytes(value) for value in texts] == [
            len(driver.literal(value).encode()) - 2 for value in texts
        ]
        content = b"bytes \xff'\"\0"
        assert packet.wire_bytes(content) == len(driver.literal(content)) - len("X''")


@pytest.mark.parametrize("over", [False, True])
def test_the_limit_is_the_servers(shard, over):
    """The largest text that is said to fit is taken, and so is nothing much larger."""
    with shard.engine.connect() as connection:
        most = packet.room(connection) - packet.AROUND_BYTES - len("SELECT length(%s)")
        assert most > 15 * MEBIBYTE
        value = "x" * (most + over * 2 * packet.AROUND_BYTES)
        assert packet.fits(connection, "SELECT length(%s)", value) is not over
        if over:
            with pytest.raises(pymysql.err.OperationalError):
                connection.connection.driver_connection.cursor().execute("SELECT length(%s)", (value,))
            connection.invalidate()
        else:
            assert connection.exec_driver_sql("SELECT length(%s)", (value,)).scalar() == len(value)


@pytest.mark.parametrize("operation", ["upsert", "insert"])
def test_a_message_that_cant_fit_is_dead_lettered_and_the_others_are_applied(shard, operation):
    poison = of_size("customer", "big", 4_650_000, operation)
    batch = [write("customer", {"customer_id": "a"}), poison, write("customer", {"customer_id": "b"})]
    outcome = shard.settle(*batch)
    assert (outcome.applied, outcome.dead) == (2, 1)
    assert poison.fault.reason == "too_large"
    assert shard.rows("SELECT customer_id FROM customers ORDER BY 1") == [("a",), ("b",)]


@pytest.mark.proof
def test_a_batch_that_is_larger_than_a_packet_goes_in_parts(shard):
    batch = [of_size("customer", str(number), MEBIBYTE) for number in range(24)]
    assert shard.settle(*batch).applied == 24
    assert shard.rows("SELECT count(*), min(length(name)) FROM customers") == [(24, MEBIBYTE)]
    updates = [of_size("customer", str(number), MEBIBYTE + 1, "update") for number in range(24)]
    assert shard.settle(*updates).applied == 24
    assert shard.rows("SELECT count(*), min(length(name)) FROM customers") == [(24, MEBIBYTE + 1)]


def test_so_do_the_inbox_rows_of_a_large_batch(server):
    server._execute(f"SET GLOBAL max_allowed_packet = {2 * MEBIBYTE}")
    server.drop_database("small_packets")
    shard = Shard(server.create_database("small_packets"), statement_timeout=timedelta(seconds=60))
    server._execute(f"SET GLOBAL max_allowed_packet = {16 * MEBIBYTE}")
    batch = [write("profile", {"customer_id": str(number)}, ident=f"{'🦓' * 250}{number}") for number in range(4_000)]
    assert shard.settle(*batch).applied == 4_000
    assert shard.settle(*batch).applied == 0
    shard.close()
    server.drop_database("small_packets")


def test_a_message_too_large_to_be_parked_is_dead_lettered(shard):
    poison = of_size("customer", "1", 4_650_000, parks=True)
    assert shard.settle(poison).dead == 1
    assert poison.fault.reason == "too_large"
    head = write("customer", b"{", key="2")
    head.parks = True
    shard.settle(head)
    behind = [of_size("customer", "2", 4_650_000, parks=True), of_size("customer", "2", 10, parks=True)]
    outcome = shard.settle(*behind)
    assert (outcome.dead, outcome.parked) == (1, 1)


def test_the_limit_is_read_again_after_a_reconnect(server, shard):
    large = of_size("customer", "1", 4_650_000)
    server._execute(f"SET GLOBAL max_allowed_packet = {64 * MEBIBYTE}")
    shard.engine.dispose()
    assert shard.settle(large).applied == 1
    server._execute(f"SET GLOBAL max_allowed_packet = {16 * MEBIBYTE}")


def test_a_server_that_takes_too_little_is_refused_at_start(server, shard, caplog):
    sessions.check_packets(shard.engine, shard.dialect)
    assert "max_allowed_packet is 16,777,216" in caplog.text
    server._execute(f"SET GLOBAL max_allowed_packet = {MEBIBYTE}")
    shard.engine.dispose()
    with pytest.raises(TransientError, match="max_allowed_packet is 1,048,576"):
        sessions.check_packets(shard.engine, shard.dialect)
    server._execute(f"SET GLOBAL max_allowed_packet = {16 * MEBIBYTE}")
    shard.engine.dispose()


@pytest.mark.parametrize("product", ["postgresql", "sqlite"])
def test_the_other_databases_take_the_largest_message(product, request, tmp_path):
    """10 MB, all of it one value, as text and as JSON."""
    url = f"sqlite:///{tmp_path}/shard.db" if product == "sqlite" else request.getfixturevalue("database_url")
    shard = Shard(url, statement_timeout=timedelta(seconds=60))
    batch = [
        of_size("customer", "1", 4_900_000),
        write("mixed", orjson.dumps({"Id": 1, "aText": "1", "aJson": ["x" * 9_900_000]})),
    ]
    assert shard.settle(*batch).applied == 2
    with shard.engine.connect() as connection:
        assert connection.execute(text("SELECT length(name) FROM customers")).scalar() == 4_900_000
    shard.close()
