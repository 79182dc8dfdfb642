"""The store on real databases: exactly once, in order, poison set apart, trouble outlasted."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from decimal import Decimal

import psycopg
import pytest
from consumer_kit import Shard, again_and_then_fine, write
from hypothesis import given, settings
from hypothesis import strategies as st
from products_kit import SERVERS, empty_database
from sqlalchemy import text
from sqlalchemy.exc import NotSupportedError

from consumer.database import sessions
from consumer.errors import PermanentError, TransientError
from shardctl.wire import identity

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def postgres_shard(postgres_server):
    shard = Shard(postgres_server.create_database("store_tests"), statement_timeout=timedelta(seconds=5))
    yield shard
    shard.close()
    postgres_server.drop_database("store_tests")


@pytest.fixture(scope="module")
def mariadb_shard(mariadb_server):
    shard = Shard(mariadb_server.create_database("store_tests"), statement_timeout=timedelta(seconds=5))
    yield shard
    shard.close()
    mariadb_server.drop_database("store_tests")


@pytest.fixture(params=["postgresql", "sqlite", "mariadb"])
def shard(request, tmp_path):
    """Every table, empty. PostgreSQL's and MariaDB's are shared: what a test changes beside rows, it undoes."""
    if request.param == "sqlite":
        shard = Shard(f"sqlite:///{tmp_path}/shard.db")
        yield shard
        shard.close()
    else:
        name = "postgres_shard" if request.param == "postgresql" else "mariadb_shard"
        shard = request.getfixturevalue(name)
        shard.clear()
        yield shard


@pytest.fixture
def fresh_postgres(database_url):
    shard = Shard(database_url)
    yield shard
    shard.close()


@pytest.fixture
def impatient_postgres(database_url):
    """For statements that have to time out: a machine that is busy for a second ends transactions of others, too."""
    shard = Shard(database_url, statement_timeout=timedelta(seconds=1))
    yield shard
    shard.close()


def customer(number, operation="upsert", **columns):
    ident = columns.pop("ident", None)
    return write("customer", {"customer_id": str(number), **columns}, operation, ident=ident)


def names(shard):
    return dict(shard.rows("SELECT customer_id, name FROM customers"))


# --- exactly once -----------------------------------------------------------------------------------------------------


def test_a_batch_that_comes_twice_counts_once(shard):
    batch = [customer(number, "insert", name="x") for number in range(10)]
    first, second = shard.store.apply(batch), shard.store.apply(batch)
    assert (first.applied, first.duplicates) == (10, 0)
    assert (second.applied, second.duplicates) == (0, 10)
    assert len(shard.table("customer")) == 10


def test_overlapping_batches_count_each_message_once(shard):
    batch = [customer(number, "insert") for number in range(9)]
    shard.store.apply(batch[:6])
    outcome = shard.store.apply(batch[3:])
    assert (outcome.applied, outcome.duplicates) == (3, 3)


def test_of_one_write_twice_in_a_batch_the_first_counts(shard):
    outcome = shard.store.apply([customer(1, name="first", ident="k"), customer(1, name="first", ident="k")])
    assert (outcome.applied, outcome.duplicates) == (1, 1)
    assert names(shard) == {"1": "first"}


def test_one_idempotency_key_in_two_slots_counts_in_each(shard):
    shard.store.apply([customer(1, ident="k"), customer(2, ident="k")])
    assert len(shard.table("customer")) == 2


def test_two_replicas_with_the_same_messages_apply_each_once(shard):
    """Both at once, in overlapping batches of their own cut, as after a lost lease."""
    dice = random.Random(7)
    stream = [customer(dice.randrange(8), dice.choice(["upsert", "upsert", "delete"]), name=str(n)) for n in range(300)]
    expected = {}
    for delivery in stream:
        if delivery.operation == "delete":
            expected.pop(delivery.partition_key, None)
        else:
            expected[delivery.partition_key] = delivery.body["name"]

    def work(seed):
        store, cut = shard.new_store(), random.Random(seed)
        at, applied = 0, 0
        while at < len(stream):
            batch = stream[at : at + cut.randrange(1, 40)]
            for _ in range(200):
                try:
                    applied += store.apply(batch).applied
                    break
                except TransientError:
                    continue
            else:
                pytest.fail("a deadlock for ever")
            at += len(batch)
        return applied

    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(work, (1, 2))) == 300
    assert names(shard) == expected


# --- the fence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("UPDATE shardctl_lanes SET state = 'due' WHERE slot = {slot}", id="due"),
        pytest.param("UPDATE shardctl_lanes SET generation = 2 WHERE slot = {slot}", id="another generation"),
        pytest.param("DELETE FROM shardctl_lanes WHERE slot = {slot}", id="unknown"),
    ],
)
def test_a_slot_that_isnt_active_here_is_kept_and_leaves_no_trace(shard, change):
    mine, others = customer(1, name="mine"), customer(2, name="other")
    shard.store.apply([customer(2, name="before")])
    before = shard.rows("SELECT * FROM shardctl_lanes")
    shard.run(change.format(slot=mine.slot))
    shard.run("UPDATE shardctl_fence SET version = version + 1")
    try:
        outcome = shard.store.apply([mine, others])
        assert outcome.held == (mine,)
        assert outcome.applied == 1
        assert names(shard) == {"2": "other"}
        assert mine.idempotency_key not in dict(shard.inbox())
    finally:
        shard.run("DELETE FROM shardctl_lanes")
        for slot, generation, state, *_ in before:
            shard.run(f"INSERT INTO shardctl_lanes (slot, generation, state) VALUES ({slot}, {generation}, '{state}')")
        shard.run("UPDATE shardctl_fence SET version = version + 1")
    assert shard.store.apply([mine]).applied == 1


def test_a_change_of_slots_waits_for_the_writes_under_way(fresh_postgres):
    """The fence taken alone isn't had while a transaction shares it, so a slot can't leave under a write."""
    shard = fresh_postgres
    with shard.engine.connect() as reader, reader.begin():
        shard.store._fence.share(reader)
        with psycopg.connect(shard.url.set(drivername="postgresql").render_as_string(False), autocommit=True) as mover:
            mover.execute("SET lock_timeout = '50ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                mover.execute("UPDATE shardctl_fence SET version = version + 1")


# --- poison -----------------------------------------------------------------------------------------------------------


FAULTS = {
    "not null": {"name": None},
    "too long": {"name": "sixsix"},
    "check": {"credit": -1},
    "overflow": {"credit": 1_000},
    "unique": {"email": "taken"},
    "raise in a trigger": {"name": "raise"},
    "an error code of the user's own": {"name": "own"},
    "no_data_found in a trigger": {"name": "none"},
}


@pytest.mark.parametrize("how_many", [1, 3])
@pytest.mark.parametrize("fault", [pytest.param(columns, id=name) for name, columns in FAULTS.items()])
def test_the_search_finds_exactly_the_poison(constrained, fault, how_many):
    shard = constrained
    shard.clear()
    shard.store.apply([customer(1000, name="x", email="taken")])
    good = [customer(number, name="ok", email=str(number), credit=1) for number in range(20)]
    bad = [customer(100 + n, **{"name": "ok", "email": f"b{n}", "credit": 1, **fault}) for n in range(how_many)]
    batch = list(good)
    for at, delivery in zip((3, 11, 22), bad, strict=False):
        batch.insert(at, delivery)
    outcome = shard.store.apply(batch)
    assert set(outcome.poison) == set(bad)
    assert len(shard.table("customer")) == 1  # nothing is committed while poison is found
    assert all(isinstance(delivery.fault, PermanentError) for delivery in bad)
    outcome = shard.settle(*batch)
    assert (outcome.applied, outcome.dead, outcome.poison) == (20, how_many, ())
    assert len(shard.table("customer")) == 21
    assert sorted(key for key, how in shard.inbox() if how == "dead") == sorted(
        delivery.idempotency_key for delivery in bad
    )


CONSTRAINTS = {
    "postgresql": (
        "DROP TABLE customers",
        "DROP TABLE profiles",
        (
            "CREATE TABLE customers (customer_id text PRIMARY KEY, name varchar(5) NOT NULL, email text UNIQUE, "
            "credit numeric(4,2) CHECK (credit >= 0), slot integer)"
        ),
        (
            "CREATE TABLE profiles (customer_id text PRIMARY KEY REFERENCES customers DEFERRABLE INITIALLY DEFERRED, "
            "bio text, slot integer)"
        ),
        (
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF new.name = 'raise' THEN RAISE 'not that name'; END IF; "
            "IF new.name = 'own' THEN RAISE 'own code' USING ERRCODE = '45000'; END IF; "
            "IF new.name = 'none' THEN RAISE no_data_found; END IF; RETURN new; END $$"
        ),
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION refuse()",
    ),
    "mysql": (
        "DROP TABLE customers",
        "DROP TABLE profiles",
        (
            "CREATE TABLE customers (customer_id varchar(50) COLLATE utf8mb4_bin PRIMARY KEY, name varchar(5) NOT NULL, "
            "email varchar(50) UNIQUE, credit decimal(4,2) CHECK (credit >= 0), slot integer)"
        ),
        (
            "CREATE TABLE profiles (customer_id varchar(50) COLLATE utf8mb4_bin PRIMARY KEY, bio text, slot integer, "
            "FOREIGN KEY (customer_id) REFERENCES customers (customer_id) ON DELETE CASCADE)"
        ),
        *(
            f"CREATE TRIGGER refuse_{event} BEFORE {event} ON customers FOR EACH ROW BEGIN "
            "IF new.name = 'raise' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not that name'; END IF; "
            "IF new.name = 'own' THEN SIGNAL SQLSTATE '45001' SET MYSQL_ERRNO = 31001; END IF; "
            "IF new.name = 'none' THEN SIGNAL SQLSTATE '02001'; END IF; END"
            for event in ("INSERT", "UPDATE")
        ),
    ),
}


@pytest.fixture(scope="module", params=SERVERS)
def constrained(request):
    with empty_database(request, request.param) as url, closing(Shard(url)) as shard:
        for statement in CONSTRAINTS[shard.url.get_backend_name()]:
            shard.run(statement)
        yield shard


def test_a_foreign_key_violation_is_attributed_to_its_message_even_if_deferred_to_the_commit(constrained):
    shard = constrained
    shard.clear()
    good = [customer(number, name="ok") for number in range(5)]
    orphan = write("profile", {"customer_id": "nobody", "bio": "x"})
    outcome = shard.store.apply([*good[:3], orphan, *good[3:]])
    assert outcome.poison == (orphan,)
    assert shard.settle(*good[:3], orphan, *good[3:]).applied == 5


@pytest.mark.parametrize(
    ("before", "poison", "reason"),
    [
        pytest.param([], customer(1, "update", name="x"), "no_row", id="update of no row"),
        pytest.param([customer(1, "insert")], customer(1, "insert"), "constraint", id="second insert"),
    ],
)
def test_faults_that_every_database_knows(shard, before, poison, reason):
    poison.fault = None  # parameters are made once, and shared by both databases
    for number, delivery in enumerate((*before, poison)):
        delivery.identity = identity.in_slot(identity.of_message(f"k{number}"), delivery.slot)
    others = [customer(number, "insert") for number in range(10, 15)]
    batch = [*others[:2], *before, poison, *others[2:]]
    assert shard.store.apply(batch).poison == (poison,)
    assert poison.fault.reason == reason
    assert shard.settle(*batch).applied == len(batch) - 1


def test_order_holds_around_poison(shard):
    writes = [
        customer(1, "upsert", name="first"),
        customer(1, "insert", name="poison"),
        customer(1, "update", name="second"),
        customer(2, "update", name="poison"),
        customer(2, "insert", name="third"),
    ]
    outcome = shard.settle(*writes)
    assert (outcome.applied, outcome.dead) == (3, 2)
    assert names(shard) == {"1": "second", "2": "third"}


def test_a_key_too_long_to_index_is_the_datas_fault(shard):
    """PostgreSQL calls it a limit of the program; tried again for ever it would stop the whole shard."""
    dice = random.Random(3)
    huge = customer("".join(chr(dice.randrange(0x4E00, 0x9FFF)) for _ in range(9_000)))
    outcome = shard.settle(huge, customer(1))
    assert ("1", None) in names(shard).items()
    if shard.url.get_backend_name() != "sqlite":
        assert outcome.dead == 1


def test_attributes_of_a_dead_message_never_stop_its_record(shard):
    """Its type and its key are the producer's own text, and may hold what no text column can."""
    dead = customer(1)
    dead.message_type, dead.partition_key = "a\x00b" * 200, "k\x00"
    dead.fault = PermanentError("unknown_type", "…")
    assert shard.settle(dead, customer(2)).applied == 1
    assert (dead.idempotency_key, "dead") in shard.inbox()


def test_when_no_single_message_is_to_blame_everything_is_kept(shard):
    if shard.url.get_backend_name() != "sqlite":
        pytest.skip("SQLite alone has constraints that nobody can ask before the commit")
    shard.run("CREATE TABLE known (id text PRIMARY KEY)")
    shard.run("DROP TABLE profiles")
    shard.run(
        "CREATE TABLE profiles (customer_id text PRIMARY KEY REFERENCES known DEFERRABLE INITIALLY DEFERRED, "
        "bio text, slot integer)"
    )
    with pytest.raises(TransientError):
        shard.store.apply([write("profile", {"customer_id": "1", "bio": "x"})])


# --- hostile content --------------------------------------------------------------------------------------------------

HOSTILE = {
    "quotes": 'it\'s "quoted" `so` $$x$$',
    "percent": "100% %s %(name)s %%",
    "placeholders": "? :name {0} $1",
    "backslashes": "\\ \\n \\u0041 \\\\",
    "injection": "'); DROP TABLE customers; --",
    "emoji": "🦆👩‍👩‍👧 ﷽",
    "controls": "\t\n\r\x01\x7f",
    "whitespace": "  both ends  ",
    "1 MB": "x" * 1_000_000,
    "empty": "",
    "combining": "e\u0301\u200b\u202e",
}


@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in HOSTILE.items()])
def test_text_arrives_as_it_was_sent(shard, value):
    shard.settle(write("customer", {"customer_id": "1", "name": value, "email": value[:50]}))
    assert shard.rows("SELECT name, email FROM customers") == [(value, value[:50])]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        pytest.param(b' \t\r\n{"customer_id": "1", "name": "x"} \n', "x", id="blanks around"),
        pytest.param(b'{"customer_id": "1", "n\\u0061me": "x"}', "x", id="a name in escapes"),
        pytest.param(b'{"customer_id": "1", "name": "\\ud83e\\udd86"}', "🦆", id="surrogate pair"),
        pytest.param(b'{"customer_id": "1", "name": "\\\\u0000"}', "\\u0000", id="escaped backslash"),
        pytest.param(b'{"customer_id": "1", "name": null}', None, id="null"),
    ],
)
def test_json_is_read_alike_by_us_and_by_the_database(shard, data, name):
    shard.settle(write("customer", data))
    assert names(shard) == {"1": name}


def test_reserved_words_are_names_like_others(shard):
    body = {
        "select": "1",
        "user": "u",
        "group": 5,
        "from": {"a": [1, None]},
        "t": "t",
        "r": "r",
        "excluded": "e",
        "value": "v",
    }
    for operation in ("insert", "upsert", "update"):
        shard.settle(write("reserved", body | {"user": operation}, operation))
    user, group, order = map(shard.dialect.quote, ("user", "group", "order"))
    assert shard.rows(f"SELECT {user}, {group}, t, r, excluded, value FROM {order}") == [
        ("update", 5, "t", "r", "e", "v")
    ]
    shard.settle(write("reserved", {"select": "1"}, "delete"))
    assert shard.table("reserved") == []


def test_a_table_of_another_schema(fresh_postgres):
    shard = fresh_postgres
    shard.run("CREATE SCHEMA sales")
    shard.run("ALTER TABLE customers SET SCHEMA sales")
    kind = shard.config.message_types["customer"]
    shard.store._sink._kinds = {
        **shard.config.message_types,
        "customer": kind.model_copy(update={"table": "sales.customers"}),
    }
    shard.settle(customer(1, name="x"), customer(1, "update", name="y"), customer(2, "insert"), customer(2, "delete"))
    assert shard.rows("SELECT customer_id, name FROM sales.customers") == [("1", "y")]


def test_every_type_arrives_and_leaves_again(shard):
    body = (
        b'{"Id": 9223372036854775807, "aText": "k", "anInteger": -0, "aNumber": 1.5e300, "aDecimal": 12.50, '
        b'"aBoolean": true, "aTime": "2026-01-02T03:04:05.123456+05:30", "aJson": {"deep": [1, {"x": "\\u00e9"}]}}'
    )
    outcome = shard.settle(write("mixed", body))
    assert outcome.applied == 1
    quote, columns = shard.dialect.quote, ("Id", "anInteger", "aNumber", "aBoolean", "aDecimal", "aTime", "aJson")
    row = shard.rows(f"SELECT {', '.join(map(quote, columns))} FROM {quote('Everything')}")[0]
    assert row[:4] == (9223372036854775807, 0, 1.5e300, 1)
    assert row[4] == Decimal("12.50")
    assert str(row[5]).startswith("2026-01-01 21:34:05.123456")
    document = row[6]
    assert (json.loads(document) if isinstance(document, str) else document) == {"deep": [1, {"x": "é"}]}


@pytest.mark.parametrize(
    "digits",
    [
        "0.1234567890123456789012345678901234567890",
        "123456789012345678901234567890.5",
        "1e400",
        "-0.00",
        "100000000000000000000",
    ],
)
def test_decimals_keep_every_digit_on_postgresql(postgres_shard, digits):
    postgres_shard.clear()
    written = digits if "e" not in digits else f'"{digits}"'
    postgres_shard.settle(write("mixed", b'{"Id": 1, "aText": "k", "aDecimal": %s}' % written.encode()))
    stored = postgres_shard.rows('SELECT CAST("aDecimal" AS text) FROM "Everything"')[0][0]
    assert stored == {"-0.00": "0.00", "1e400": "1" + "0" * 400}.get(digits, digits)


def test_json_as_deep_as_we_read_it_doesnt_stop_the_shard(shard):
    deep = b'{"Id": 1, "aText": "k", "aJson": ' + b"[" * 1_000 + b"]" * 1_000 + b"}"
    outcome = shard.settle(write("mixed", deep), customer(1))
    assert outcome.applied + outcome.dead == 2
    assert len(shard.table("customer")) == 1


def test_two_spellings_of_one_timestamp_key_update_one_row_in_order(shard):
    at = ["2026-01-01T08:00:00Z", "2026-01-01T10:00:00+02:00"]
    shard.settle(write("reading", {"sensor": "s", "at": at[0], "value": 1}, "insert"))
    shard.settle(*(write("reading", {"sensor": "s", "at": at[n % 2], "value": n}, "update") for n in range(6)))
    assert shard.rows("SELECT value FROM readings") == [(5.0,)]


def test_keys_that_only_the_database_takes_for_one_are_updated_in_order(fresh_postgres):
    """A collation that ignores case: of two updates in one statement PostgreSQL would apply any."""
    shard = fresh_postgres
    try:
        shard.run("CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    except NotSupportedError:
        pytest.skip("this PostgreSQL is built without ICU")
    shard.run("ALTER TABLE customers ALTER customer_id TYPE text COLLATE nocase")
    shard.settle(customer("A", "insert"))
    for round_number in range(4):
        batch = [customer("aA"[n % 2], "update", name=f"{round_number}-{n}") for n in range(2)]
        assert shard.settle(*batch).dead == 0
        assert set(names(shard).values()) == {f"{round_number}-1"}


KEYS = st.sampled_from(["1", "2", "3"])
OPERATIONS = st.sampled_from(["insert", "upsert", "update", "delete"])
STEPS = st.lists(
    st.tuples(OPERATIONS, KEYS, st.sampled_from(["name", "email"]), st.integers(0, 9)), min_size=1, max_size=25
)


@pytest.fixture(scope="module", params=["postgres_shard", "mariadb_shard"])
def served_shard(request):
    return request.getfixturevalue(request.param)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(steps=STEPS, versioned=st.booleans())
def test_a_batch_does_on_a_server_what_its_writes_do_one_after_the_other(served_shard, steps, versioned):
    def make():
        if versioned:
            return [write("document", {"id": key, "title": column, "revision": n}, op) for op, key, column, n in steps]
        return [write("customer", {"customer_id": key, column: str(n)}, op) for op, key, column, n in steps]

    results = []
    for at_once in (False, True):
        served_shard.clear()
        writes = make()
        for batch in [writes] if at_once else [[delivery] for delivery in writes]:
            served_shard.settle(*batch)
        results.append(
            (
                [delivery.fault is not None for delivery in writes],
                served_shard.table("document" if versioned else "customer"),
            )
        )
    assert results[0] == results[1]


# --- trouble ----------------------------------------------------------------------------------------------------------


def as_postgres(shard):
    return psycopg.connect(shard.url.set(drivername="postgresql").render_as_string(False), autocommit=True)


def test_nobody_listens(fresh_postgres):
    good = fresh_postgres.store._engine
    fresh_postgres.store._engine = sessions.engine_of(fresh_postgres.url.set(port=1), fresh_postgres.config.consumer)
    again_and_then_fine(fresh_postgres, lambda: setattr(fresh_postgres.store, "_engine", good))


def test_a_session_killed_in_the_middle_of_its_transaction(fresh_postgres):
    shard = fresh_postgres
    with as_postgres(shard) as other:
        blocker = shard.engine.connect()
        blocker.execute(text("LOCK TABLE customers"))
        failure = []

        def work():
            try:
                shard.store.apply([customer(1, "insert", ident="killed")])
            except TransientError as error:
                failure.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(500):
            done = other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND wait_event_type = 'Lock'"
            ).rowcount
            if done:
                break
        thread.join()
        blocker.close()
    assert failure
    assert shard.store.apply([customer(1, "insert", ident="killed")]).applied == 1


def test_a_statement_that_takes_too_long(impatient_postgres):
    blocker = as_postgres(impatient_postgres)
    blocker.execute("BEGIN")
    blocker.execute("LOCK TABLE customers")
    again_and_then_fine(impatient_postgres, blocker.close)


def test_a_lock_that_isnt_had_in_time(impatient_postgres):
    shard = impatient_postgres
    shard.run("ALTER DATABASE " + shard.url.database + " SET lock_timeout = '20ms'")
    shard.engine.dispose()
    blocker = as_postgres(shard)
    blocker.execute("BEGIN")
    blocker.execute("UPDATE shardctl_fence SET version = version + 1")
    again_and_then_fine(shard, blocker.close)


def test_a_missing_fence(shard):
    version = shard.rows("SELECT version FROM shardctl_fence")[0][0]
    shard.run("DELETE FROM shardctl_fence")
    again_and_then_fine(shard, lambda: shard.run(f"INSERT INTO shardctl_fence VALUES (1, {version})"))


def test_a_database_that_only_reads(fresh_postgres):
    shard = fresh_postgres
    name = shard.url.database
    shard.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    shard.engine.dispose()

    def writable():
        with as_postgres(shard) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        shard.engine.dispose()

    again_and_then_fine(shard, writable)


def test_no_connection_left(fresh_postgres):
    shard = fresh_postgres
    with as_postgres(shard) as keeper:
        keeper.execute(f"CREATE ROLE few LOGIN CONNECTION LIMIT 0 PASSWORD '{shard.url.password}'")
        keeper.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO few")
        good = shard.store._engine
        shard.store._engine = sessions.engine_of(shard.url.set(username="few"), shard.config.consumer)
        again_and_then_fine(shard, lambda: setattr(shard.store, "_engine", good))
        keeper.execute("DROP OWNED BY few")
        keeper.execute("DROP ROLE few")


def test_a_deadlock_with_somebody_else(fresh_postgres):
    shard = fresh_postgres
    shard.settle(customer(1), customer(2))
    with as_postgres(shard) as other:
        other.execute("SET deadlock_timeout = '10s'")  # so that ours is the one that notices
        other.execute("BEGIN")
        other.execute("UPDATE customers SET name = 'theirs' WHERE customer_id = '2'")
        failure = []

        def work():
            try:
                shard.store.apply([customer(1, "update", name="a"), customer(2, "update", email="b")])
            except TransientError as error:
                failure.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        with as_postgres(shard) as watcher:
            for _ in range(2_000):
                waits = watcher.execute(
                    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                ).rowcount
                if waits:
                    break
        other.execute("UPDATE customers SET name = 'theirs' WHERE customer_id = '1'")
        other.execute("COMMIT")
        thread.join()
    assert failure
    assert shard.settle(customer(1, "update", name="a"), customer(2, "update", email="b")).dead == 0


def test_sqlite_held_by_another_writer(tmp_path):
    shard = Shard(f"sqlite:///{tmp_path}/shard.db", statement_timeout=timedelta(milliseconds=50))
    blocker = shard.engine.raw_connection()
    blocker.execute("BEGIN IMMEDIATE")
    again_and_then_fine(shard, lambda: blocker.execute("ROLLBACK") and blocker.close())
    shard.close()


# --- what an operator repairs ------------------------------------------------------------------------------------------


def waits_for_an_operator(shard, what, repair):
    """Every write is kept while the fault lasts, none is dead-lettered, and all are applied once it is repaired."""
    batch = [customer(number, name="x") for number in range(20)]
    with pytest.raises(TransientError, match=what):
        shard.store.apply(batch)
    assert not any(write.fault for write in batch)
    assert shard.inbox() == []
    repair()
    assert shard.settle(*batch).applied == 20


def test_a_sequence_at_its_end_is_no_writes_fault(fresh_postgres):
    fresh_postgres.run("CREATE SEQUENCE numbers MAXVALUE 5")
    fresh_postgres.run("ALTER TABLE customers ADD number bigint DEFAULT nextval('numbers')")
    repair = "ALTER SEQUENCE numbers MAXVALUE 1000000"
    waits_for_an_operator(fresh_postgres, "a sequence is at its end", lambda: fresh_postgres.run(repair))


def test_a_partition_that_is_missing_is_no_writes_fault(fresh_postgres):
    fresh_postgres.run("DROP TABLE customers")
    fresh_postgres.run(
        "CREATE TABLE customers (customer_id text PRIMARY KEY, name text, email text, credit bigint, slot integer) "
        "PARTITION BY RANGE (customer_id)"
    )
    repair = "CREATE TABLE all_customers PARTITION OF customers DEFAULT"
    waits_for_an_operator(fresh_postgres, "no partition takes the row", lambda: fresh_postgres.run(repair))


def test_a_check_and_a_trigger_that_refuse_a_row_are_that_writes_fault(fresh_postgres):
    fresh_postgres.run("ALTER TABLE customers ADD CONSTRAINT solvent CHECK (credit >= 0)")
    fresh_postgres.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.name = 'bad' THEN RAISE check_violation; END IF; RETURN NEW; END $$"
    )
    fresh_postgres.run("CREATE TRIGGER t BEFORE INSERT ON customers FOR EACH ROW EXECUTE FUNCTION refuse()")
    batch = [customer(1, name="x"), customer(2, credit=-1), customer(3, name="bad")]
    outcome = fresh_postgres.settle(*batch)
    assert (outcome.applied, outcome.dead) == (1, 2)


def test_a_value_that_a_message_leaves_out_is_its_fault(fresh_postgres):
    fresh_postgres.run("ALTER TABLE customers ALTER name SET NOT NULL")
    outcome = fresh_postgres.settle(customer(1, name="x"), customer(2))
    assert (outcome.applied, outcome.dead) == (1, 1)
