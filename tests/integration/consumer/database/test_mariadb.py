"""Where MySQL and MariaDB would go their own way: silently folded keys, cut values, overwritten rows."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import pymysql
import pytest
from consumer_kit import FLEET, Shard, again_and_then_fine, write
from patience import PATIENCE_SECONDS

from consumer.database import sessions
from consumer.errors import TransientError
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local.servers.process import wait_until
from shardctl.provision import provision_database
from shardctl.shard import database as control
from shardctl.shard import engine, schema

pytestmark = pytest.mark.slow

ALIKE = ("a", "A", "ä", "Ä", "à", "ß", "ss", "a\u0308", "a\t")  # to one collation or another


@pytest.fixture(scope="module")
def mariadb_shard(mariadb_server):
    shard = Shard(mariadb_server.create_database("mariadb_tests"), statement_timeout=timedelta(seconds=5))
    yield shard
    shard.close()
    mariadb_server.drop_database("mariadb_tests")


@pytest.fixture
def shard(mariadb_shard):
    """Every table, empty."""
    mariadb_shard.clear()
    return mariadb_shard


@pytest.fixture
def fresh(mariadb_server):
    """A database that is this test's alone, in a character set that holds no emoji."""
    with own_database(mariadb_server) as shard:
        yield shard


@pytest.fixture
def impatient(mariadb_server):
    """The same, for writes that have to fail within a second."""
    with own_database(mariadb_server, statement_timeout=timedelta(seconds=1)) as shard:
        yield shard


@contextmanager
def own_database(server, **consumer):
    name = f"fresh_{uuid4().hex}"
    server._execute(f"CREATE DATABASE {name} CHARACTER SET latin1")
    shard = Shard(server.url(name), **consumer)
    yield shard
    shard.close()
    server.drop_database(name)


def admin(shard):
    """A session beside the consumer's, each statement a transaction."""
    return closing(
        pymysql.connect(
            host=shard.url.host,
            port=shard.url.port,
            user=shard.url.username,
            password=shard.url.password,
            database=shard.url.database,
            autocommit=True,
        )
    )


def ask(connection, statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def customer(key, operation="upsert", **columns):
    ident = columns.pop("ident", None)
    return write("customer", {"customer_id": str(key), **columns}, operation, ident=ident)


def names(shard):
    rows = shard.rows("SELECT CONVERT(customer_id USING utf8mb4), CONVERT(name USING utf8mb4) FROM customers")
    return dict(rows)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_that_look_alike_are_rows_of_their_own(shard):
    shard.settle(*(customer(key, "insert", name=key) for key in ALIKE))
    shard.settle(*(customer(key, "update", email=key) for key in ALIKE), customer("A", "delete"))
    kept = {(key, key, key) for key in ALIKE if key != "A"}
    assert set(shard.rows("SELECT customer_id, name, email FROM customers")) == kept


def test_idempotency_keys_that_look_alike_are_messages_of_their_own(shard):
    idents = (*ALIKE, "a ", "a  ", " a", "\N{DUCK}", "k" * 255, "\N{DUCK}" * 255)
    batch = [customer("1", "upsert", name=ident, ident=ident) for ident in idents]
    assert shard.store.apply(batch).applied == len(idents)
    assert [key for key, _ in shard.inbox()] == sorted(idents)
    assert shard.store.apply(batch).duplicates == len(idents)
    assert shard.store.known(batch) == set(batch)


def test_parked_keys_that_look_alike_are_keys_of_their_own(shard):
    with shard.engine.begin() as connection:
        row = {"slot": 1, "message_type": "customer", "reason": "", "detail": "", "released": False}
        keys = (*ALIKE, "a ")
        connection.execute(schema.parked_keys.insert(), [row | {"partition_key": key} for key in keys])
        keys_read = set(connection.execute(schema.parked_keys.select()).scalars("partition_key"))
        connection.execute(schema.parked_keys.delete())
    assert keys_read == set(keys)


@pytest.mark.parametrize("operation", ["insert", "upsert", "update"])
def test_a_key_that_the_table_pads_to_another_never_touches_that_ones_row(shard, operation):
    shard.settle(customer("a", name="first"))
    assert shard.settle(customer("a ", operation, name="second")).dead == 1
    shard.settle(customer("a ", "delete"))
    assert names(shard) == {"a": "first"}


@pytest.mark.parametrize(
    "collation", ["utf8mb4_general_ci", "utf8mb4_unicode_520_ci", "utf8mb4_nopad_bin", "binary", "latin1_swedish_ci"]
)
def test_whatever_the_collation_of_a_table_one_key_never_touches_anothers_row(fresh, collation):
    charset = collation.partition("_")[0]
    fresh.run(f"ALTER TABLE customers CONVERT TO CHARACTER SET {charset} COLLATE {collation}")
    fresh.settle(customer("a", name="first"), customer("ä", name="other"))
    before = names(fresh)
    assert before["a"] == "first"
    for alike in ("A", "a ", "ä "):
        fresh.settle(*(customer(alike, operation, name="second") for operation in ("insert", "upsert", "update")))
        assert names(fresh) | before == names(fresh)
        fresh.settle(customer(alike, "delete"))
        assert names(fresh) == before
    fresh.settle(*(customer(key, "update", name="new") for key in before))
    assert names(fresh) == dict.fromkeys(before, "new")


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
def test_an_upsert_that_meets_another_rows_unique_value_is_a_fault_and_overwrites_nothing(fresh, there):
    """As `ON DUPLICATE KEY UPDATE` would."""
    fresh.run("ALTER TABLE customers MODIFY email varchar(100), ADD UNIQUE (email)")
    fresh.settle(customer(1, name="mine", email="taken"), *([customer(2, name="theirs")] if there else []))
    poison = customer(2, name="thief", email="taken")
    outcome = fresh.store.apply([customer(3, name="good"), poison])
    assert outcome.poison == (poison,)
    assert poison.fault.reason == "constraint"
    assert fresh.settle(customer(3, name="good"), poison).dead == 1
    assert names(fresh) == {"1": "mine", "3": "good"} | ({"2": "theirs"} if there else {})


def test_versions_that_are_null_in_the_table_are_the_oldest(shard):
    shard.run("INSERT INTO documents (id, title, slot) VALUES ('1', 'no version', 1), ('2', 'no version', 1)")
    upsert = write("document", {"id": "1", "title": "new", "revision": -5})
    update = write("document", {"id": "2", "title": "new", "revision": -5}, "update")
    assert shard.settle(upsert, update).stale == 0
    assert set(shard.rows("SELECT id, title, revision FROM documents")) == {("1", "new", -5), ("2", "new", -5)}


def test_stale_counts_what_touched_no_row_and_no_other(shard):
    shard.settle(*(write("document", {"id": str(n), "title": "x", "revision": 5}) for n in range(3)))
    batch = [
        write("document", {"id": str(n), "title": "x", "revision": r}) for n, r in ((0, 4), (1, 5), (2, 6), (3, 1))
    ]
    assert shard.settle(*batch).stale == 2
    again = [write("document", {"id": str(n), "title": "x", "revision": r}, "update") for n, r in ((0, 1), (2, 7))]
    assert shard.settle(*again).stale == 1


def test_a_write_that_changes_nothing_isnt_missed(shard):
    shard.settle(customer(1, name="same"))
    assert shard.settle(customer(1, "update", name="same"), customer(2, name="x")).dead == 0
    assert shard.settle(customer(1, name="same")).stale == 0


def test_a_table_with_several_rows_of_one_key_is_no_messages_fault(fresh):
    fresh.run("ALTER TABLE customers DROP PRIMARY KEY")
    fresh.run("INSERT INTO customers (customer_id, slot) VALUES ('1', 1), ('1', 1)")
    assert fresh.settle(customer(1, name="x")).parked == 1
    assert "several rows of one key" in fresh.rows("SELECT detail FROM shardctl_parked_keys")[0][0]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("digits", "stored"),
    [
        ("12.50", "12.5"),
        ("0.1234567890123456789", "0.1234567890123456789"),
        ("1e-30", "1e-30"),
        ("1e-31", None),  # under the column's scale, which would make it 0
        ("1234567890123456789012345678.0123456789", "1234567890123456789012345678.0123456789"),
        ("-9007199254740993", "-9007199254740993"),
        ('"1e3"', "1000"),
        ("9" * 35, "9" * 35),
        ("1e35", None),  # over what JSON_TABLE holds, where MariaDB would make it 999…
        ('"1e400"', None),
        ('"-1e400"', None),
    ],
)
def test_a_decimal_arrives_as_written_or_is_a_fault(shard, digits, stored):
    body = b'{"Id": 1, "aText": "k", "aDecimal": %s}' % digits.encode()
    outcome = shard.settle(write("mixed", body, on="mariadb"), customer(1))
    rows = shard.rows("SELECT aDecimal FROM `Everything`")
    assert (outcome.dead, rows) == ((0, [(Decimal(stored),)]) if stored else (1, []))


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("2026-01-02", "2026-01-02 00:00:00"),
        ("2026-01-02T03:04:05Z", "2026-01-02 03:04:05"),
        ("2026-01-02T03:04:05.1234567+05:30", "2026-01-01 21:34:05.123457"),
        ("2026-03-29 02:30:00", "2026-03-29 02:30:00"),  # an hour that Berlin doesn't have
        ("0001-01-01T00:00:00Z", "0001-01-01 00:00:00"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31 23:59:59.999999"),
    ],
)
def test_a_moment_arrives_in_utc_whatever_the_servers_time_zone(fresh, written, stored):
    with admin(fresh) as root:
        ask(root, "SET GLOBAL time_zone = '+02:00'")
        try:
            fresh.engine.dispose()
            fresh.settle(write("mixed", {"Id": 1, "aText": "k", "aTime": written}))
        finally:
            ask(root, "SET GLOBAL time_zone = 'SYSTEM'")
    assert str(fresh.rows("SELECT aTime FROM `Everything`")[0][0]) == stored
    assert fresh.rows("SELECT published FROM shardctl_inbox") == [(1_700_000_000 - schema.PUBLISHED_FROM,)]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (None, None),
        ({"a": [1, None, "\N{DUCK}"]}, '{"a":[1,null,"\N{DUCK}"]}'),
        ([], "[]"),
        ("text", '"text"'),
        (False, "false"),
        (1.5, "1.5"),
    ],
)
def test_a_json_value_arrives_and_its_null_is_sqls(shard, value, stored):
    shard.settle(write("mixed", {"Id": 1, "aText": "k", "aJson": value}))
    assert shard.rows("SELECT aJson FROM `Everything`") == [(stored,)]


def test_json_deeper_than_mariadb_reads_is_that_messages_fault_alone(shard):
    deep = b'{"Id": 2, "aText": "k", "aJson": ' + b"[" * 50 + b"]" * 50 + b"}"
    outcome = shard.settle(write("mixed", {"Id": 1, "aText": "k", "aJson": [[1]]}), write("mixed", deep), customer(1))
    assert (outcome.applied, outcome.dead) == (2, 1)


def test_a_database_in_another_character_set_takes_every_text(fresh):
    fresh.settle(customer("\N{DUCK}", name="\N{DUCK}" * 100))
    assert names(fresh) == {"\N{DUCK}": "\N{DUCK}" * 100}


@pytest.mark.parametrize(
    ("column", "body"),
    [
        pytest.param("name varchar(5)", {"name": "sixsix"}, id="too long"),
        pytest.param("name varchar(5) CHARACTER SET latin1", {"name": "\N{DUCK}"}, id="not in the character set"),
        pytest.param("name integer", {"name": "twelve"}, id="not a number"),
        pytest.param("name date", {"name": "2026-02-30"}, id="no such day"),
        pytest.param("name date", {"name": "0000-00-00"}, id="zero date"),
        pytest.param("name enum('a', 'b')", {"name": "c"}, id="not of the enum"),
        pytest.param("credit tinyint", {"credit": 128}, id="out of range"),
        pytest.param("credit bigint unsigned", {"credit": -1}, id="negative"),
        pytest.param("credit decimal(3,1)", {"credit": 100}, id="too many digits"),
        pytest.param("name text NOT NULL", {"name": None}, id="NULL"),
        pytest.param("name text NOT NULL", {}, id="no default"),
        pytest.param("name json", {"name": "{"}, id="not JSON"),
    ],
)
@pytest.mark.parametrize("operation", ["insert", "upsert", "update"])
def test_a_value_that_doesnt_fit_is_a_fault_and_never_another_value(fresh, column, body, operation):
    fresh.run(f"ALTER TABLE customers MODIFY {column}")
    if operation == "update":
        if not body:
            pytest.skip("an update of no column but the slot")
        fits = {"name": "1", "credit": 1}[column.partition(" ")[0]]
        fits = {"name date": "2026-01-01", "name enum('a', 'b')": "a"}.get(column, fits)
        fresh.settle(customer(1, **{column.partition(" ")[0]: fits}))
    before = fresh.table("customer")
    outcome = fresh.settle(customer(1, operation, **body), write("profile", {"customer_id": "2"}))
    assert (outcome.applied, outcome.dead) == (1, 1)
    assert fresh.table("customer") == before


# --- trouble ----------------------------------------------------------------------------------------------------------


def in_a_thread(call):
    """The AgainErrors it raises, and the thread."""
    failures = []

    def work():
        try:
            call()
        except TransientError as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    return failures, thread


def waiting_sessions(connection):
    """Those that wait for a row. InnoDB shows what it showed before to a client that asks again within a tenth of a second."""
    ask(connection, "DO sleep(0.11)")
    rows = ask(
        connection, "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    )
    return [number for (number,) in rows]


def test_nobody_listens(fresh):
    good = fresh.store._engine
    fresh.store._engine = sessions.engine_of(fresh.url.set(port=1), fresh.config.consumer)
    again_and_then_fine(fresh, lambda: setattr(fresh.store, "_engine", good))


def test_a_right_that_is_missing(fresh, mariadb_server):
    mariadb_server._execute(f"CREATE OR REPLACE USER few@'127.0.0.1' IDENTIFIED BY '{fresh.url.password}'")
    mariadb_server._execute(f"GRANT SELECT ON {fresh.url.database}.* TO few@'127.0.0.1'")
    good, fresh.store._engine = (
        fresh.store._engine,
        sessions.engine_of(fresh.url.set(username="few"), fresh.config.consumer),
    )
    again_and_then_fine(fresh, lambda: setattr(fresh.store, "_engine", good))


def test_a_server_that_only_reads_is_left_for_the_one_its_name_leads_to_now(fresh, mariadb_server):
    mariadb_server._execute(f"CREATE OR REPLACE USER plain@'127.0.0.1' IDENTIFIED BY '{fresh.url.password}'")
    mariadb_server._execute(f"GRANT ALL ON {fresh.url.database}.* TO plain@'127.0.0.1'")
    fresh.store._engine = sessions.engine_of(fresh.url.set(username="plain"), fresh.config.consumer)
    fresh.store.apply([write("profile", {"customer_id": "1"})])
    connections = "SELECT id FROM information_schema.processlist WHERE user = 'plain'"
    before = fresh.rows(connections)
    mariadb_server._execute("SET GLOBAL read_only = 1")
    again_and_then_fine(fresh, lambda: mariadb_server._execute("SET GLOBAL read_only = 0"))
    after = fresh.rows(connections)
    assert len(before) == len(after) == 1
    assert before != after
    fresh.store._engine.dispose()


def test_no_connection_left(fresh, mariadb_server):
    secret = fresh.url.password
    mariadb_server._execute(
        f"CREATE OR REPLACE USER one@'127.0.0.1' IDENTIFIED BY '{secret}' WITH MAX_USER_CONNECTIONS 1"
    )
    mariadb_server._execute("GRANT ALL ON *.* TO one@'127.0.0.1'")
    fresh.store._engine = sessions.engine_of(fresh.url.set(username="one"), fresh.config.consumer)
    keeper = pymysql.connect(host=fresh.url.host, port=fresh.url.port, user="one", password=secret)
    again_and_then_fine(fresh, keeper.close)
    fresh.store._engine.dispose()


def test_a_lock_that_isnt_had_in_time(impatient):
    with admin(impatient) as blocker:
        ask(blocker, "BEGIN")
        ask(blocker, "UPDATE shardctl_fence SET version = version + 1")
        again_and_then_fine(impatient, lambda: ask(blocker, "ROLLBACK"))


def test_a_table_that_is_locked_for_too_long(impatient):
    with admin(impatient) as blocker:
        ask(blocker, "LOCK TABLES customers WRITE")
        again_and_then_fine(impatient, lambda: ask(blocker, "UNLOCK TABLES"))


def test_a_session_killed_in_the_middle_of_its_transaction(shard):
    shard.settle(customer(1))
    with admin(shard) as blocker, admin(shard) as killer:
        ask(blocker, "BEGIN")
        ask(blocker, "UPDATE customers SET name = 'theirs'")
        batch = [customer(2, "insert"), customer(1, "update", name="mine")]
        failures, thread = in_a_thread(lambda: shard.store.apply(batch))
        assert wait_until(lambda: waiting_sessions(killer), PATIENCE_SECONDS)
        ask(killer, f"KILL {waiting_sessions(killer)[0]}")
        thread.join()
    assert failures
    assert shard.store.apply(batch).applied == 2


def test_a_session_that_the_server_has_ended_while_it_was_idle_is_replaced(shard, monkeypatch):
    monkeypatch.setattr(engine, "PING_AFTER_SECONDS", 0)
    shard.settle(customer(1))
    shard.operator.dispose()
    with admin(shard) as killer:
        for (number,) in ask(
            killer,
            f"SELECT id FROM information_schema.processlist WHERE db = '{shard.url.database}' AND id <> connection_id()",
        ):
            ask(killer, f"KILL {number}")
    assert shard.store.apply([customer(2)]).applied == 1


def test_a_deadlock_is_tried_again(shard):
    shard.settle(customer(1), customer(2))
    batch = [customer(1, "update", name="a"), customer(2, "update", email="b")]
    with admin(shard) as other, admin(shard) as watcher:
        ask(other, "BEGIN")
        ask(other, "UPDATE customers SET name = concat(customer_id, 'theirs') WHERE customer_id = '2'")
        ask(
            other, "INSERT INTO profiles (customer_id, slot) SELECT seq, 1 FROM seq_1_to_1000"
        )  # the lighter one is ended
        failures, thread = in_a_thread(lambda: shard.store.apply(batch))
        assert wait_until(lambda: waiting_sessions(watcher), PATIENCE_SECONDS)
        ask(other, "UPDATE customers SET name = 'theirs' WHERE customer_id = '1'")
        ask(other, "COMMIT")
        thread.join()
    assert "Deadlock" in str(failures[0])
    assert shard.store.apply(batch).applied == 2


def test_a_message_that_another_replica_is_applying_is_waited_for_and_no_fault(shard):
    batch = [customer(number, "insert", name="x") for number in range(3)]
    with admin(shard) as watcher, shard.engine.connect() as quicker:
        with quicker.begin():
            shard.store._inbox.add(quicker, batch[1:])
            failures, thread = in_a_thread(lambda: shard.store.apply(batch))
            assert wait_until(lambda: waiting_sessions(watcher), PATIENCE_SECONDS)
        thread.join()
    assert "quicker" in str(failures[0])
    outcome = shard.store.apply(batch)
    assert (outcome.applied, outcome.duplicates) == (1, 2)


def test_a_change_of_slots_waits_for_the_writes_under_way_and_no_longer_than_a_replica_may_stand_still(impatient):
    """A replica that is stopped in its transaction is cut off, so its share of the fence ends."""
    with admin(impatient) as mover, impatient.engine.connect() as reader:
        impatient.store._fence.share(reader)
        ask(mover, "SET innodb_lock_wait_timeout = 0")
        with pytest.raises(pymysql.err.OperationalError):
            ask(mover, "UPDATE shardctl_fence SET version = version + 1")
        ask(mover, "SET innodb_lock_wait_timeout = 20")
        ask(mover, "UPDATE shardctl_fence SET version = version + 1")
        with pytest.raises(TransientError), sessions.translated():
            impatient.store._fence.share(reader)


# --- keeping house ----------------------------------------------------------------------------------------------------


def test_provisioning_twice_makes_the_tables_once(mariadb_server):
    fleet = fleet_from(parse(FLEET, "test"))
    url = mariadb_server.create_database("provision_tests").replace("mysql+pymysql", "mariadb")
    first, again = (provision_database(fleet, fleet.shards[0], url) for _ in range(2))
    mariadb_server.drop_database("provision_tests")
    assert (first.action, again.action) == ("create", "identical")
    assert {"shardctl_inbox", "customers", "Everything"} <= set(first.fields)


# --- what an operator repairs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "what", "repair"),
    [
        (
            "ALTER TABLE customers PARTITION BY RANGE COLUMNS (customer_id) (PARTITION p VALUES LESS THAN ('0'))",
            "no partition takes the row",
            "ALTER TABLE customers ADD PARTITION (PARTITION q VALUES LESS THAN (MAXVALUE))",
        ),
        (
            "ALTER TABLE customers ADD n TINYINT NOT NULL AUTO_INCREMENT UNIQUE, AUTO_INCREMENT = 120",
            "AUTO_INCREMENT is at its end",
            "ALTER TABLE customers MODIFY n BIGINT NOT NULL AUTO_INCREMENT",
        ),
    ],
    ids=["no partition", "AUTO_INCREMENT at its end"],
)
def test_what_an_operator_can_repair_is_no_writes_fault(fresh, before, what, repair):
    fresh.run(before)
    batch = [customer(number, name="x") for number in range(20)]
    with pytest.raises(TransientError, match=what):
        fresh.store.apply(batch)
    assert not any(write.fault for write in batch)
    assert fresh.inbox() == []
    fresh.run(repair)
    assert fresh.settle(*batch).applied == 20


@pytest.mark.parametrize("lost", ["sql_mode = 'TRADITIONAL'", "time_zone = '+09:00'", "autocommit = 1"])
def test_a_session_that_lost_its_settings_is_left_before_it_writes(shard, lost):
    """As behind a proxy that shares server sessions: another client's settings, or the server's own."""
    sessions = [shard.engine.connect() for _ in range(shard.engine.pool.size())]
    for session in sessions:
        session.exec_driver_sql(f"SET SESSION {lost}")
        session.close()
    for _ in sessions:
        with pytest.raises(TransientError, match=r"docs/poolers\.md"):
            shard.store.apply([customer(1)])
    assert shard.settle(customer(1)).applied == 1


def test_the_control_plane_leaves_such_a_session_too(shard):
    engine = control.connect(shard.url.render_as_string(hide_password=False))
    for way in (control.writing, control.snapshot):
        with engine.connect() as session:
            session.exec_driver_sql("SET SESSION sql_mode = 'TRADITIONAL'")
        with pytest.raises(control.DatabaseError, match=r"docs/poolers\.md"), way(engine):
            pass
        with way(engine) as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()
