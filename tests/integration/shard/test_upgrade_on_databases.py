"""Tables that 0.1.0 made, brought to this version: what it recorded is known, wherever the upgrade was cut off."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime

import pytest
from arrival_kit import Database
from products_kit import PRODUCTS, empty_database
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.engine import make_url

from consumer.database import sessions as consumers
from consumer.errors import TransientError
from consumer.sinks.sql import SqlSink
from consumer.store import Store
from consumer.store.fence import Fence
from shardctl.deadletter.inboxes import Allowed, Inboxes
from shardctl.deadletter.letter import Message
from shardctl.deadletter.letter import read as read_letter
from shardctl.fleet.load import fleet_from
from shardctl.fleet.settings.consuming import Batching
from shardctl.fleet.yamlfile import parse
from shardctl.provision import ProvisionError, provision_database
from shardctl.rebalance import preflight
from shardctl.shard import database, membership, parked, schema, upgrade
from shardctl.shard.membership import Membership
from shardctl.shard.schema import KeyText
from shardctl.status.databases import Databases
from shardctl.verification import verify
from shardctl.wire import identity

pytestmark = pytest.mark.slow
OWN = Membership("shop", "s0")
MOMENT = datetime(2026, 5, 4, 3, 2, 1, 123_456, tzinfo=UTC)
TYPES = """
  step: {table: steps, key: id, routing_key: owner, operation: insert, on_poison: park, columns: {id: text, owner: text}}
"""
FLEET = """
fleet: shop
project: test-project
image: consumer:1
routing: {slot_bits: 6}
message_types:
  step: {table: steps, key: id, routing_key: owner, operation: insert, on_poison: park, columns: {id: text, owner: text}}
shards:
  - {name: s0, slots: 0-63}
"""
OLD = MetaData()
INBOX = Table(
    "shardctl_inbox",
    OLD,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("idempotency_key", KeyText, primary_key=True),
    Column("message_type", String(100), nullable=False),
    Column("partition_key", Text, nullable=False),
    Column("message_id", String(64), nullable=False),
    Column("publish_time", schema._MOMENT, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("applied_time", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("shardctl_inbox_applied", "applied_time"),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)
SLOTS = Table(
    "shardctl_slots",
    OLD,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("barrier_time_us", BigInteger),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)
PARKED = Table(
    "shardctl_parked",
    OLD,
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("slot", Integer, nullable=False),
    Column("partition_key", KeyText, nullable=False),
    Column("message_type", String(100), nullable=False),
    Column("operation", String(16), nullable=False),
    Column("idempotency_key", KeyText, nullable=False),
    Column("message_id", String(64), nullable=False),
    Column("publish_time_us", BigInteger, nullable=False),
    Column("attributes", schema.parked.c.attributes.type, nullable=False),
    Column("body", schema.parked.c.body.type, nullable=False),
    Index("shardctl_parked_by_key", "slot", "partition_key", "position"),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)
PARKED_KEYS = Table(
    "shardctl_parked_keys",
    OLD,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("partition_key", KeyText, primary_key=True),
    Column("reason", String(64), nullable=False),
    Column("detail", schema.parked_keys.c.detail.type, nullable=False),
    Column("released", schema.parked_keys.c.released.type, nullable=False),
    Column("parked_time", DateTime(timezone=True), nullable=False, server_default=func.now()),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)


def row(slot, key, message_id, outcome="applied", kind="step"):
    return {
        "slot": slot, "idempotency_key": key, "message_type": kind, "partition_key": "ü", "message_id": message_id,
        "publish_time": MOMENT, "outcome": outcome,
    }  # fmt: skip


LANES = [
    {"slot": slot, "generation": 1, "state": "active" if slot else "due", "barrier_time_us": slot or None}
    for slot in range(64)
]
NOTE = f"shardctl-letter:{'ab' * 32}"
ROWS = [
    row(1, "mine", "11"),
    row(1, "Mine", "12"),
    row(2, "13", "13"),  # without a key
    row(2, "14", "99", "dead"),  # a copy that a consumer published again, or a key of digits
    row(3, "15", "15", "parked"),
    row(3, "held", "16", "parked"),
    row(3, "other", "17", "parked", "mark"),
    row(4, NOTE, "cd" * 32, "replayed"),
]


def row_of(slot, its_identity, outcome="applied", kind="step", key="ü"):
    return (slot, identity.in_slot(its_identity, slot)), (outcome, identity.key_hash(kind, key))


WANTED = dict(
    [
        row_of(1, identity.of_key("", "step", "mine")),
        row_of(1, identity.of_key("", "step", "Mine")),
        row_of(2, identity.of_message("13")),
        row_of(2, identity.of_key("", "step", "13")),
        row_of(2, identity.of_message("14"), "dead"),
        row_of(2, identity.of_key("", "step", "14"), "dead"),
        row_of(3, identity.of_message("15"), "parked"),
        row_of(3, identity.of_key("", "step", "15")),
        row_of(3, identity.of_key("", "step", "held"), "parked"),
        row_of(3, identity.of_key("", "mark", "other"), "parked", "mark"),
    ]
) | {(4, identity.in_slot(identity.of_note(NOTE), 4)): ("replayed", 0)}


@pytest.fixture(params=PRODUCTS)
def url(request):
    with empty_database(request, request.param) as url:
        yield url


@pytest.fixture
def engine(url):
    """As 0.1.0 left it."""
    made = database.connect(url)
    fill(made)
    yield made
    made.dispose()


def fill(engine, rows=ROWS):
    with database.writing(engine) as connection:
        others = [table for table in schema.metadata.sorted_tables if table.name not in {*OLD.tables, "shardctl_lanes"}]
        schema.metadata.create_all(connection, others)
        OLD.create_all(connection)
        connection.execute(insert(schema.fence).values(id=1, version=1))
        connection.execute(insert(SLOTS), LANES)
        connection.execute(insert(INBOX), rows)
        connection.execute(
            insert(PARKED_KEYS).values(slot=3, partition_key="ü", reason="constraint", detail="taken", released=False)
        )
        for number, key, kind in ((15, "15", "step"), (16, "held", "step"), (17, "other", "mark")):
            connection.execute(
                insert(PARKED).values(
                    slot=3, partition_key="ü", message_type=kind, operation="insert", idempotency_key=key,
                    message_id=str(number), publish_time_us=number, attributes="{}", body=b'{"id":"1","owner":"x"}',
                )
            )  # fmt: skip


def read(engine):
    with database.snapshot(engine) as connection:
        rows = connection.execute(select(schema.inbox)).all()
        parked = connection.execute(select(schema.parked).order_by(schema.parked.c.position)).all()
        keys = connection.execute(select(schema.parked_keys).order_by(schema.parked_keys.c.message_type)).all()
        lanes = connection.execute(select(schema.lanes).order_by(schema.lanes.c.slot)).mappings().all()
    assert lanes == [{**lane, "log": None} for lane in LANES]
    assert [
        (key_row.slot, key_row.message_type, key_row.partition_key, key_row.reason, key_row.detail, key_row.released)
        for key_row in keys
    ] == [(3, kind, "ü", "constraint", "taken", False) for kind in ("mark", "step")]
    assert {row.fingerprint for row in rows} == {None}
    assert {row.published for row in rows} == {int(MOMENT.timestamp()) - schema.PUBLISHED_FROM}
    return {(row.slot, row.identity): (row.outcome, row.key_hash) for row in rows}, [
        (message.idempotency_key, message.identity, message.partition_key) for message in parked
    ]


PARKED_WANTED = [
    ("15", identity.in_slot(identity.of_message("15"), 3), "ü"),
    ("held", identity.in_slot(identity.of_key("", "step", "held"), 3), "ü"),
    ("other", identity.in_slot(identity.of_key("", "mark", "other"), 3), "ü"),
]


def tables(engine):
    upgraded = ("shardctl_inbox", "shardctl_parked", "shardctl_slots", "shardctl_lanes")
    return {name for name in inspect(engine).get_table_names() if name.startswith(upgraded)}


OF_0_1 = {"shardctl_inbox", "shardctl_parked", "shardctl_parked_keys", "shardctl_slots"}
OF_THIS_VERSION = OF_0_1 - {"shardctl_slots"} | {"shardctl_lanes"}


def provision(url):
    fleet = fleet_from(parse(FLEET, "test"))
    return provision_database(fleet, fleet.shards[0], url)


def test_what_0_1_0_recorded_is_known(engine, url):
    step = provision(url)
    assert (step.action, set(step.fields) >= OF_THIS_VERSION) == ("update", True)
    assert read(engine) == (WANTED, PARKED_WANTED)
    assert tables(engine) == OF_THIS_VERSION
    assert provision(url).action == "identical"
    with database.snapshot(engine) as connection:
        assert membership.read(connection) == OWN
    indexes = {
        index["name"] for name in ("shardctl_inbox", "shardctl_parked") for index in inspect(engine).get_indexes(name)
    }
    of_inbox = {"shardctl_inbox_slot", "shardctl_inbox_published"} if engine.dialect.name == "postgresql" else set()
    assert indexes == {"shardctl_parked_by_key", *of_inbox}


def test_a_consumer_takes_old_writes_for_duplicates_and_parks_behind_old_ones(engine, url):
    provision(url)
    shard = Database(url, TYPES)
    delivery = shard.arrive("step", {"id": "9", "owner": "x"}, "x", ident="mine", slot=1)
    delivery.fault = None
    assert shard.settle(delivery).duplicates == 1
    with database.writing(engine) as connection:
        connection.execute(insert(schema.parked).values(**parked_row("new")))
        last = connection.execute(select(schema.parked).order_by(schema.parked.c.position)).all()[-1]
    assert last.idempotency_key == "new"
    shard.close()


def parked_row(key):
    return {
        "slot": 3, "partition_key": "ü", "message_type": "step", "operation": "insert", "idempotency_key": key,
        "identity": identity.of_key("", "step", key), "message_id": "17", "publish_time_us": 17, "attributes": "{}",
        "body": b"{}",
    }  # fmt: skip


@pytest.mark.proof
def test_it_may_be_cut_off_before_any_statement_and_run_again(url, monkeypatch):
    monkeypatch.setattr(upgrade, "ROWS_AT_ONCE", 2)
    engine = database.connect(url)
    cut_at, finished = 1, False
    while not finished:
        with database.writing(engine) as connection:
            for name in tables(engine):
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")
            for table in schema.metadata.sorted_tables:
                table.drop(connection, checkfirst=True)
        fill(engine)
        with _Cut(engine, cut_at) as cut:
            upgrade.begin(engine)
            upgrade.finish(engine)
        finished = not cut.happened
        upgrade.begin(engine)
        upgrade.finish(engine)
        assert read(engine) == (WANTED, PARKED_WANTED), cut_at
        assert tables(engine) == OF_THIS_VERSION, cut_at
        cut_at += 1
    assert cut_at > 20
    engine.dispose()


class _CutOffError(Exception):
    pass


class _Cut:
    """Ends the upgrade before the statement of that number that changes something."""

    def __init__(self, engine, at):
        self._engine, self._at, self._seen, self.happened = engine, at, 0, False

    def __enter__(self):
        event.listen(self._engine, "before_cursor_execute", self._count)
        return self

    def __exit__(self, kind, error, _):
        event.remove(self._engine, "before_cursor_execute", self._count)
        self.happened = isinstance(error, _CutOffError)
        return self.happened

    def _count(self, _connection, _cursor, statement, *_):
        if statement.lstrip().upper().startswith(("INSERT", "DELETE", "ALTER", "CREATE", "DROP", "RENAME", "UPDATE")):
            self._seen += 1
            if self._seen == self._at:
                raise _CutOffError


def test_it_is_refused_while_consumers_of_0_1_0_run(engine, url):
    with database.writing(engine) as connection:
        connection.execute(insert(schema.replicas).values(replica="pod-a", generations="1"))
    with pytest.raises(ProvisionError, match=r"consumers of that version run: pod-a\. Scale them to 0"):
        provision(url)
    assert tables(engine) == OF_0_1
    assert upgrade.is_due(engine)
    with database.writing(engine) as connection:
        connection.execute(update(schema.replicas).values(seen_time=MOMENT))
    provision(url)
    assert not upgrade.is_due(engine)


def test_tables_that_0_1_0_made_again_meanwhile_are_not_taken_for_upgraded(engine, url):
    upgrade.begin(engine)
    with database.writing(engine) as connection:
        schema.inbox.drop(connection)
        INBOX.create(connection)
    with pytest.raises(ProvisionError, match=r"another shardctl_inbox of 0\.1\.0"):
        provision(url)


def test_nothing_keeps_a_name_of_0_1_0_or_of_the_upgrade(postgres_server):
    url = postgres_server.create_database("upgrade_tests")
    engine = database.connect(url)
    fill(engine)
    provision(url)
    with database.snapshot(engine) as connection:
        names = connection.exec_driver_sql("SELECT conname FROM pg_constraint UNION SELECT relname FROM pg_class")
        assert not [name for name in names.scalars() if re.match(r"shardctl_(slots|\w+_new|\w+_0_1)", name)]
    engine.dispose()
    postgres_server.drop_database("upgrade_tests")


def test_an_empty_table_of_lanes_that_0_1_0_made_again_is_dropped_and_one_with_rows_refused(engine, url):
    provision(url)
    with database.writing(engine) as connection:
        SLOTS.create(connection)
    provision(url)
    assert tables(engine) == OF_THIS_VERSION
    with database.writing(engine) as connection:
        SLOTS.create(connection)
        connection.execute(insert(SLOTS), LANES[:1])
    with pytest.raises(ProvisionError, match=r"shardctl_slots, of 0\.1\.0, has rows, and shardctl_lanes is there"):
        provision(url)
    assert tables(engine) == OF_THIS_VERSION | {"shardctl_slots"}
    read(engine)


def test_a_command_that_finds_only_the_old_table_names_the_fix(engine, url):
    provision(url)
    with database.writing(engine) as connection:
        connection.execute(text("ALTER TABLE shardctl_lanes RENAME TO shardctl_slots"))
    fleet = fleet_from(parse(FLEET, "test"))
    do = "run `shardctl provision`"
    parsed = make_url(url)
    reading, dialect = consumers.engine_of(parsed, Batching()), consumers.dialect_of(parsed)
    with pytest.raises(TransientError, match=do):
        Store(reading, dialect, Fence(dialect), SqlSink(dialect, {})).check_tables()
    reading.dispose()
    assert do in verify.verify(fleet, {"s0": engine}).faults[0].what
    _, faults = preflight.look({"s0": engine})
    assert do in faults[0]
    looking = Databases()
    with pytest.raises(database.DatabaseError, match=do):
        looking.look(OWN, url)
    looking.close()
    with pytest.raises(parked.ParkedError, match=do), parked.opened(OWN, url) as connection:
        parked.keys(connection, "s0", "")
    provision(url)
    read(engine)


def test_an_inbox_without_reasons_gets_the_column_beside_consumers(engine, url):
    provision(url)
    with database.writing(engine) as connection:
        # First a row: for DROP COLUMN, SQLite doesn't notice that another session has changed the tables since.
        connection.execute(insert(schema.replicas).values(replica="pod-a", generations="1"))
        connection.execute(text("ALTER TABLE shardctl_inbox DROP COLUMN reason"))
    with engine.connect() as connection:
        assert "no column reason: run `shardctl provision`" in schema.fault_of_version(
            connection, beside_old_inbox=True
        )
    provision(url)
    with engine.connect() as connection:
        assert schema.fault_of_version(connection) is None


@pytest.mark.parametrize("column", ["shardctl_inbox.key_hash", "shardctl_outbox.behind", "shardctl_parked_keys.detail"])
def test_tables_that_were_never_released_are_refused(url, column):
    table, _, name = column.partition(".")
    provision(url)
    engine = database.connect(url)
    with database.writing(engine) as connection:
        connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {name}"))
    engine.dispose()
    with pytest.raises(
        ProvisionError, match=f"^database of shard s0 at .*: there is no column {column}: .* make the database again"
    ):
        provision(url)


def test_a_consumer_does_not_work_with_old_tables_and_says_what_to_do(engine, url):
    parsed = make_url(url)
    reading, dialect = consumers.engine_of(parsed, Batching()), consumers.dialect_of(parsed)
    store = Store(reading, dialect, Fence(dialect), SqlSink(dialect, {}))
    with pytest.raises(TransientError, match=r"its inbox is of shardctl 0\.1\.0: run `shardctl provision`"):
        store.check_tables()
    upgrade.begin(engine)
    store.check_tables()  # from here on it works
    upgrade.finish(engine)
    store.check_tables()
    reading.dispose()


def test_the_tools_say_what_to_do_with_old_tables(engine, url):
    fleet = fleet_from(parse(FLEET, "test"))
    assert "its inbox is of shardctl 0.1.0" in verify.verify(fleet, {"s0": engine}).faults[0].what
    _, faults = preflight.look({"s0": engine})
    assert "shard s0: its inbox is of shardctl 0.1.0: run `shardctl provision`" in faults[0]
    attributes = {
        "slot": "0" * 6, "partition_key": next(k for k in map(str, range(9_999)) if fleet.routing.rule.slot_of(k) == 0),
        "message_type": "step", "idempotency_key": "k",
    }  # fmt: skip
    letter = read_letter(fleet, "shop-dead", Message("1", 1, "", attributes, b"{}"), stray=False)
    for _ in range(2):
        with (
            Inboxes(fleet, {"s0": url}, Allowed()) as inboxes,
            pytest.raises(database.DatabaseError, match="run `shardctl prov"),
        ):
            inboxes.survey([letter])
        upgrade.begin(engine)
    on_their_way = "rows of shardctl 0.1.0 are still on their way into its inbox"
    assert on_their_way in verify.verify(fleet, {"s0": engine}).faults[0].what
    assert on_their_way in preflight.look({"s0": engine})[1][0]


# --- consumers beside the rows that are on their way ---------------------------------------------------------------------


@pytest.fixture
def beside(engine, url):
    """A consumer of this version, while everything is still in the old table."""
    upgrade.begin(engine)
    shard = Database(url, TYPES)
    yield shard
    shard.close()


def of_old_rows(shard):
    """Deliveries of the writes that 0.1.0 recorded, each by what may bring it again."""
    step = {"id": "9", "owner": "x"}
    deliveries = [
        shard.arrive("step", step, "x", ident="mine", slot=1),
        shard.arrive("step", step, "x", ident="Mine", slot=1),
        shard.arrive("step", step, "x", slot=2, **{identity.COPY_OF: "13"}),
        shard.arrive("step", step, "x", ident="13", slot=2),
        shard.arrive("step", step, "x", slot=2, **{identity.COPY_OF: "14"}),
        shard.arrive("step", step, "x", ident="held", slot=3),
    ]
    for delivery in deliveries:
        delivery.fault = None  # their slot isn't their key's
    return deliveries


def others(shard):
    """Writes that look like theirs and aren't."""
    deliveries = [
        shard.arrive("step", {"id": f"o{number}", "owner": "x"}, "x", slot=slot, **what)
        for number, (slot, what) in enumerate(
            (
                (1, {"ident": "MINE"}),
                (2, {"ident": "mine"}),
                (1, {"ident": "mine", "caller": "c"}),
                (1, {"ident": "12"}),
            )
        )
    ]
    for delivery in deliveries:
        delivery.fault = None
    return deliveries


def test_a_consumer_knows_old_writes_wherever_their_rows_are(beside, engine, monkeypatch):
    monkeypatch.setattr(upgrade, "ROWS_AT_ONCE", 1)
    moves = 0

    def look(*_):
        nonlocal moves
        moves += 1
        again = of_old_rows(beside)
        assert beside.settle(*again).duplicates == len(again)
        assert beside.store.known(again) == set(again)

    look()
    new = others(beside)
    assert beside.settle(*new).applied == len(new)
    upgrade.finish(engine, look)
    look()
    assert moves > 5
    assert beside.settle(*others(beside)).duplicates == len(new)
    assert not upgrade.is_due(engine)


def test_a_parked_key_is_released_while_rows_are_on_their_way(beside, engine):
    beside.run("UPDATE shardctl_parked SET attributes = '{}'")
    keys = beside.store.released_keys()
    assert keys == []
    with database.snapshot(engine) as connection:
        rows = connection.execute(select(schema.inbox.c.outcome)).scalars().all()
    assert sorted(rows) == ["applied", "parked", "parked", "parked"]  # nothing but what a release may change has moved


@pytest.mark.parametrize("moved_at", ["before both", "between", "after both"])
def test_a_move_at_any_moment_of_a_consumers_statements_hides_no_row(beside, engine, moved_at):
    """The mover commits before the look into the old table, between it and the insert, or after both."""
    if engine.dialect.name == "sqlite":
        pytest.skip("one transaction writes at a time")
    again = of_old_rows(beside)
    seen = []

    def move(_connection, _cursor, statement, *_):
        what = "old" if "shardctl_inbox_0_1 " in statement.replace('"', " ").replace("`", " ") else "new"
        at = {"before both": "old", "between": "new"}.get(moved_at)
        if "shardctl_inbox" in statement and what == at and "LIMIT 1" not in statement and not seen:
            seen.append(statement)
            for slot in (1, 2, 3):
                old = Table(upgrade.inbox_0_1.NAME, MetaData(), autoload_with=engine)
                upgrade._move_some(engine, old, slot, None)

    event.listen(beside.engine, "before_cursor_execute", move)
    assert beside.settle(*again).duplicates == len(again)
    event.remove(beside.engine, "before_cursor_execute", move)
    assert bool(seen) == (moved_at != "after both")
    upgrade.finish(engine)
    assert beside.settle(*of_old_rows(beside)).duplicates == len(again)


def test_writers_go_on_while_rows_move_and_no_write_is_applied_twice(beside, engine, monkeypatch):
    """Consumers get old and new writes in no order while the mover runs, one row a transaction."""
    monkeypatch.setattr(upgrade, "ROWS_AT_ONCE", 1)
    slots = range(8, 40)
    with database.writing(engine) as connection:
        old = INBOX.to_metadata(MetaData(), name=upgrade.inbox_0_1.NAME)
        connection.execute(insert(old), [row(slot, f"old {n}", f"m{slot}-{n}") for slot in slots for n in range(4)])
    errors, applied = [], []

    def write():
        store = beside.new_store()
        try:
            for slot in slots:
                olds = [arrived(beside, slot, f"{slot}/{n}", f"old {n}") for n in range(4)]
                new = arrived(beside, slot, f"n{slot}", f"new {slot}")
                applied.append(_settled(store, [*olds, new]).applied)
        except Exception as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    upgrade.finish(engine)
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(applied) == len(slots)
    assert not upgrade.is_due(engine)


def arrived(shard, slot, row_id, ident):
    delivery = shard.arrive("step", {"id": row_id, "owner": "x"}, "x", ident=ident, slot=slot)
    delivery.fault = None  # the slot isn't its key's
    return delivery


def _settled(store, deliveries):
    """As the handler does when a batch was blocked."""
    while True:
        try:
            return store.apply(deliveries)
        except TransientError:
            continue
