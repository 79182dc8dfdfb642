"""Custom sinks on real databases: under concurrency, beside SQL types, and with bugs."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from arrival_kit import Database
from products_kit import SERVERS, empty_database
from sqlalchemy import Column, Integer, MetaData, String, Table, exc, insert, select

from consumer.errors import DataFaultError, PermanentError, TransientError
from consumer.sinks.custom import CustomSink
from consumer.sinks.router import Router
from consumer.sinks.sql import SqlSink
from examples import accounts, inventory

pytestmark = pytest.mark.slow
MOVEMENTS = """
  movement: {sink: "examples.inventory:Inventory", routing_key: sku}
  booking: {sink: "examples.accounts:Accounts", routing_key: account}
"""


@pytest.fixture(params=SERVERS)
def shard(request):
    with empty_database(request, request.param) as url, closing(Database(url, MOVEMENTS)) as made:
        inventory.stock.create(made.engine)
        accounts.accounts.create(made.engine)
        yield made


def again(call):
    for _ in range(5_000):
        try:
            return call()
        except TransientError:
            continue
    return pytest.fail("in trouble for ever")


def replicate(shard, stream, seed, *, redelivered=0.3):
    """A replica that works through a stream in batches of its own cut, with no locks and some redeliveries; what it applied."""
    store, dice, at, applied = shard.new_store(), random.Random(seed), 0, []
    while at < len(stream):
        batch = stream[at : at + dice.randrange(1, 25)]
        deliveries = [shard.arrive(*write[:3], ident=write[3]) for write in batch]
        again(lambda: applied.append(shard.settle(*deliveries, store=store).applied))  # noqa: B023
        at += len(batch)
        if dice.random() < redelivered:
            at = max(0, at - dice.randrange(15))
    return sum(applied)


@pytest.mark.parametrize("seed", range(2))
def test_the_stock_never_goes_below_nothing_and_each_movement_counts_once(shard, seed):
    """Three replicas with the same movements at once: which takes fail depends on order alone, so a model knows them."""
    dice, items = random.Random(seed), [f"item{n}" for n in range(5)]
    with shard.engine.begin() as connection:
        connection.execute(insert(inventory.stock), [{"sku": item, "quantity": 10} for item in items])
    stream, left, refused = [], dict.fromkeys(items, 10), set()
    for number in range(300):
        item, quantity = dice.choice(items), dice.randrange(-12, 9)
        stream.append(("movement", {"sku": item, "quantity": quantity}, item, f"m{number}"))
        if left[item] + quantity < 0:
            refused.add(f"m{number}")
        else:
            left[item] += quantity
    with ThreadPoolExecutor(3) as threads:
        applied = sum(threads.map(lambda number: replicate(shard, stream, number), range(3)))
    with shard.engine.connect() as connection:
        assert {row.sku: row.quantity for row in connection.execute(select(inventory.stock))} == left
    assert {ident for ident, how in shard.inbox().items() if how == "dead"} == refused
    assert applied == len(stream) - len(refused)


@pytest.mark.proof
def test_items_that_several_replicas_move_at_once_lose_no_movement(shard):
    """Movements of their own on the same items, as when messages of one item come by different routing keys."""
    items = ["bolt", "nut"]
    with shard.engine.begin() as connection:
        connection.execute(insert(inventory.stock), [{"sku": item, "quantity": 20} for item in items])
    dice, streams, moved = random.Random(9), [], {}
    for replica in range(3):
        stream = [(dice.choice(items), dice.randrange(-9, 9), f"{replica}/{number}") for number in range(150)]
        moved.update({ident: (item, quantity) for item, quantity, ident in stream})
        streams.append(
            [("movement", {"sku": item, "quantity": quantity}, item, ident) for item, quantity, ident in stream]
        )
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda number: replicate(shard, streams[number], number), range(3)))
    left, outcomes = dict.fromkeys(items, 20), shard.inbox()
    assert outcomes.keys() == moved.keys()
    for ident, outcome in outcomes.items():
        if outcome == "applied":
            left[moved[ident][0]] += moved[ident][1]
    assert dict(shard.rows("SELECT sku, quantity FROM stock")) == left
    assert min(left.values()) >= 0


def test_accounts_that_others_change_too_lose_no_booking(shard):
    """Replicas with batches of their own and a program beside them, all on the same versions."""
    names = [f"a{n}" for n in range(4)]
    with shard.engine.begin() as connection:
        connection.execute(insert(accounts.accounts), [{"account": name, "balance": 0, "version": 1} for name in names])
    dice, wanted = random.Random(5), Counter()
    streams = []
    for replica in range(3):
        bookings = [(dice.choice(names), dice.randrange(-9, 10)) for _ in range(120)]
        streams.append(
            [
                ("booking", {"account": name, "amount": amount}, name, f"{replica}/{number}")
                for number, (name, amount) in enumerate(bookings)
            ]
        )
        wanted.update({name: sum(amount for other, amount in bookings if other == name) for name in names})
    with ThreadPoolExecutor(3) as threads:
        applied = sum(threads.map(lambda number: replicate(shard, streams[number], number), range(3)))
    assert applied == 360
    with shard.engine.connect() as connection:
        assert {row.account: row.balance for row in connection.execute(select(accounts.accounts))} == wanted


def test_a_conflict_of_versions_is_tried_again_and_nothing_of_it_stays(shard):
    with shard.engine.begin() as connection:
        connection.execute(insert(accounts.accounts), [{"account": "a", "balance": 0, "version": 1}])
    booking = shard.arrive("booking", {"account": "a", "amount": 5}, "a")
    with shard.engine.connect() as other:
        sink = accounts.Accounts()

        class Overtaken:
            check = sink.check

            def apply(self, connection, writes):
                """Somebody else commits between our read and our write."""

                class Between:
                    def execute(self, statement, *more):
                        if statement.is_update and not other.closed:
                            other.execute(accounts.accounts.update().values(balance=100, version=2))
                            other.commit()
                            other.close()
                        return connection.execute(statement, *more)

                return sink.apply(Between(), writes)

        shard.sink._sinks["booking"]._sink = Overtaken()
        with pytest.raises(TransientError, match="changed by somebody else"):
            shard.store.apply([booking])
        assert shard.inbox() == {}
        assert shard.store.apply([booking]).applied == 1
    assert shard.rows("SELECT balance, version FROM accounts") == [(105, 3)]


# --- beside SQL types, and with bugs --------------------------------------------------------------------------------------

MIXED = """
  row: {table: events, key: id, routing_key: entity, operation: insert, columns: {id: text, entity: text}}
  own: {sink: "examples.inventory:Inventory", routing_key: entity}
"""
EVENTS = Table("own_events", MetaData(), Column("id", String(50), primary_key=True), Column("of", Integer))


class Own:
    """Does what a message says."""

    def check(self, delivery):
        if delivery.message.data == b"fails in check":
            raise KeyError("check")

    def apply(self, connection, writes):
        for write in writes:
            connection.execute(insert(EVENTS).values(id=write.idempotency_key))
            BEHAVIOURS.get(write.message.data.decode(), lambda _: None)(connection)
        return "nothing that is a number"


def fail(error):
    def behave(_):
        raise error

    return behave


BEHAVIOURS = {
    "bug": fail(ZeroDivisionError("a \x00 in it")),
    "data fault": fail(DataFaultError("too_heavy", "half a surrogate pair: \ud800")),
    "never": fail(PermanentError("r" * 200, "…")),
    "no row": lambda connection: connection.execute(select(EVENTS.c.id).where(EVENTS.c.id == "x")).one(),
    "missing parameter": fail(exc.StatementError("a value is required", "", {}, KeyError("x"))),
    "constraint": lambda connection: connection.execute(insert(EVENTS).values(id=None)),
    "again": fail(TransientError("not now")),
    "network": fail(ConnectionRefusedError("no route")),
    "memory": fail(MemoryError()),
    "rollback": lambda connection: connection.rollback(),
    "rollback and on": lambda connection: (connection.rollback(), connection.execute(select(EVENTS.c.id))),
}


@pytest.fixture
def mixed(database_url):
    made = Database(database_url, MIXED)
    kinds = made.config.message_types
    own = CustomSink("my:own", Own(), kinds)
    made.sink = Router({"row": SqlSink(made.dialect, kinds), "own": own}, kinds)
    made.store = made.new_store()
    EVENTS.create(made.engine)
    yield made
    made.close()


def batch_of(mixed, behaviour):
    """One that misbehaves among others, in both sinks."""
    others = [mixed.arrive("own", b"", f"k{n}", ident=f"own{n}") for n in range(6)]
    rows = [mixed.arrive("row", {"id": f"r{n}", "entity": f"k{n}"}, f"k{n}", ident=f"row{n}") for n in range(6)]
    bad = mixed.arrive("own", behaviour.encode(), "k3", ident="bad")
    return [*others[:4], *rows[:3], bad, *others[4:], *rows[3:]], bad


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("bug", "sink_error"),
        ("fails in check", "sink_error"),
        ("data fault", "too_heavy"),
        ("never", "r" * 64),
        ("no row", "sink_error"),
        ("missing parameter", "sink_error"),
        ("constraint", "constraint"),
    ],
)
def test_one_invalid_message_is_found_and_dead_lettered_and_the_others_land(mixed, behaviour, reason):
    batch, bad = batch_of(mixed, behaviour)
    outcome = mixed.settle(*batch)
    assert (outcome.applied, outcome.dead) == (12, 1)
    assert bad.fault.reason == reason
    bad.fault.detail.encode()
    assert len(mixed.rows("SELECT * FROM own_events")) == 6
    assert len(mixed.rows("SELECT * FROM events")) == 6


@pytest.mark.parametrize("behaviour", ["again", "network", "memory", "rollback", "rollback and on"])
def test_trouble_keeps_everything_and_leaves_nothing(mixed, behaviour, monkeypatch):
    """Above all a sink that rolls back: the inbox rows are gone with it, and an ack would lose the batch."""
    batch, _ = batch_of(mixed, behaviour)
    with pytest.raises(TransientError):
        mixed.settle(*batch)
    assert not any(delivery.fault for delivery in batch)
    assert mixed.inbox() == {}
    assert mixed.rows("SELECT * FROM own_events") == []
    monkeypatch.setitem(BEHAVIOURS, behaviour, lambda _: None)
    assert mixed.settle(*batch).applied == 13


@pytest.mark.parametrize("end", ["rollback", "commit", "close"])
def test_a_sink_that_ends_the_transaction_last_of_all_isnt_believed(mixed, end, monkeypatch):
    """Nothing comes after it that could fail, so it would look like a success."""
    monkeypatch.setitem(BEHAVIOURS, "end", lambda connection: getattr(connection, end)())
    with pytest.raises(TransientError, match="ended the transaction" if end != "close" else None):
        mixed.store.apply([mixed.arrive("own", b"end", "k")])


def test_a_lost_connection_under_a_raw_cursor_is_trouble_too(mixed):
    def raw(connection):
        with connection.connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    BEHAVIOURS["raw"] = raw
    batch, _ = batch_of(mixed, "raw")
    with pytest.raises(TransientError):
        mixed.settle(*batch)
    BEHAVIOURS["raw"] = lambda _: None
    assert mixed.settle(*batch).applied == 13
