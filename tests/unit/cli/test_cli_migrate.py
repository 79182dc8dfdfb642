"""`shardctl migrate` from the command line, on SQLite; the page's commands, the example, and what a new shard gets."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from migrate_kit import Shop

from examples import schema_changes
from shardctl.cli import main
from shardctl.migrate import extra, newshard
from shardctl.provision import make_tables
from shardctl.rebalance import preflight

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[3] / "docs/schema-changes.md"


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    urls = {name: f"sqlite:///{tmp_path}/{name}.db" for name in ("s0", "s1")}
    for name, url in urls.items():
        monkeypatch.setenv(f"SHARDCTL_DATABASE_URL_{name.upper()}", url)
    shop = Shop(tmp_path, urls)
    yield shop
    shop.close()


@pytest.fixture
def run(shop, capsys):
    def run(line):
        code = main(["migrate", *shlex.split(line)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "bug" not in err
        return code, out, err

    return run


def columns(shard, table="orders"):
    with sqlite3.connect(f"{shard}.db") as connection:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def test_the_commands_of_the_page_add_a_column_to_every_shard(shop, run):
    shop.map(", note: text")
    block = re.search(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    lines = [line.removeprefix("shardctl migrate ") for line in block.splitlines()]
    answers = [run(line) for line in lines]
    assert [code for code, _, _ in answers] == [0, 1, 0, 0]
    assert "ALTER TABLE orders ADD COLUMN note TEXT;" in answers[0][1]
    assert "migrations/0001_notes_on_orders.py: written" in answers[0][2]
    assert "Nothing was done. `shardctl migrate apply --yes` does it" in answers[1][2]
    assert '"action": "migrate apply"' in answers[2][2]
    assert "Verified: all 2 shards have revision" in answers[3][2]
    assert "note" in columns("s0")
    assert "note" in columns("s1")


def test_the_example_runs(capfd):
    assert schema_changes.main() == 0
    assert "Verified: all 2 shards" in capfd.readouterr().err


def test_the_example_of_a_revision_of_your_own_is_one(shop, run):
    shop.add()
    text = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    (shop.history.folder / "own.py").write_text(re.sub('"72a37df29b99".*', "'r1'", text))
    assert run("apply --yes")[0] == 0
    with sqlite3.connect("s1.db") as connection:
        assert ("orders_by_amount",) in connection.execute("SELECT name FROM sqlite_master").fetchall()


def test_a_plan_as_a_dry_run_writes_nothing_and_names_what_is_left_to_a_person(shop, run):
    with sqlite3.connect("s1.db") as connection:
        connection.execute("ALTER TABLE orders ADD COLUMN made TEXT NOT NULL DEFAULT ''")
    text = shop.file.read_text().replace("key: order_id", "key: [order_id, line]")
    shop.file.write_text(text.replace("amount: bigint", "amount: bigint, line: integer, note: text"))
    code, out, _ = run("plan --dry-run --json")
    report = json.loads(out)
    assert code == 0
    assert not Path("migrations").exists()
    assert "op.add_column('orders', sa.Column('note'" in report["draft"]["text"]
    assert "line" not in report["draft"]["text"]
    assert [step.split(".")[0] for step in report["by_hand"]] == [
        "table orders: line is part of the key, and rows that are there have no value for it",
        "table orders: shards",
    ]


def test_one_database_for_two_shards_is_refused(shop, run, monkeypatch):
    shop.add()
    assert run("apply --yes")[0] == 0
    assert run("verify")[0] == 0
    monkeypatch.setenv("SHARDCTL_DATABASE_URL_S1", shop.urls["s0"])
    code, _, err = run("verify")
    assert code == 1
    assert "shards s0 and s1 have one database URL" in err
    monkeypatch.setenv(
        "SHARDCTL_DATABASE_URL_S1", shop.urls["s0"].replace("/s0", "/../" + shop.file.parent.name + "/s0")
    )
    code, _, err = run("verify")
    assert code == 1
    assert "belongs to shard s0 of fleet orders, and was given as that of shard s1" in err
    assert "`.." not in err


def test_a_draft_replaces_no_file(shop, run):
    shop.map(", a: text")
    assert run("plan -m same")[0] == 0
    (shop.history.folder / "0001_same.py").replace(shop.history.folder / "0002_same.py")
    shop.map(", a: text, b: text")
    assert run("plan -m same")[0] == 0
    assert len(shop.history.revisions) == 2


def test_a_table_of_a_new_type_is_drafted_whole(shop, run):
    shop.file.write_text(
        shop.file.read_text().replace(
            "shards:", "  customer: {table: customers, key: id, columns: {id: text, vip: boolean, meta: json}}\nshards:"
        )
    )
    assert run("plan")[0] == run("apply --yes")[0] == run("verify")[0] == 0
    assert columns("s1", "customers") == ["id", "vip", "meta", "slot"]


def test_a_contract_waits_until_the_file_maps_the_column_no_more(shop, run):
    shop.add("op.drop_column('orders', 'amount')")
    code, _, err = run("apply --yes")
    assert code == 1
    assert "it removes column orders.amount, to which message type order writes. Take it out of shards.yaml" in err
    assert "amount" in columns("s0")
    shop.file.write_text(shop.file.read_text().replace(", amount: bigint", ""))
    assert run("apply --yes")[0] == 0
    assert "amount" not in columns("s0") + columns("s1")


def remove(folder):
    (folder / "r1.py").unlink()


def put_before(folder):
    text = (folder / "r1.py").read_text()
    (folder / "r0.py").write_text(text.replace("'r1'", "'r0'"))
    (folder / "r1.py").write_text(text.replace("= None", "= 'r0'"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, "shard s0 has revision r1, which no file in .*migrations is"),
        (put_before, "shard s0 has revision r1 already, which comes after r0"),
    ],
)
def test_databases_that_these_files_did_not_make_are_left_alone(shop, run, change, message):
    shop.add("op.add_column('orders', sa.Column('a', sa.Integer()))")
    assert run("apply --yes")[0] == 0
    change(shop.history.folder)
    for command in ("plan", "apply --yes", "verify", "status"):
        code, _, err = run(command)
        assert code == 1
        assert re.search(message, err)


def test_a_revision_that_was_given_up_is_forgotten_once_its_file_is_gone(shop, run):
    shop.add("op.execute('SELECT x FROM nowhere')")
    code, _, err = run("apply --yes")
    assert code == 1
    assert "shard s0: revision r1 (Change): " in err
    assert "no such table: nowhere" in err
    assert [row["state"] for row in json.loads(run("status --json")[1])["shards"]] == ["under way", "under way"]
    (shop.history.folder / "r1.py").unlink()
    assert run("apply --yes")[0] == 0
    with sqlite3.connect("s1.db") as connection:
        assert connection.execute("SELECT count(*) FROM shardctl_revisions").fetchone() == (0,)


def test_a_fault_in_a_revision_names_its_line(shop, run):
    shop.add("op.add_column('orders', sa.Colum('a'))")
    code, _, err = run("apply --yes")
    assert code == 1
    assert re.search(r"migrations/r1\.py:9: AttributeError", err)


def test_shards_that_differ_are_named(shop, run):
    with sqlite3.connect("s1.db") as connection:
        connection.execute("CREATE UNIQUE INDEX once ON orders (amount)")
    code, out, err = run("verify")
    assert code == 1
    assert "table orders, shards s0 and s1: unique index on (amount): isn't there in the first" in out
    assert "1 fault" in err


def test_a_revisions_table_that_one_shard_lacks_is_named(shop, run):
    shop.add("op.create_table('notes', sa.Column('id', sa.Integer(), primary_key=True))")
    assert run("apply --yes")[0] == run("verify")[0] == 0
    with sqlite3.connect("s1.db") as connection:
        connection.execute("DROP TABLE notes")
    code, out, _ = run("verify")
    assert code == 1
    assert out == "table notes, shards s0 and s1: the other doesn't have it\n"
    with sqlite3.connect("s0.db") as connection:
        connection.execute("DROP TABLE notes")
    assert run("verify")[0] == 0


def test_a_shard_that_does_not_answer_is_unknown(shop, run, monkeypatch):
    shop.add()
    monkeypatch.setenv("SHARDCTL_DATABASE_URL_S1", "sqlite:////nowhere/at/all.db")
    code, out, _ = run("status --json")
    report = json.loads(out)
    assert code == 1
    assert [row["state"] for row in report["shards"]] == ["pending", None]
    assert run("apply --yes")[0] == 1
    assert run("status --json")[1] == out  # nothing was announced to the shard that answers


def test_a_new_shard_gets_what_only_revisions_know(shop, tmp_path):
    shop.map(", note: text")
    shop.add("op.add_column('orders', sa.Column('note', sa.Text()))", "op.create_index('by_note', 'orders', ['note'])")
    newshard.bring_up(shop.file, shop.fleet, {"s0": shop.urls["s0"]})
    with sqlite3.connect("s0.db") as connection:
        assert ("by_note",) in connection.execute("SELECT name FROM sqlite_master").fetchall()
    newshard.bring_up(shop.file, shop.fleet, {"s0": shop.urls["s0"]})


def test_without_alembic_the_extra_is_named(shop, run, monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    code, _, err = run("status")
    assert code == 2
    assert "pip install 'shardctl[migrate]'" in err


def test_alembic_is_loaded_by_schema_changes_alone():
    code = "import sys, shardctl.cli, consumer.process.run, shardctl.migrate.newshard; print('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_slots_stay_where_they_are_while_one_shard_lacks_a_revision(shop, run):
    shop.add("op.add_column('orders', sa.Column('a', sa.Integer()))")
    newshard.bring_up(shop.file, shop.fleet, {"s1": shop.urls["s1"]})
    known, _ = preflight.look(shop.engines)
    (reason,) = preflight.unequal_revisions(known)
    assert "shard s0: it doesn't have schema revision r1" in reason
    assert "`shardctl migrate apply` gives it to every shard" in reason
    assert run("apply --yes")[0] == 0
    known, _ = preflight.look(shop.engines)
    assert not list(preflight.unequal_revisions(known))


def test_provision_names_what_tables_lack_and_does_not_change_them(shop):
    shop.map(", note: text")
    step = make_tables(shop.fleet, shop.fleet.shards[0], shop.urls["s0"])
    assert (step.action, step.is_new_database) == ("identical", False)
    assert step.lacks == ("table orders has no column note: `shardctl migrate plan` drafts it, `… apply` adds it",)
    assert "note" not in columns("s0")
