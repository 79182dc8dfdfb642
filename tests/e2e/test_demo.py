"""`shardctl demo` from the command line, as a user runs it."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shardctl.cli.outcome import tell_outcome
from shardctl.errors import EXIT_REFUSED
from shardctl.fleet.load import load_fleet
from shardctl.local.demo import Plan, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def demo(*options, file=ROOT / "shards.yaml", folder):
    command = (sys.executable, "-c", "import sys; from shardctl.cli import main; sys.exit(main())", "demo")
    return subprocess.run(
        [*command, "-f", str(file), "--dir", str(folder / "build"), *options],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
    )


@pytest.mark.proof
def test_the_full_demo_is_verified(tmp_path):
    done = demo("--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verified"] is True
    assert (report["writes"], report["applied"], report["entities"]) == (20_000, 20_000, 5_000)
    assert report["publisher_duplicates"] > 300
    assert report["redelivered"] > 200
    assert (report["dead_letters"], report["strays"], report["restarts"], report["differences"]) == (0, 0, 0, {})
    assert sum(shard["slots"] for shard in report["shards"]) == 1024
    assert all(shard["rows"] == shard["rows_expected"] > 0 for shard in report["shards"])
    assert report["manifests"] == len(list((tmp_path / "build" / "manifests").rglob("*.yaml")))
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["manifests"], "the run was left behind"


@pytest.fixture
def sqlite_fleet(tmp_path):
    """The project's own fleet on SQLite, in another shape: by type, over two topics, one replica a shard."""
    fleet = yaml.safe_load((ROOT / "shards.yaml").read_text())
    fleet["local"] = {"database": "sqlite", "replicas": 1}
    fleet["routing"] = {"slot_bits": 10, "topic_bits": 1}
    fleet["shards"] = [
        {"name": "people", "slots": "0-1023", "types": ["customer"]},
        {"name": "rest", "slots": "0-1023", "except_types": ["customer"]},
    ]
    path = tmp_path / "sqlite.yaml"
    path.write_text(yaml.safe_dump(fleet))
    return path


def test_a_small_demo_on_sqlite_is_verified_and_kept_when_asked(tmp_path, sqlite_fleet):
    done = demo("--writes", "1500", "--entities", "300", "--seed", "5", "--keep", file=sqlite_fleet, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Verified: all 1,500 writes took effect once" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[:3]] == ["shard", "people", "rest"]
    assert "2 consumers ready" in done.stderr
    (run,) = (tmp_path / "build").glob("run-*")
    assert {path.name for path in (run / "sqlite").glob("*.db")} == {"people.db", "rest.db"}
    assert str(run) in done.stderr


class Saboteur:
    """Looks on, and spoils a database as soon as everything is settled."""

    def __init__(self, folder):
        self.folder = folder

    def done(self, what):
        if "settled" in what:
            (database,) = self.folder.glob("run-*/sqlite/people.db")
            with sqlite3.connect(database) as connection:
                connection.execute("UPDATE customers SET name = 'Nobody' WHERE customer_id = 'customer-00000'")

    def progress(self, published, settled, total):
        pass

    def warn(self, what):
        raise AssertionError(what)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_difference_is_reported_keeps_the_databases_and_is_a_refusal(tmp_path, sqlite_fleet, capsys, as_json):
    report = run(load_fleet(sqlite_fleet), Plan(tmp_path, writes=200, entities=50), Saboteur(tmp_path))
    assert tell_outcome(report, as_json=as_json) == EXIT_REFUSED
    streams = capsys.readouterr()
    assert "customer-00000: name is 'Nobody', not " in streams.out
    assert report.differences == {"wrong value": 1}
    assert report.kept_in in streams.err
    assert (Path(report.kept_in) / "sqlite" / "people.db").exists()
    if as_json:
        assert json.loads(streams.out)["verified"] is False
    else:
        assert "NOT VERIFIED: 1 wrong value" in streams.out


def test_more_entities_than_writes_are_refused_before_anything_starts(tmp_path):
    done = demo("--writes", "10", "--entities", "11", folder=tmp_path)
    assert done.returncode == 2
    assert "11 entities" in done.stderr
    assert not (tmp_path / "build").exists()
