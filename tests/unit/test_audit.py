"""Each thing an operator does leaves a line; looking leaves none."""

import json
import re
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest

from shardctl import audit
from shardctl.cli import main
from shardctl.errors import EXIT_DONE, EXIT_INTERRUPTED, ShardctlError


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """A modulo fleet of one table, whose rows lack their slots."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHARDCTL_ACTOR", "ana")
    assert main(["init", "--from-modulo", "2"]) == 0
    for remainder in range(2):
        with sqlite3.connect(tmp_path / f"{remainder}.db") as connection:
            connection.execute("CREATE TABLE users (user_id bigint PRIMARY KEY)")
            connection.execute("INSERT INTO users VALUES (?)", (remainder,))
        monkeypatch.setenv(f"SHARDCTL_DATABASE_URL_S{remainder}", f"sqlite:///{tmp_path}/{remainder}.db")
    capsys.readouterr()
    return tmp_path


def lines(err):
    return [json.loads(line) for line in re.findall(r"^audit: (.*)$", err, re.MULTILINE)]


def test_what_is_done_leaves_a_line_here_and_in_the_log(folder, capsys, monkeypatch):
    monkeypatch.setenv("SHARDCTL_AUDIT_LOG", str(folder / "audit.jsonl"))
    assert main(["adopt"]) == 1
    assert lines(capsys.readouterr().err) == []
    assert main(["adopt", "--yes"]) == 0
    (line,) = lines(capsys.readouterr().err)
    assert (line["actor"], line["action"], line["fleet"], line["result"]) == ("ana", "adopt", "orders", "done")
    assert line["plan"] == {"rows": {"s0 users": 1, "s1 users": 1}}
    assert [json.loads(each) for each in (folder / "audit.jsonl").read_text().splitlines()] == [line]
    assert main(["adopt", "--yes"]) == 0  # nothing is left to do
    assert lines(capsys.readouterr().err) == []


def test_what_fails_says_so(folder, capsys, monkeypatch):
    monkeypatch.setattr("shardctl.adopt.give_slots", lambda *_: 1 / 0)
    assert main(["adopt", "--yes"]) == 3
    (line,) = lines(capsys.readouterr().err)
    assert line["result"] == "bug"


def test_without_its_log_nothing_is_done(folder, capsys, monkeypatch):
    monkeypatch.setenv("SHARDCTL_AUDIT_LOG", str(folder / "missing" / "audit.jsonl"))
    assert main(["adopt", "--yes"]) == 1
    assert "Nothing was done" in capsys.readouterr().err
    with sqlite3.connect(folder / "0.db") as connection:
        assert [row[1] for row in connection.execute("PRAGMA table_info(users)")] == ["user_id"]


def test_a_line_is_json_whatever_the_plan(monkeypatch):
    monkeypatch.delenv("SHARDCTL_ACTOR", raising=False)
    began = datetime(2026, 1, 2, tzinfo=UTC)
    action = audit.Action("deadletter drop", "orders", {"key": 'ü"\n'}, began)
    told = json.loads(action.line(EXIT_INTERRUPTED, began + timedelta(seconds=1.5)))
    assert (told["plan"], told["result"], told["seconds"], told["time"]) == (
        {"key": 'ü"\n'}, "interrupted", 1.5, "2026-01-02T00:00:01.500Z",
    )  # fmt: skip
    assert "@" in told["actor"]


def test_actions_end_once():
    audit.begin("x", "orders")
    assert len(audit.end(EXIT_DONE)) == 1
    assert audit.end(EXIT_DONE) == []


def test_a_log_that_went_away_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDCTL_AUDIT_LOG", str(tmp_path))
    with pytest.raises(ShardctlError, match="can't be written"):
        audit.begin("x", "orders")
    audit.end(EXIT_DONE)
