"""What a row's history shows. The databases that keep one are in the end-to-end tests."""

import sqlite3

import pytest

from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local import history
from shardctl.local.load import Stream
from shardctl.local.oracle import Difference, verify
from shardctl.provision import provision_database
from shardctl.wire import identity
from shardctl.wire.message import Write

FLEET = """
fleet: f
project: my-project
image: example.com/c:1
message_types:
  customer: {table: customers, key: customer_id, columns: {customer_id: text, name: text}}
  event: {sink: "examples.sinks:factory", routing_key: id}
  odd: {table: odds, key: id, columns: {id: text, revision: json}}
shards: [{name: s0, slots: 0-1023}]
"""


@pytest.fixture
def fleet():
    return history.recorded(fleet_from(yamlfile.parse(FLEET, "shards.yaml")))


@pytest.mark.parametrize(
    ("entries", "doubled", "disordered"),
    [
        ("1 2 3", [], []),
        ("3", [], []),
        ("1 3", [], []),
        ("1 2 2 3", ["2"], []),
        ("1 2 3 2", ["2"], []),
        ("1 3 2", [], ["2"]),
        ("0 1 2 3", [], ["0"]),
        ("", [], ["3"]),
        (None, [], ["3"]),
    ],
    ids=["all", "all but the last folded", "one folded", "twice", "twice, late", "late", "of before", "empty", "none"],
)
def test_a_history_shows_what_came_twice_or_late(entries, doubled, disordered):
    assert history.faults(entries, ["1", "2", "3"]) == (doubled, disordered)


def test_tables_get_a_revision_where_they_have_none_and_sinks_and_odd_tables_are_left_alone(fleet):
    kinds = fleet.message_types
    assert kinds["customer"].columns.keys() == {"customer_id", "name", "revision", history.COLUMN}
    assert kinds["event"].columns == {}
    assert kinds["odd"].columns.keys() == {"id", "revision"}


def test_who_writes_fills_the_revision_and_knows_nothing_of_the_history():
    fleet = history.numbered(fleet_from(yamlfile.parse(FLEET, "shards.yaml")))
    tables = fleet.model_copy(update={"message_types": {"customer": fleet.message_types["customer"]}})
    writes = [step.write for step in Stream(tables, 5, 1, duplicate_rate=0)]
    assert [write.body["revision"] for write in writes if write.operation != "delete"] == [1, 2, 3, 4, 5]
    assert all(history.COLUMN not in write.body for write in writes)


@pytest.fixture
def database(fleet, tmp_path):
    url = f"sqlite:///{tmp_path / 's0.db'}"
    provision_database(fleet, fleet.shards[0], url)
    history.keep(fleet, fleet.shards[0], url)
    history.keep(fleet, fleet.shards[0], url)
    with sqlite3.connect(tmp_path / "s0.db", isolation_level=None) as connection:
        yield connection


UPSERT = (
    "INSERT INTO customers (customer_id, name, revision, slot) VALUES ('c', 'n', ?, 185) "
    "ON CONFLICT (customer_id) DO UPDATE SET name = excluded.name, revision = excluded.revision"
)


def test_a_database_notes_each_write_of_a_row_and_leaves_a_row_that_comes_whole_alone(fleet, database, tmp_path):
    def notes():
        return database.execute(f"SELECT {history.COLUMN} FROM customers").fetchall()

    for revision in (1, 2, 3):
        database.execute(UPSERT, (revision,))
    database.execute("UPDATE customers SET revision = 4")
    assert notes() == [("1 2 3 4",)]
    database.execute("CREATE TABLE elsewhere AS SELECT * FROM customers")
    database.execute("DELETE FROM customers")
    database.execute(UPSERT, (6,))
    assert notes() == [("6",)]
    database.execute("DELETE FROM customers")
    columns = f"revision, customer_id, name, {history.COLUMN}, slot"
    database.execute(f"INSERT INTO customers ({columns}) SELECT {columns} FROM elsewhere")
    assert notes() == [("1 2 3 4",)]


def test_the_oracle_finds_a_late_write_that_a_later_one_hides(fleet, database, tmp_path):
    for revision in (1, 3, 2, 4):
        database.execute(UPSERT, (revision,))
    writes = [
        Write(
            "customer", {"customer_id": "c", "name": "n", "revision": n}, operation="upsert", idempotency_key=f"c#{n}"
        )
        for n in (1, 2, 3, 4)
    ]
    database.executemany(
        "INSERT INTO shardctl_inbox (slot, identity, key_hash, published) VALUES (185, ?, 0, 0)",
        [(identity.in_slot(identity.of_key("", write.type, write.idempotency_key), 185),) for write in writes],
    )
    tables = fleet.model_copy(update={"message_types": {"customer": fleet.message_types["customer"]}})
    verdict = verify(tables, writes, {"s0": f"sqlite:///{tmp_path / 's0.db'}"})
    assert [finding.difference for finding in verdict.findings] == [Difference.REORDERED]
    assert "revision 2 in the history 1 3 2 4, not as in 1 2 3 4" in str(verdict.findings[0])
