"""`shardctl init --from-modulo` and `shardctl adopt`, from the command line."""

import json
import sqlite3

import pytest

from shardctl.cli import main
from shardctl.fleet import spec
from shardctl.fleet.keyspace import SlotRule
from shardctl.fleet.load import load_fleet


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.mark.parametrize("modulo", [2, 3, 5, 16, 100, 256])
def test_each_remainder_has_its_shard(run, modulo):
    assert run("init", "--from-modulo", str(modulo), "--key", "tenant", "--table", "tenants")[0] == 0
    fleet = load_fleet()
    assert len(fleet.shards) == fleet.routing.modulo == modulo
    for key in range(3 * modulo):
        assert fleet.routing.rule.slot_of(str(key)) in fleet.shards[key % modulo].slots
    kind = fleet.message_types["tenants"]
    assert (kind.table, kind.key, kind.routing_field) == ("tenants", ("tenant",), "tenant")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--key", "a b"], "--key: 'a b' isn't a column name"),
        (["--table", "a;b"], "--table: 'a;b' isn't a table name"),
    ],
)
def test_what_can_not_be_mapped(run, tmp_path, options, message):
    code, _, err = run("init", "--from-modulo", "3", *options)
    assert (code, message in err, list(tmp_path.iterdir())) == (2, True, [])


def test_a_modulo_that_needs_more_slots(run):
    run("init", "--from-modulo", "3")
    text = spec.DEFAULT_PATH.read_text().replace("modulo: 3", "modulo: 300")
    spec.DEFAULT_PATH.write_text(text)
    code, _, err = run("validate")
    assert code == 2
    assert "modulo 300 needs slot_bits 11 or more" in err


@pytest.fixture
def databases(run, tmp_path):
    """Three databases of users, and the options that name them."""
    run("init", "--from-modulo", "3")
    options = []
    for remainder in range(3):
        path = tmp_path / f"{remainder}.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE users (user_id bigint PRIMARY KEY)")
            connection.executemany("INSERT INTO users VALUES (?)", [(key,) for key in range(remainder, 30, 3)])
        options += ["--database", f"s{remainder}=sqlite:///{path}"]
    return options


def test_adopt_shows_first_and_does_it_once(run, databases, tmp_path):
    code, out, err = run("adopt", *databases)
    assert code == 1
    assert "s0     users  missing        10       10          0        0" in out
    assert "Nothing was done. `shardctl adopt --yes`" in err
    assert slots(tmp_path / "0.db") is None

    code, _, err = run("adopt", "--yes", *databases)
    assert code == 0
    assert "shard s2, table users: 10 rows received their slots" in err
    assert 'CREATE INDEX "users_slot" ON "users" ("slot");' in err
    for remainder in range(3):
        assert slots(tmp_path / f"{remainder}.db") == {
            key: SlotRule(10, 3).slot_of(str(key)) for key in range(remainder, 30, 3)
        }

    code, out, err = run("adopt", "--json", *databases)
    assert (code, [table["without_slot"] for table in json.loads(out)]) == (0, [0, 0, 0])
    assert "every row of 3 tables has its slot" in err


def test_adopt_refuses_databases_in_the_wrong_order(run, databases, tmp_path):
    databases[1], databases[3] = f"s0=sqlite:///{tmp_path}/1.db", f"s1=sqlite:///{tmp_path}/0.db"
    code, out, err = run("adopt", "--yes", *databases)
    assert code == 1
    assert "s0     users  missing        10       10         10        0" in out
    assert "did routing.modulo choose the databases" in err
    assert slots(tmp_path / "0.db") is None


def test_adopt_without_a_database(run, databases):
    code, _, err = run("adopt", *databases[:4])
    assert code == 1
    assert "no database URL for s2" in err


def slots(path):
    """Each user's slot; None where there is no such column."""
    with sqlite3.connect(path) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(users)")]
        return dict(connection.execute("SELECT user_id, slot FROM users")) if "slot" in columns else None


@pytest.mark.parametrize("mode", [[], ["--yes"], ["--json"]], ids=["look", "yes", "json"])
def test_adopt_where_no_table_is_looked_at_nothing(run, databases, tmp_path, mode):
    for number in range(3):
        with sqlite3.connect(tmp_path / f"{number}.db") as connection:
            connection.execute("DROP TABLE users")
    code, _, err = run("adopt", *mode, *databases)
    assert code == 1
    assert "shard s0 has no table users: it was not checked." in err
    assert "none of the tables exists" in err
    assert "every row" not in err


def test_adopt_names_a_table_that_is_not_there(run, databases, tmp_path):
    with sqlite3.connect(tmp_path / "1.db") as connection:
        connection.execute("DROP TABLE users")
    code, _, err = run("adopt", "--yes", *databases)
    assert code == 0
    assert "shard s1 has no table users: it was not checked." in err


def test_rows_with_a_null_in_their_key_get_their_slots_too(run, tmp_path):
    """SQLite's primary keys may hold it, and a unique key of any database."""
    (tmp_path / "shards.yaml").write_text(
        "fleet: orders\nproject: my-project\nimage: consumer:1\nrouting: {slot_bits: 4}\n"
        "message_types:\n  order: {table: orders, key: [id, line], routing_key: id, columns: {id: text, line: bigint}}\n"
        "shards: [{name: s0, slots: 0-15}]\n"
    )
    with sqlite3.connect(tmp_path / "0.db") as connection:
        connection.execute("CREATE TABLE orders (id text, line bigint, PRIMARY KEY (id, line))")
        connection.executemany("INSERT INTO orders VALUES (?, ?)", [("a", 1), ("a", None), ("b", None), ("b", 2)])
    database = ("--database", f"s0=sqlite:///{tmp_path}/0.db")
    code, _, err = run("adopt", *database, "--yes")
    assert (code, "4 rows received their slots" in err) == (0, True)
    assert "every row of 1 tables has its slot" in run("adopt", *database)[2]
