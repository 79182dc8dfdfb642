"""The outbox on real databases: order by key, nothing lost, nothing doubled in effect, whatever dies or competes."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import orjson
import pytest
from outbox_kit import FLEET, Memory, drain, killed_at, open_database, order, outbox_in, relay_on
from products_kit import PRODUCTS, SERVERS, empty_database
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import Session

from shardctl import InvalidWriteError, Outbox, Write
from shardctl.errors import UsageError
from shardctl.outbox import queue, refusals
from shardctl.outbox.queue import Queue
from shardctl.outbox.row import UNREADABLE
from shardctl.outbox.sending import send
from shardctl.shard import outboxtables
from shardctl.shard.database import DatabaseError

pytestmark = pytest.mark.slow


@pytest.fixture(params=PRODUCTS)
def engine(request):
    yield from opened(request)


@pytest.fixture(params=SERVERS)
def server(request):
    yield from opened(request)


def opened(request):
    with empty_database(request, request.param) as url:
        made = open_database(url)
        yield made
        made.dispose()


def rows(engine):
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM shardctl_outbox")).scalar_one()


def test_a_write_leaves_if_its_transaction_commits(engine):
    application, topics = create_engine(engine.url), Memory()
    outbox = outbox_in(application)
    with Session(application) as session:
        outbox.enqueue(session, order("kept", 1))
        if application.dialect.name != "sqlite":  # whose driver has savepoints of its own mind
            with session.begin_nested() as inner:
                outbox.enqueue(session, order("undone"))
                inner.rollback()
        session.commit()
        outbox.enqueue(session, order("undone"))
        session.rollback()
    with application.begin() as connection:
        keys = outbox.enqueue(
            connection, order("kept", 2), Write("order", {"order_id": "kept"}, idempotency_key="mine")
        )
    assert keys[1] == "mine"
    step = drain(engine, topics)
    assert (step.published, step.waits) == (3, "")
    assert [orjson.loads(body).get("number") for body in topics.once()["kept"]] == [1, 2, None]
    assert list(topics.once()) == ["kept"]
    assert rows(application) == 0
    assert drain(engine, topics).published == 0
    application.dispose()


def test_what_the_fleet_cant_take_is_refused_in_the_transaction(engine):
    outbox = outbox_in(engine)
    with pytest.raises(InvalidWriteError), engine.begin() as connection:
        outbox.enqueue(connection, order("a"), Write("order", {"order_id": "b", "number": "many"}))
    assert rows(engine) == 0


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (Write("order", {"order_id": "a"}, idempotency_key=""), "the idempotency key must have 1 to 255 characters"),
        (Write("order", "text"), "the body must be an object, not str"),
        (Write("order", [("order_id", "a")]), "the body must be an object, not list"),
        (Write("order", None), "the body must be an object, not NoneType"),
    ],
    ids=["empty key", "text", "pairs", "none"],
)
def test_what_is_no_write_is_refused(write, reason):
    with pytest.raises(InvalidWriteError, match=reason):
        Outbox(FLEET).statement(write)


def test_an_engine_has_no_transaction_to_enqueue_in():
    with pytest.raises(UsageError, match="takes a Session or a Connection"):
        Outbox(FLEET).enqueue(create_engine("sqlite://"), order("a"))


def test_a_plain_cursor_stores_the_same(server):
    outbox, topics = outbox_in(server), Memory()
    raw = server.raw_connection()
    with raw.cursor() as cursor:
        cursor.execute(*outbox.statement(order("a", 7)))
    raw.commit()
    raw.close()
    drain(server, topics)
    assert topics.once() == {"a": [b'{"order_id":"a","number":7}']}


def test_an_async_session_stores_in_its_transaction(request):
    pytest.importorskip("greenlet", reason="SQLAlchemy's asyncio needs it")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    with empty_database(request, "postgresql") as url:
        outbox, topics = Outbox(FLEET), Memory()

        async def application():
            database = create_async_engine(url)
            async with database.begin() as connection:
                await connection.run_sync(Outbox.metadata.create_all)
            async with AsyncSession(database) as session, session.begin():
                await session.run_sync(outbox.enqueue, order("a"))
                with pytest.raises(UsageError, match="run_sync"):
                    outbox.enqueue(session, order("b"))
            await database.dispose()

        asyncio.run(application())
        engine = open_database(url)
        assert drain(engine, topics).published == 1  # a migration tool's tables: the turn's row is made
        engine.dispose()


def test_each_key_keeps_the_order_of_commits_while_relays_compete_and_fail(server):
    """Six writers lock a key's row, count it up and enqueue the number, after a pause or a rollback; three relays at once."""
    outbox, dice, keys = outbox_in(server), random.Random(5), [f"k{number}" for number in range(12)]
    topics, stop = Memory(random.Random(6)), threading.Event()
    with server.begin() as connection:
        connection.execute(text("CREATE TABLE counters (name VARCHAR(20) PRIMARY KEY, number INT NOT NULL)"))
        connection.execute(text("INSERT INTO counters VALUES (:name, 0)"), [{"name": key} for key in keys])

    def write(seed):
        dice = random.Random(seed)
        for _ in range(60):
            with server.connect() as connection:
                for key in sorted(dice.sample(keys, dice.randrange(1, 3))):
                    connection.execute(text("UPDATE counters SET number = number + 1 WHERE name = :key"), {"key": key})
                    query = text("SELECT number FROM counters WHERE name = :key")
                    outbox.enqueue(connection, order(key, connection.execute(query, {"key": key}).scalar_one()))
                connection.rollback() if dice.random() < 0.2 else connection.commit()

    def relay(_):
        own = open_database(server.url.render_as_string(hide_password=False))

        async def work():
            made = relay_on(own, topics)
            running = asyncio.create_task(made.run())
            await asyncio.to_thread(stop.wait)
            made.stop()
            await running

        asyncio.run(work())
        own.dispose()

    with ThreadPoolExecutor(9) as threads:
        relays = [threads.submit(relay, number) for number in range(3)]
        try:
            list(threads.map(write, [dice.random() for _ in range(6)]))
        finally:
            stop.set()
        for done in relays:
            done.result()
    drain(server, topics)
    with server.connect() as connection:
        counted = dict(connection.execute(text("SELECT name, number FROM counters")).all())
    published = {key: [orjson.loads(body)["number"] for body in bodies] for key, bodies in topics.once().items()}
    assert published == {key: list(range(1, number + 1)) for key, number in counted.items() if number}
    assert rows(server) == 0


@pytest.mark.proof
@pytest.mark.parametrize("engine", ["postgresql", "mariadb", "sqlite"], indirect=True)
def test_a_relay_may_be_killed_before_and_after_every_step(engine, monkeypatch):
    """At each step of a run that takes two turns; then another relay goes on. No order is broken, and nothing is lost."""
    monkeypatch.setattr(queue, "MAX_ROWS", 2)
    outbox, names, killed, number = outbox_in(engine), ("a", "b"), True, 0
    url = engine.url.render_as_string(hide_password=False)
    while killed:
        topics, number = Memory(), number + 1
        with engine.begin() as connection:
            outbox.enqueue(connection, *(order(name, at) for at in range(2) for name in names))
        engine.dispose()
        killed = killed_at(number, url, topics)
        if killed:
            drain(engine, topics)
        bodies = {key: [orjson.loads(body)["number"] for body in bodies] for key, bodies in topics.once().items()}
        assert bodies == {name: [0, 1] for name in names}, number
        assert rows(engine) == 0
    assert number > 15  # the steps were seen


def test_a_slot_that_waits_holds_up_its_own_rows_alone(engine, monkeypatch):
    monkeypatch.setattr(queue, "MAX_ROWS", 4)  # so that its rows fill every read
    outbox, topics = outbox_in(engine), Memory()
    rule = FLEET.routing.rule
    other = next(name for name in map(str, range(99)) if rule.slot_of(name) != rule.slot_of("down"))
    topics.down = {rule.slot_of("down")}
    with engine.begin() as connection:
        outbox.enqueue(connection, *(order("down", number) for number in range(9)), order(other, 1))
    looks = count(0.0, 0.01).__next__  # a slot's pause is over after some looks, however slow the machine is
    assert drain(engine, topics, 0.5, looks).waits == "1 slots wait for Pub/Sub"
    assert list(topics.once()) == [other]
    topics.down.clear()
    assert drain(engine, topics).published == 9
    assert [orjson.loads(body)["number"] for body in topics.once()["down"]] == list(range(9))


def test_a_refused_write_is_kept_and_the_others_go_on(engine, caplog):
    outbox, topics = outbox_in(engine), Memory(refuses=lambda key: key == "bad")
    with engine.begin() as connection:
        outbox.enqueue(connection, *(order(name, number) for number in range(3) for name in ("good", "bad")))
        connection.execute(
            outboxtables.outbox.insert(),
            [{"slot": 1, "attributes": "[", "body": b""}, {"slot": 1, "attributes": "{}", "body": b""}],
        )
    step = drain(engine, topics)
    assert (step.published, step.refused, step.behind) == (3, 2, 3)
    assert "can't be published: never" in caplog.text
    refused = refusals.listed(engine)
    assert [(row.reason, row.behind) for row in refused] == [("never", 2), (UNREADABLE, 1)]
    assert drain(engine, topics) == drain(engine, topics)  # nothing waits
    assert refusals.drop(engine, [row.position for row in refused if row.reason != "never"]) == 1
    assert drain(engine, topics).refused == 1  # the one behind it
    assert refusals.retry(engine, None) == 2
    drain(engine, fixed := Memory())
    assert [orjson.loads(body)["number"] for body in fixed.once()["bad"]] == [0, 1, 2]


def numbers_of(topics, key):
    return [orjson.loads(body)["number"] for body in topics.once()[key]]


@pytest.mark.parametrize("decide", [refusals.retry, refusals.drop])
def test_later_writes_of_a_refused_ones_key_wait_for_a_decision(engine, decide, monkeypatch):
    monkeypatch.setattr(queue, "MAX_ROWS", 4)  # so that those that are kept would fill every read
    outbox, topics = outbox_in(engine), Memory()
    topics.refuses_row = lambda row: row.attributes["partition_key"] == "bad" and b'"number":0' in row.body
    rule = FLEET.routing.rule
    same = next(name for name in map(str, range(99)) if rule.slot_of(name) == rule.slot_of("bad"))
    with engine.begin() as connection:
        outbox.enqueue(connection, *(order("bad", number) for number in range(6)), order(same, 0))
    assert drain(engine, topics).behind == 5
    with engine.begin() as connection:
        outbox.enqueue(connection, order("bad", 6), order(same, 1))
    assert drain(engine, topics).behind == 1
    assert topics.once().keys() == {same}
    assert numbers_of(topics, same) == [0, 1]
    backlog = Queue(engine).backlog()
    assert (backlog.rows, backlog.behind, backlog.refused) == (6, 6, 1)
    (refused,) = refusals.listed(engine)
    assert refused.behind == 6
    assert refusals.retry(engine, [refused.position]) == 1
    assert drain(engine, topics).behind == 6  # refused once more
    assert decide(engine, [refused.position]) == 1
    drain(engine, fixed := Memory())
    assert numbers_of(fixed, "bad") == list(range(decide is refusals.drop, 7))
    assert rows(engine) == 0


def test_nothing_stays_behind_a_write_that_was_decided_during_a_turn(engine):
    outbox, topics = outbox_in(engine), Memory(refuses=lambda key: True)
    with engine.begin() as connection:
        outbox.enqueue(connection, order("bad", 0))
    drain(engine, topics)
    with engine.begin() as connection:
        outbox.enqueue(connection, order("bad", 1))
    (refused,) = refusals.listed(engine)
    turn = Queue(engine).take()
    other = open_database(engine.url.render_as_string(hide_password=False))
    assert refusals.drop(other, None) == 1
    other.dispose()
    turn.end((), {}, {turn.rows[0].position: refused.position})
    drain(engine, fixed := Memory())
    assert numbers_of(fixed, "bad") == [1]


def test_a_write_that_is_retried_while_a_relay_reads_keeps_its_place(server):
    """Nothing of its key goes before it, before whichever statement of the relay the retry comes."""
    outbox, statement, retried = outbox_in(server), 0, True
    other = open_database(server.url.render_as_string(hide_password=False))
    while retried:
        for number in range(2):
            with server.begin() as connection:
                outbox.enqueue(connection, order("bad", number))
            if not number:
                drain(server, Memory(refuses=lambda key: True))
        statement, left, retried = statement + 1, count(1), False

        def retry(*_, at=statement, left=left):
            nonlocal retried
            if next(left) == at:
                retried = refusals.retry(other, None) == 1

        event.listen(server, "before_cursor_execute", retry)
        turn, topics = Queue(server).take(), Memory()
        event.remove(server, "before_cursor_execute", retry)
        sent = asyncio.run(send(topics, turn.rows, turn.refused))
        turn.end(sent.published, sent.refused, sent.behind)
        refusals.retry(other, None)
        drain(server, topics)
        assert numbers_of(topics, "bad") == [0, 1], statement
    assert statement > 4  # the statements were seen
    other.dispose()


def test_a_row_of_any_size_is_read_beside_others(engine, monkeypatch):
    monkeypatch.setattr(queue, "MAX_BYTES", 100)
    outbox, topics = outbox_in(engine), Memory()
    with engine.begin() as connection:
        outbox.enqueue(connection, order("a", 1), order("x" * 200, 2), order("a", 3))
    assert drain(engine, topics).published == 3
    assert len(topics.once()["a"]) == 2


def test_where_there_is_no_outbox_the_relay_says_what_to_do(engine):
    with pytest.raises(DatabaseError, match="shardctl outbox create"):
        Queue(engine).check()


def test_where_the_outbox_is_of_another_version_the_relay_says_what_to_do(engine):
    outbox_in(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE shardctl_outbox DROP COLUMN behind"))
    what_where_fix = r"^database .*/\w+.*: there is no column shardctl_outbox.behind: .* run `shardctl outbox create`$"
    with pytest.raises(DatabaseError, match=what_where_fix):
        Queue(engine).check()


def test_the_backlog_is_measured_by_the_databases_clock(engine):
    outbox = outbox_in(engine)
    assert Queue(engine).backlog() == queue.Backlog(0, 0.0, 0, 0)
    application = create_engine(engine.url)
    with application.begin() as connection:
        if engine.dialect.name == "mysql":  # an application's session with a time zone of its own
            connection.execute(text("SET time_zone = '-08:00'"))
        outbox.enqueue(connection, order("a"))
    application.dispose()
    backlog = Queue(engine).backlog()
    assert backlog.rows == 1
    assert 0 <= backlog.oldest_seconds < 60


def test_a_standby_takes_over_when_the_one_at_work_ends(server):
    """The first relay has its turn open; the second finds rows, waits, and publishes once the first one's session is gone."""
    outbox, topics = outbox_in(server), Memory()
    with server.begin() as connection:
        outbox.enqueue(connection, order("a"))
    turn = Queue(server).take()
    other = create_engine(server.url)
    other.dispose()
    own = open_database(server.url.render_as_string(hide_password=False))
    standby = Queue(own).take()
    assert turn is not None
    assert len(turn.rows) == 1
    assert standby is not None
    assert standby.rows == ()
    assert drain(own, topics, patience_seconds=0.0).waits == "another relay is at work"
    turn.give_up()
    assert drain(own, topics).published == 1
    own.dispose()
