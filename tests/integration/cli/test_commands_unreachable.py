"""Every command where no service can be reached: what is unknown is an error or `?`, never a 0, and never exit 0 as an answer.

A new command has to take its place in the table below.
"""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import typer

from shardctl import provision, publisher
from shardctl.cli import app, main
from shardctl.deadletter import leasedreader, pubsub
from shardctl.fleet import scaffold
from shardctl.local.servers.process import free_port

pytestmark = pytest.mark.slow

# These ask nobody: with every service gone they do all their work.
OFFLINE = {
    "init": "init -f other.yaml",
    "validate": "validate",
    "schema": "schema",
    "route": "route x",
    "render": "render",
    "simulate": "simulate --rate 10",
    "rebalance plan": "rebalance plan --add s2 -o next.yaml",
}
# These run until they are ended, and are services themselves: tests of their own take services away from them.
SERVING = {"up", "demo", "broker", "gateway", "relay", "ui"}
# These ask Pub/Sub or databases, and can't do anything without an answer.
ASKING = {
    "adopt": ("adopt --yes", "database"),
    "provision": ("provision", "Pub/Sub"),
    "apply": ("apply --context nobody", "kubectl"),
    "job": ("job --context nobody -- status", "kubectl"),
    "diff": ("diff --no-kubernetes", "Pub/Sub"),
    "publish": ("publish writes.jsonl", "failed to connect"),
    "verify": ("verify --json", "database"),
    "deadletter list": ("deadletter list --json --wait 0.2", "can't be read"),
    "deadletter show": ("deadletter show 1 --json --wait 0.2", "can't be read"),
    "deadletter replay": ("deadletter replay --all --json --wait 0.2", "can't be read"),
    "deadletter drop": ("deadletter drop --all --json --wait 0.2", "can't be read"),
    "migrate plan": ("migrate plan --json", "database"),
    "migrate apply": ("migrate apply --yes --json", "database"),
    "migrate verify": ("migrate verify --json", "database"),
    "parked list": ("parked list --json", "database"),
    "parked show": ("parked show k --json", "database"),
    "parked release": ("parked release --all --json", "database"),
    "parked drop": ("parked drop k --yes --json", "database"),
    "outbox create": ("outbox create", "database"),
    "outbox list": ("outbox list --json", "database"),
    "outbox retry": ("outbox retry --all", "database"),
    "outbox drop": ("outbox drop --all --yes", "database"),
    "rebalance go": ("rebalance go --yes --json", "database"),
    "rebalance back": ("rebalance back --yes --json", "database"),
    "rebalance start": ("rebalance start --next next.yaml", "database"),
    "rebalance run": ("rebalance run --json", "database"),
    "rebalance status": ("rebalance status --json", "database"),
    "rebalance abort": ("rebalance abort --json", "database"),
    "rebalance finish": ("rebalance finish", "database"),
}
# The same commands asked otherwise.
ALSO = [
    ("provision --dry-run --json", "Pub/Sub"),
    ("relay --once --patience 0", "database"),
    ("deadletter list --strays --wait 0.2", "Pub/Sub"),
    ("deadletter list --parked --json", "database"),
    ("deadletter show k --parked --json", "database"),
    ("deadletter replay --parked --all --json", "database"),
    ("deadletter drop --parked k --yes --json", "database"),
    ("rebalance go --by-load --yes", "database"),
    ("rebalance plan --by-load -o next.yaml", "database"),
]
LOOKING = {"status", "migrate status"}


def commands(command, path=()):
    """The words of every command there is."""
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from commands(below, (*path, name))
    else:
        yield " ".join(path)


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A fleet of which no service answers; waits are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    for number in range(3):
        url = f"postgresql+psycopg://u:sekret@127.0.0.1:{free_port()}/d{number}"
        monkeypatch.setenv(f"SHARDCTL_DATABASE_URL_S{number}", url)
    monkeypatch.setenv("SHARDCTL_OUTBOX_DATABASE_URL", f"postgresql://u:sekret@127.0.0.1:{free_port()}/a")
    for module, name in ((provision, "_AGAIN"), (pubsub, "AGAIN"), (leasedreader, "AGAIN")):
        monkeypatch.setattr(module, name, getattr(module, name).with_timeout(0.5))
    monkeypatch.setattr(leasedreader, "TROUBLE_SECONDS", 0.5)
    monkeypatch.setattr(publisher, "connect", partial(publisher.connect, 0.1))
    monkeypatch.setattr(publisher, "Publisher", partial(publisher.Publisher, give_up_after_seconds=0.1))
    Path("shards.yaml").write_text(scaffold.text(2) + "\noperator: {}\n")
    Path("writes.jsonl").write_text('{"type": "customer", "body": {"customer_id": "a"}}\n')
    return tmp_path


def begin_a_rebalance():
    assert main(["rebalance", "plan", "--add", "s2", "-o", "next.yaml"]) == 0


def test_every_command_is_in_the_table():
    assert set(commands(typer.main.get_command(app))) == set(OFFLINE) | SERVING | set(ASKING) | LOOKING


@pytest.mark.parametrize("command", OFFLINE.values())
def test_what_asks_nobody_needs_nobody(nobody, capsys, command):
    assert main(command.split()) == 0


@pytest.mark.parametrize(
    ("command", "named"), [*ASKING.values(), *ALSO], ids=lambda value: value if " " in value else None
)
def test_what_cannot_be_answered_is_an_error(nobody, capsys, command, named):
    if command.startswith("rebalance") and "plan" not in command:
        begin_a_rebalance()
        if "start" not in command:
            Path("next.yaml").replace("shards.yaml")
    capsys.readouterr()
    assert main(command.split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert named in err
    assert not re.search(r"\b(0|no) (dead letters|strays|parked|rows|slots|faults)|Nothing matches|[Vv]erified", err)
    assert "bug" not in err
    assert "sekret" not in err


MAKING = {"outbox create"}  # and `provision`, which asks Pub/Sub first
OF_DATABASES = [
    command for command, named in (*ASKING.values(), *ALSO) if named == "database" and command not in MAKING
]


@pytest.mark.parametrize("command", [*OF_DATABASES, *sorted(LOOKING)])
def test_a_sqlite_file_that_is_missing_is_named_and_not_made(nobody, capsys, monkeypatch, command):
    for variable in ("SHARDCTL_OUTBOX_DATABASE_URL", *(f"SHARDCTL_DATABASE_URL_S{number}" for number in range(3))):
        monkeypatch.setenv(variable, f"sqlite:///{nobody}/missing-{variable[-2:]}.db")
    if command.startswith("rebalance") and "plan" not in command:
        begin_a_rebalance()
        if "start" not in command:
            Path("next.yaml").replace("shards.yaml")
    assert main(command.split()) == 1
    assert re.search(r"missing-\w\w\.db: there is no such file", "".join(capsys.readouterr()))
    assert not list(nobody.glob("missing*"))


def test_a_comparison_as_json_lists_what_is_unknown(nobody, capsys):
    assert main(["diff", "--no-kubernetes", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["kubernetes"] is None
    assert report["pubsub"]["differs"] is None
    assert "Pub/Sub" in report["pubsub"]["error"]


def test_a_look_shows_what_is_unknown_and_why(nobody, capsys):
    assert main(["status", "--prometheus", f"http://127.0.0.1:{free_port()}"]) == 1
    out, _ = capsys.readouterr()
    rows = [line.split() for line in out.splitlines() if re.match(r"s\d ", line)]
    assert [set(row[2:]) for row in rows] == [{"?"}, {"?"}]
    assert out.count("not known: ") >= 3
    assert main(["status", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    for shard in document["shards"]:
        assert {name for name, value in shard.items() if value == 0} == set()
        assert shard["backlog"] is None


def test_the_state_of_a_schema_is_unknown_where_its_database_is(nobody, capsys):
    assert main(["migrate", "status", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [(row["state"], row["revision"], row["pending"]) for row in document["shards"]] == [(None, None, None)] * 2
