"""Tables that were there before their fleet get their slots, on every database, while others write to them."""

import threading

import pytest
from rowcopy_places import PRODUCTS, places
from sqlalchemy import text

from shardctl.fleet.keyspace import SlotRule, SlotSet
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.rebalance.rows.shape import quoted
from shardctl.shard import database
from shardctl.verification import adopt

pytestmark = pytest.mark.slow
__all__ = ["places"]

FLEET = """
fleet: f
project: my-project
image: example.com/consumer:1.0
routing: {modulo: 3}
message_types:
  user: {table: users, key: user_id, columns: {user_id: bigint, name: text}}
  visit: {table: visits, key: [user_id, day], columns: {user_id: bigint, day: integer, seen: bigint}}
shards: [{name: s0, slots: 0-1023}]
"""
KINDS = fleet_from(parse(FLEET, "test")).message_types
RULE = SlotRule(10, 3)
MINE = SlotSet.of_ranges([(RULE.run_of(1)[0], RULE.run_of(1)[1] - 1)])
ROWS = 12_000


@pytest.fixture(params=PRODUCTS)
def engine(request, places):
    engine = places.side(request.param).engine
    with database.writing(engine) as connection:
        for name in ("users", "visits"):
            connection.execute(text(f"DROP TABLE IF EXISTS {name}"))
        connection.execute(text("CREATE TABLE users (user_id bigint PRIMARY KEY, name varchar(50))"))
        connection.execute(
            text("CREATE TABLE visits (user_id bigint, day integer, seen bigint, PRIMARY KEY (user_id, day))")
        )
        users = [{"user_id": number} for number in range(1, 3 * ROWS, 3)]
        connection.execute(text("INSERT INTO users (user_id, name) VALUES (:user_id, 'x')"), users)
        connection.execute(text("INSERT INTO visits VALUES (:user_id, 1, 1), (:user_id, 2, 1)"), users[:4_000])
    return engine


@pytest.mark.parametrize(("name", "rows"), [("user", ROWS), ("visit", 8_000)])
def test_every_row_gets_its_slot(engine, name, rows):
    kind = KINDS[name]
    assert adopt.survey(engine, "s0", kind, RULE, MINE) == adopt.Adoption(
        "s0", kind.table, lacks_column=True, rows=rows, without_slot=rows, elsewhere=0, unknown=0, lacks_index=False
    )
    adopt.add_column(engine, kind)
    read = []
    assert adopt.give_slots(engine, kind, RULE, read.append) == rows
    assert (sum(read), max(read)) == (rows, adopt.CHUNK_ROWS)
    after = adopt.survey(engine, "s0", kind, RULE, MINE)
    assert (after.lacks_column, after.without_slot, after.lacks_index) == (False, 0, True)
    with database.snapshot(engine) as connection:
        stored = connection.exec_driver_sql(f"SELECT user_id, slot FROM {kind.table}").all()
    assert all(slot == RULE.slot_of(str(user)) for user, slot in stored)
    assert adopt.give_slots(engine, kind, RULE, read.append) == 0  # run again


def test_rows_that_come_meanwhile_are_kept_and_found_by_the_next_run(engine):
    kind = KINDS["user"]
    adopt.add_column(engine, kind)
    ended, came = threading.Event(), []

    def write():
        number = 1_000_000
        while not ended.is_set() and len(came) < ROWS // 4:  # or a fast writer keeps the first run from its end
            number += 3
            with database.writing(engine) as connection:
                connection.execute(text(f"INSERT INTO users (user_id, name) VALUES ({number}, 'late')"))
                connection.execute(text(f"UPDATE users SET name = 'changed' WHERE user_id = {1 + 3 * len(came)}"))
            came.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    adopt.give_slots(engine, kind, RULE, lambda _: None)
    ended.set()
    writer.join()
    adopt.give_slots(engine, kind, RULE, lambda _: None)
    after = adopt.survey(engine, "s0", kind, RULE, MINE)
    assert (after.rows, after.without_slot) == (ROWS + len(came), 0)
    with database.snapshot(engine) as connection:
        changed = connection.exec_driver_sql("SELECT count(*) FROM users WHERE name = 'changed'").scalar()
    assert changed == min(len(came), ROWS)


@pytest.mark.parametrize("partitions", ["", " PARTITION BY RANGE (user_id)"], ids=["whole", "partitioned"])
def test_the_statements_that_remain_run_as_they_are_shown(engine, partitions):
    """On a table with a word of SQL for its name, too."""
    kind, product = KINDS["user"].model_copy(update={"table": "order"}), engine.dialect.name
    if partitions and product != "postgresql":
        pytest.skip("PostgreSQL alone makes no index of a partitioned table concurrently")
    table = quoted(product, "order")
    with database.writing(engine) as connection:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
        connection.exec_driver_sql(f"CREATE TABLE {table} (user_id bigint PRIMARY KEY, name varchar(50)){partitions}")
    adopt.add_column(engine, kind)
    with database.writing(engine) as connection:
        connection.exec_driver_sql("COMMIT")  # CREATE INDEX CONCURRENTLY takes no transaction
        for statement in adopt.finishing(engine, kind):
            connection.exec_driver_sql(statement.removesuffix(";"))
    assert not adopt.survey(engine, "s0", kind, RULE, MINE).lacks_index
    with database.writing(engine) as connection:
        connection.exec_driver_sql(f"DROP TABLE {table}")


def test_rows_that_do_not_belong_here_are_counted(engine):
    kind = KINDS["user"]
    with database.writing(engine) as connection:
        connection.execute(text("INSERT INTO users VALUES (3, 'elsewhere'), (-4, 'no slot')"))
    survey = adopt.survey(engine, "s0", kind, RULE, MINE)
    assert (survey.elsewhere, survey.unknown, survey.fit) == (1, 1, False)


def test_a_table_that_lacks_a_column_is_reported(engine):
    kind = KINDS["user"].model_copy(update={"columns": {**KINDS["user"].columns, "email": "text"}})
    with pytest.raises(adopt.AdoptError, match="users has no column 'email'"):
        adopt.survey(engine, "s0", kind, RULE, MINE)
    assert adopt.survey(engine, "s0", kind.model_copy(update={"table": "nowhere"}), RULE, MINE) is None


WIDE_KEYS = {
    "postgresql": ("numeric(20,0)", (7, 18_446_744_073_709_551_615)),
    "mariadb": ("bigint unsigned", (7, 18_446_744_073_709_551_615)),
    "sqlite": ("numeric(20,0)", (7, 9_223_372_036_854_775_807)),
}


def test_rows_whose_key_is_a_wide_whole_number_get_their_slots(engine):
    """As `init --from-database` drafts MySQL's BIGINT UNSIGNED."""
    column, keys = WIDE_KEYS[engine.dialect.name if engine.dialect.name in WIDE_KEYS else "mariadb"]
    rule = SlotRule(10)
    columns = {"id": "numeric(20,0)", "name": "text"}
    kind = KINDS["user"].model_copy(update={"table": "wide", "key": ("id",), "columns": columns})
    with database.writing(engine) as connection:
        connection.execute(text("DROP TABLE IF EXISTS wide"))
        connection.execute(text(f"CREATE TABLE wide (id {column} PRIMARY KEY, name varchar(50))"))
        connection.execute(text("INSERT INTO wide (id) VALUES (:id)"), [{"id": key} for key in keys])
    adopt.add_column(engine, kind)
    adopt.give_slots(engine, kind, rule, lambda _: None)
    with database.snapshot(engine) as connection:
        stored = connection.exec_driver_sql("SELECT id, slot FROM wide ORDER BY id").all()
    assert [(int(key), slot) for key, slot in stored] == [(key, rule.slot_of(str(key))) for key in keys]


def test_a_key_that_the_database_can_not_hash_is_reported(engine):
    columns = {**KINDS["user"].columns, "user_id": "decimal"}
    kind = KINDS["user"].model_copy(update={"columns": columns})
    with pytest.raises(adopt.AdoptError, match="'user_id', which gives the routing key, isn't a column"):
        adopt.survey(engine, "s0", kind, RULE, MINE)


def test_a_time_that_mariadb_sets_with_each_update_stays(places):
    """`ON UPDATE current_timestamp()` is for changes of the application; that a row gets its slot is none."""
    engine = places.side("mariadb").engine
    with database.writing(engine) as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS users")
        connection.exec_driver_sql(
            "CREATE TABLE users (user_id bigint PRIMARY KEY, name varchar(50), `changed, at` timestamp NOT NULL "
            "DEFAULT current_timestamp() ON UPDATE current_timestamp(), seen datetime(6) ON UPDATE current_timestamp(6))"
        )
        connection.exec_driver_sql("INSERT INTO users VALUES (1, 'x', '2001-02-03 04:05:06', NULL)")
    adopt.add_column(engine, KINDS["user"])
    assert adopt.give_slots(engine, KINDS["user"], RULE, lambda _: None) == 1
    with database.snapshot(engine) as connection:
        query = "SELECT CAST(`changed, at` AS char), seen, slot FROM users"
        assert connection.exec_driver_sql(query).one() == ("2001-02-03 04:05:06", None, RULE.slot_of("1"))
