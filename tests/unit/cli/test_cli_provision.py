"""`shardctl provision` and whose a database is: refused before anything is made, and taken over where a person says from whom."""

from __future__ import annotations

import json

import pytest
from consumerprocess_kit import Pubsub
from sqlalchemy import create_engine, text

from shardctl.cli import main
from shardctl.fleet import scaffold
from shardctl.fleet.load import load_fleet
from shardctl.local.servers.process import free_port


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards.yaml").write_text(scaffold.text(2))
    for name in ("s0", "s1"):
        monkeypatch.setenv(f"SHARDCTL_DATABASE_URL_{name.upper()}", f"sqlite:///{tmp_path}/{name}.db")
    broker = Pubsub()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.broker.host)

    def run(*arguments):
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    yield run
    broker.stop()
    broker.loop.call_soon_threadsafe(broker.loop.stop)


@pytest.fixture
def nobody(monkeypatch):
    """Lets commands find that Pub/Sub doesn't answer."""
    return lambda: monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{free_port()}")


def copy_of(tmp_path):
    """The file of another fleet in a folder of its own, for the same databases."""
    file = tmp_path / "copy" / "shards.yaml"
    file.parent.mkdir()
    name = load_fleet(tmp_path / "shards.yaml").fleet
    file.write_text(scaffold.text(2).replace(f"fleet: {name}", "fleet: staging"))
    assert load_fleet(file).fleet == "staging"
    return name, file


def test_another_fleets_databases_are_refused_before_pubsub_is_asked(run, tmp_path, nobody):
    name, file = copy_of(tmp_path)
    assert run("provision")[0] == 0
    assert run("verify")[0] == 0
    nobody()
    code, out, err = run("provision", "-f", str(file))
    assert (code, out) == (1, "")
    assert f"shard s0: database sqlite:///{tmp_path}/s0.db belongs to shard s0 of fleet {name}" in err
    assert f"`shardctl provision --take-over {name}/s1`" in err
    code, _, err = run("verify", "-f", str(file))
    assert code == 1
    assert "and was given as that of shard s0 of fleet staging" in err


def test_one_database_for_two_shards_is_refused_before_pubsub_is_asked(run, tmp_path, monkeypatch, nobody):
    monkeypatch.setenv("SHARDCTL_DATABASE_URL_S1", f"sqlite:///{tmp_path}/s0.db")
    nobody()
    code, out, err = run("provision")
    assert (code, out) == (1, "")
    assert "shards s0 and s1 have one database URL" in err
    assert not (tmp_path / "s0.db").exists()


def test_a_copy_is_taken_over(run, tmp_path):
    name, file = copy_of(tmp_path)
    assert run("provision")[0] == 0
    code, out, err = run("provision", "-f", str(file), "--take-over", name)
    assert code == 0
    assert "(shardctl_shard)" in out
    plan = json.loads(next(line for line in err.splitlines() if line.startswith("audit: ")).removeprefix("audit: "))
    assert plan["plan"]["take_over"] == [name]
    assert run("verify", "-f", str(file))[0] == 0
    assert run("provision")[0] == 1


def test_a_copy_with_consumers_is_refused_before_pubsub_is_asked(run, tmp_path, nobody):
    name, file = copy_of(tmp_path)
    assert run("provision")[0] == 0
    with create_engine(f"sqlite:///{tmp_path}/s1.db").begin() as connection:
        connection.execute(
            text(
                "INSERT INTO shardctl_replicas (replica, generations, seen_time) VALUES ('r-0', '1', CURRENT_TIMESTAMP)"
            )
        )
    nobody()
    code, out, err = run("provision", "-f", str(file), "--take-over", name)
    assert (code, out) == (1, "")
    assert f"belongs to shard s1 of fleet {name}, and its consumers run: r-0." in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--take-over", "a/b/c"], "--take-over wants FLEET or FLEET/SHARD"),
        (["--take-over", "a", "--no-databases"], "--no-databases and --take-over exclude each other"),
    ],
)
def test_what_cant_be_meant(run, arguments, sentence):
    code, _, err = run("provision", *arguments)
    assert code == 2
    assert sentence in err


def test_verify_asks_for_the_record_that_an_older_version_did_not_make(run, tmp_path):
    assert run("provision")[0] == 0
    with create_engine(f"sqlite:///{tmp_path}/s1.db").begin() as connection:
        connection.execute(text("DROP TABLE shardctl_shard"))
    code, _, err = run("verify")
    assert code == 0
    assert "warning: shard s1: its database doesn't say which fleet and shard it belongs to" in err
    assert run("provision")[0] == 0
    assert "warning" not in run("verify")[2]
