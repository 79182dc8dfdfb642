"""A key or a version in a column with fewer places than its times have: the row that is stored would be another's."""

from __future__ import annotations

import orjson
import pytest
from products_kit import SERVERS, empty_database
from sqlalchemy import text
from sqlalchemy.engine import make_url

from consumer.database import sessions
from consumer.delivery import Delivery
from consumer.errors import DataFaultError
from consumer.sinks.sql import SqlSink
from shardctl.fleet.settings.consuming import Batching
from shardctl.fleet.settings.messagetypes import MessageType

pytestmark = pytest.mark.slow

KIND = MessageType(
    table="ticks",
    key=("sensor", "at"),
    version_column="seen",
    columns={"sensor": "text", "at": "timestamp", "seen": "timestamp", "noted": "timestamp"},
)
COLUMN = {"postgresql": "timestamp({})", "mariadb": "datetime({})"}
WHOLE, PARTS = "2026-01-01T08:00:00Z", "2026-01-01T08:00:00.123Z"


class Ticks:
    def __init__(self, product, url):
        self.column, self.engine = COLUMN[product], sessions.engine_of(make_url(url), Batching())
        self.dialect = sessions.dialect_of(self.engine.url)
        self.sink = SqlSink(self.dialect, {"tick": KIND})
        at, seen, noted = self.column.format(0), self.column.format(3), self.column.format(0)
        key = "PRIMARY KEY (sensor, at)"
        self.run(f"CREATE TABLE ticks (sensor varchar(9), at {at}, seen {seen}, noted {noted}, slot integer, {key})")

    def run(self, statement):
        with sessions.transaction(self.engine, self.dialect) as connection:
            connection.exec_driver_sql(statement)

    def write(self, operation="upsert", **values):
        data = orjson.dumps({"sensor": "1", "at": WHOLE, "seen": WHOLE, **values})
        message = type("Message", (), {"data": data, "attributes": {}})
        delivery = Delivery("", "", message, "m", 0, len(data), slot=0, partition_key="1", message_type="tick")
        delivery.operation = operation
        self.sink.check(delivery)
        with sessions.transaction(self.engine, self.dialect) as connection:
            return self.sink.apply(connection, [delivery])

    def count(self):
        with self.engine.connect() as connection:
            return connection.scalar(text("SELECT count(*) FROM ticks"))


@pytest.fixture(params=SERVERS)
def ticks(request):
    with empty_database(request, request.param) as url:
        made = Ticks(request.param, url)
        yield made
        made.engine.dispose()


@pytest.mark.parametrize("operation", ["insert", "upsert", "delete"])
@pytest.mark.parametrize("values", [{"at": PARTS}, {"seen": "2026-01-01T08:00:00.1234Z"}], ids=["a key", "a version"])
def test_a_key_or_a_version_that_its_column_would_round_is_refused(ticks, operation, values):
    """Stored as another time, a key would be found by no later write, and a version let an older one win."""
    with pytest.raises(DataFaultError, match=f"{next(iter(values))!r} has more places") as refused:
        ticks.write(operation, **values)
    assert refused.value.reason == "bad_value"


def test_what_a_column_holds_is_taken_and_other_times_are_rounded(ticks):
    ticks.write(seen=PARTS, noted=PARTS)
    assert ticks.write("delete", seen="2026-01-01T08:00:00.124000Z") == 0
    assert ticks.count() == 0


def test_a_wider_column_takes_the_value_at_once(ticks):
    ticks.write()
    change = (
        "ALTER TABLE ticks ALTER at TYPE timestamp"
        if ticks.column[0] == "t"
        else "ALTER TABLE ticks MODIFY at datetime(6)"
    )
    ticks.run(change)
    ticks.write(at=PARTS)
    assert ticks.count() == 2
