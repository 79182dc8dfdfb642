"""What a reader returns by key and over all shards, and what it refuses."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from fleets import yamlfile
from shop_kit import FILE, Line, Order
from sqlalchemy import create_engine, event, func, insert, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import joinedload, selectinload

from shardctl.errors import UsageError
from shardctl.fleet.load import fleet_from
from shardctl.reader.answer import PartialReadError
from shardctl.reader.errors import ReadError, SlotMovingError, SlotUnknownError
from shardctl.reader.reader import Reader
from shardctl.shard.database import DatabaseError

ORDERS = Order.__table__


def impatient(shop, **settings):
    return Reader(shop.fleet, shop.engines, patience=timedelta(0), **settings)


def test_get_returns_an_object_of_the_owner_detached(shop):
    order = shop.reader.get(Order, "o-3")
    assert (order.order_id, order.amount) == ("o-3", 3)
    assert shop.reader.get(Order, "o-99") is None


def test_get_returns_a_row_of_a_table(shop):
    assert shop.reader.get(ORDERS, "o-3").amount == 3


def test_get_finds_the_routing_key_in_a_key_of_several_columns(shop):
    assert shop.reader.get(Line, ("o-3", 1)).item == "i-o-3"


def test_many_tasks_read_at_once_in_threads(shop):
    async def read():
        return await asyncio.gather(*(asyncio.to_thread(shop.reader.get, Order, key) for key in shop.keys))

    assert [order.amount for order in asyncio.run(read())] == list(range(20))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, "Name the type"),
        ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, "Name the type"),
        ({"type": "event"}, "with at="),
        ({"type": "evnt"}, "no message type 'evnt'"),
    ],
    ids=["no-type", "time-alone", "no-time", "unknown"],
)
def test_a_type_that_is_routed_by_time_needs_the_time(shop, settings, fault):
    event_type = (
        "event: {table: events, key: id, columns: {id: text, at: timestamp}, time_bucket: {field: at, unit: day}}\n"
    )
    fleet = fleet_from(yamlfile.parse(FILE.replace("shards:\n", f"  {event_type}shards:\n")))
    reader = Reader(fleet, shop.engines)
    with pytest.raises(UsageError, match=fault), reader.session("e-1", **settings):
        pass
    with reader.session("e-1", type="event", at=datetime(2026, 1, 1, tzinfo=UTC)) as session:
        assert session.bind.engine in shop.engines.values()


def test_a_session_reads_what_belongs_to_a_key(shop):
    with shop.reader.session("o-3") as session:
        assert session.scalars(select(Line.item).where(Line.order_id == "o-3")).all() == ["i-o-3"]


def test_a_session_cannot_write(shop):
    with shop.reader.session("o-3") as session, pytest.raises(OperationalError, match="readonly"):
        session.execute(insert(ORDERS).values(order_id="x", slot=1))
    shop.put("s0", "o-100", 1)  # the pooled connection writes again


def test_a_session_does_not_go_on_after_its_transaction(shop):
    with shop.reader.session("o-3") as session:
        session.execute(select(Order))
        session.rollback()
        with pytest.raises(ReadError, match="open another session"):
            session.execute(select(Order))


def test_rows_that_a_slot_left_behind_are_not_read(shop):
    """The slot is active in s1, and s0 still has the rows of before."""
    key = next(key for key in shop.keys if shop.home(key) == "s0")
    shop.put("s1", key, 1_000)
    shop.lane("s0", shop.slot(key), "left")
    shop.lane("s1", shop.slot(key), "active")
    assert shop.reader.get(Order, key).amount == 1_000
    others = sum(number for number, other in enumerate(shop.keys) if shop.slot(other) != shop.slot(key))
    total = shop.reader.scatter(select(Order.amount).where(Order.amount < 1_000)).scalars()
    assert sum(total) == others


def test_rows_that_are_copied_ahead_are_not_read(shop):
    key = next(key for key in shop.keys if shop.home(key) == "s0")
    shop.put("s1", key, -1)
    shop.lane("s1", shop.slot(key), "arriving")
    assert shop.reader.get(Order, key).amount >= 0
    assert min(shop.reader.scatter(select(Order.amount)).scalars()) == 0


def test_related_rows_are_of_active_slots_alone(shop):
    key = shop.keys[0]
    with shop.engines[shop.home(key)].begin() as connection:  # a line that is another slot's
        elsewhere = 15 if shop.home(key) == "s0" else 0
        connection.execute(insert(Line).values(order_id=key, number=2, item="left behind", slot=elsewhere))
    orders = shop.reader.scatter(select(Order).options(selectinload(Order.lines))).scalars()
    assert [line.item for order in orders if order.order_id == key for line in order.lines] == [f"i-{key}"]
    joined = shop.reader.scatter(select(Order.order_id, Line.item).join(Line, Line.order_id == Order.order_id))
    assert len(joined) == 20


def test_rows_of_all_shards_are_merged_in_one_order_up_to_a_limit(shop):
    rows = shop.reader.scatter(select(Order.order_id), order_by=[Order.amount.desc()], limit=5)
    assert [row.order_id for row in rows] == ["o-19", "o-18", "o-17", "o-16", "o-15"]
    orders = shop.reader.scatter(select(Order), order_by=[Order.amount], limit=3).scalars()
    assert [order.amount for order in orders] == [0, 1, 2]


def test_nulls_stand_where_the_databases_put_them(shop):
    for number in (200, 201, 202, 203):
        shop.put(shop.home(f"o-{number}"), f"o-{number}", None)
    amounts = shop.reader.scatter(select(Order.amount), order_by=[Order.amount, Order.order_id], limit=6).scalars()
    assert amounts == [None] * 4 + [0, 1]
    assert shop.reader.scatter(select(Order.amount), order_by=[Order.amount.desc()]).scalars()[-5:] == [0, *[None] * 4]


def test_counts_of_all_shards_add_up(shop):
    for statement in (select(func.count()).select_from(Order), select(func.count()).select_from(ORDERS)):
        assert sum(shop.reader.scatter(statement).scalars()) == 20


def test_an_alias_is_filtered_too(shop):
    shop.put("s1", next(f"o-{n}" for n in range(30, 90) if shop.home(f"o-{n}") == "s0"), 500)
    other = ORDERS.alias("other")
    assert 500 not in shop.reader.scatter(select(other.c.amount)).scalars()


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        (lambda: select(Order).order_by(Order.amount), "order_by"),
        (lambda: select(Order).limit(3), "limit"),
        (lambda: select(Order).outerjoin(Order.lines), "inner joins"),
        (lambda: select(Order).options(joinedload(Order.lines)), "selectinload"),
        (lambda: select(Order).where(Order.order_id.in_(select(Line.order_id))), "subqueries"),
        (lambda: select(select(ORDERS).subquery()), "subqueries"),
        (lambda: select(func.now()), "no table"),
        (lambda: insert(ORDERS), "select"),
    ],
    ids=["order", "limit", "outer", "joinedload", "in", "subquery", "no-table", "insert"],
)
def test_a_statement_without_distinguishable_rows_is_refused(shop, statement, fault):
    with pytest.raises(UsageError, match=fault):
        shop.reader.scatter(statement())


def test_a_slot_between_two_databases_is_refused_after_the_patience(shop):
    slot = shop.slot("o-3")
    shop.lane(shop.home("o-3"), slot, "left")
    other = "s1" if shop.home("o-3") == "s0" else "s0"
    shop.lane(other, slot, "due")
    with pytest.raises(SlotMovingError, match=f"slot {slot} is changing hands to shard {other}"):
        impatient(shop).get(Order, "o-3")
    with pytest.raises(PartialReadError, match=f"slots {slot}: they are changing hands") as error:
        impatient(shop).scatter(select(Order.order_id))
    assert len(error.value.rows) == sum(shop.slot(key) != slot for key in shop.keys)


def test_a_read_waits_until_the_slot_has_arrived(shop):
    slot, home = shop.slot("o-3"), shop.home("o-3")
    other = "s1" if home == "s0" else "s0"
    for key in [key for key in shop.keys if shop.slot(key) == slot]:
        shop.put(other, key, 3)
    shop.lane(home, slot, "left")
    shop.lane(other, slot, "due")
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) % 3 == 0:
            shop.lane(other, slot, "active")

    waiting = Reader(shop.fleet, shop.engines, sleep=sleep)
    assert waiting.get(Order, "o-3").amount == 3
    assert len(pauses) == 3
    shop.lane(other, slot, "due")
    assert len(waiting.scatter(select(Order.order_id))) == 20


def test_a_slot_that_no_database_has_is_no_empty_answer(shop):
    shop.lane(shop.home("o-3"), shop.slot("o-3"), None)
    with pytest.raises(SlotUnknownError, match="load it again"):
        shop.reader.get(Order, "o-3")
    with pytest.raises(PartialReadError, match="active in no database"):
        shop.reader.scatter(select(Order))


def test_an_engine_beyond_the_file_is_asked(shop, tmp_path):
    """The file at hand is older than shard s2, which has the slot now."""
    slot = shop.slot("o-3")
    home = shop.engines[shop.home("o-3")]
    with create_engine(f"sqlite:///{tmp_path}/s2.db").begin() as connection:
        for table in ("shardctl_lanes", "shardctl_replicas", "orders"):
            with home.connect() as other:
                connection.exec_driver_sql(
                    other.exec_driver_sql(f"SELECT sql FROM sqlite_master WHERE name = '{table}'").scalar_one()
                )
    shop.engines["s2"] = create_engine(f"sqlite:///{tmp_path}/s2.db")
    with shop.engines["s2"].begin() as connection:
        connection.execute(insert(ORDERS).values(order_id="o-3", amount=33, slot=slot))
    shop.lane(shop.home("o-3"), slot, "left")
    shop.lane("s2", slot, "active")
    assert Reader(shop.fleet, shop.engines).get(Order, "o-3").amount == 33


def test_a_database_that_cannot_be_reached_is_named(shop, tmp_path):
    shop.engines["s1"] = create_engine(f"sqlite:///{tmp_path}/nowhere/s1.db")
    key = next(key for key in shop.keys if shop.home(key) == "s1")
    with pytest.raises(DatabaseError, match="nowhere"):
        Reader(shop.fleet, shop.engines).get(Order, key)
    here = sum(shop.home(key) == "s0" for key in shop.keys)
    reader = impatient(shop)
    with pytest.raises(PartialReadError, match=r"shard s1: slots 8-15: .*nowhere"):
        reader.scatter(select(Order))
    rows = reader.scatter(select(Order), partial=True)
    assert (len(rows), [failure.shard for failure in rows.failures]) == (here, ["s1"])


def test_a_shard_to_come_without_a_database_takes_nothing_from_a_read_of_every_slot(shop, tmp_path):
    shop.engines["s2"] = create_engine(f"sqlite:///{tmp_path}/nowhere/s2.db")
    reader = impatient(shop)
    assert len(reader.scatter(select(Order))) == len(shop.keys)
    shop.lane(shop.home("o-3"), shop.slot("o-3"), "left")
    with pytest.raises(PartialReadError, match=r"shard s2: .*nowhere.* \(and 1 more\)"):
        reader.scatter(select(Order))


def test_every_shard_needs_an_engine(shop):
    del shop.engines["s1"]
    with pytest.raises(UsageError, match="no engine for s1"):
        Reader(shop.fleet, shop.engines)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((Order, ("o-1", 2)), "a value for each"),
        ((dict, "o-1"), "a mapped class or a Table"),
        ((Order, True), "not bool"),
    ],
    ids=["width", "class", "bool"],
)
def test_a_get_of_something_else_is_refused(shop, arguments, fault):
    with pytest.raises(UsageError, match=fault):
        shop.reader.get(*arguments)


class Replica:
    """A copy of a shard's database, as it is now."""

    def __init__(self, shop, shard, folder):
        source, path = shop.engines[shard], folder / f"{shard}-replica.db"
        with source.connect() as connection:
            connection.exec_driver_sql(f"VACUUM INTO '{path}'")
        self.engine = create_engine(f"sqlite:///{path}")

    def report(self, when):
        """A consumer's report of its presence arrives, from so many seconds ago."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM shardctl_replicas")
            if when is not None:
                values = f"('r', '1', datetime('now', '-{when} seconds'))"
                connection.exec_driver_sql(
                    f"INSERT INTO shardctl_replicas (replica, generations, seen_time) VALUES {values}"
                )


@pytest.fixture
def replica(shop, tmp_path):
    made = Replica(shop, shop.home("o-3"), tmp_path)
    with shop.engines[shop.home("o-3")].begin() as connection:
        connection.execute(ORDERS.update().where(ORDERS.c.order_id == "o-3").values(amount=4))
    yield made
    made.engine.dispose()


STALE = {"max_staleness": timedelta(seconds=60)}


@pytest.mark.parametrize(("age", "amount"), [(10, 3), (100, 4), (None, 4)], ids=["fresh", "old", "unknown"])
def test_a_replica_serves_a_read_that_may_be_as_stale_as_it_is(shop, replica, age, amount):
    reader = Reader(shop.fleet, shop.engines, replicas={shop.home("o-3"): [replica.engine]})
    replica.report(age)
    assert reader.get(Order, "o-3", **STALE).amount == amount
    assert reader.get(Order, "o-3").amount == 4
    assert reader.scatter(select(Order.amount).where(Order.order_id == "o-3"), **STALE).scalars() == [amount]


def test_a_replica_in_which_the_slot_has_left_is_not_read(shop, replica):
    reader = Reader(shop.fleet, shop.engines, replicas={shop.home("o-3"): [replica.engine]})
    replica.report(1)
    with replica.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE shardctl_lanes SET state = 'left'")
    assert reader.get(Order, "o-3", **STALE).amount == 4
    assert len(reader.scatter(select(Order), **STALE)) == 20


def test_a_replica_that_fails_is_passed_over(shop, tmp_path):
    broken = create_engine(f"sqlite:///{tmp_path}/nowhere/replica.db")
    reader = Reader(shop.fleet, shop.engines, replicas={"s0": [broken], "s1": [broken]})
    assert reader.get(Order, "o-3", **STALE).amount == 3


@pytest.mark.parametrize("source", ["s0", "s1"])
def test_a_slot_that_moves_between_two_databases_reads_is_read_once(shop, source):
    """s0 is read first; before s1 is, the slot goes from one to the other."""
    key = next(key for key in shop.keys if shop.home(key) == source)
    slot, destination = shop.slot(key), "s1" if source == "s0" else "s0"
    for other in [other for other in shop.keys if shop.slot(other) == slot]:
        shop.put(destination, other, 0)

    def move(*_):
        if not moved:
            moved.append(True)
            shop.lane(source, slot, "left")
            shop.lane(destination, slot, "active")

    moved = []
    reader = Reader(shop.fleet, shop.engines, concurrency=1, sleep=lambda _: None)
    event.listen(shop.engines["s1"], "checkout", move)
    assert sorted(reader.scatter(select(Order.order_id)).scalars()) == sorted(shop.keys)
    assert moved
