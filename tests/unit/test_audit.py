"""Each thing an operator does leaves a line when it begins and one when it ends; looking leaves none."""

import json
import re
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest

from shardctl import audit
from shardctl.cli import main
from shardctl.errors import EXIT_DONE, ShardctlError


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


def test_what_is_done_leaves_two_lines_here_and_in_the_log(folder, capsys, monkeypatch):
    monkeypatch.setenv("SHARDCTL_AUDIT_LOG", str(folder / "audit.jsonl"))
    assert main(["adopt"]) == 1
    assert lines(capsys.readouterr().err) == []
    assert main(["adopt", "--yes"]) == 0
    begun, done = lines(capsys.readouterr().err)
    for line in (begun, done):
        assert (line["actor"], line["action"], line["fleet"]) == ("ana", "adopt", "orders")
        assert line["plan"] == {"rows": {"s0 users": 1, "s1 users": 1}}
    assert (begun["result"], begun["seconds"], done["result"]) == ("begun", 0, "done")
    assert begun["id"] == done["id"]
    assert [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()] == [begun, done]
    assert main(["adopt", "--yes"]) == 0  # nothing is left to do
    assert lines(capsys.readouterr().err) == []


def test_the_first_line_is_in_the_log_before_the_first_effect(folder, monkeypatch):
    log = folder / "audit.jsonl"
    monkeypatch.setenv("SHARDCTL_AUDIT_LOG", str(log))
    seen = []
    monkeypatch.setattr(
        "shardctl.verification.adopt.add_column", lambda *_: seen.append(json.loads(log.read_text())["result"])
    )
    main(["adopt", "--yes"])
    assert seen[0] == "begun"


@pytest.mark.parametrize(
    ("ends_by", "code", "result", "error"),
    [
        (ShardctlError("the database is gone"), 1, "failed", "the database is gone"),
        (KeyboardInterrupt(), 130, "interrupted", None),
        (ZeroDivisionError("division by zero"), 3, "bug", "ZeroDivisionError: division by zero"),
    ],
    ids=["an error", "Ctrl-C", "a bug"],
)
def test_a_failure_is_reported(folder, capsys, monkeypatch, ends_by, code, result, error):
    def fail(*_):
        raise ends_by

    monkeypatch.setattr("shardctl.verification.adopt.give_slots", fail)
    assert main(["adopt", "--yes"]) == code
    begun, ended = lines(capsys.readouterr().err)
    assert (begun["result"], ended["result"], ended.get("error")) == ("begun", result, error)


def test_without_its_log_nothing_is_done(folder, capsys, monkeypatch):
    monkeypatch.setenv("SHARDCTL_AUDIT_LOG", str(folder / "missing" / "audit.jsonl"))
    assert main(["adopt", "--yes"]) == 1
    assert "Nothing was done" in capsys.readouterr().err
    with sqlite3.connect(folder / "0.db") as connection:
        assert [row[1] for row in connection.execute("PRAGMA table_info(users)")] == ["user_id"]


def test_with_a_log_on_a_full_disk_nothing_is_done(folder, capsys, monkeypatch):
    monkeypatch.setenv("SHARDCTL_AUDIT_LOG", "/dev/full")
    assert main(["adopt", "--yes"]) == 1
    err = capsys.readouterr().err
    assert "No space left on device. Nothing was done" in err
    assert lines(err) == []


def test_a_line_is_json_whatever_the_plan(monkeypatch):
    monkeypatch.delenv("SHARDCTL_ACTOR", raising=False)
    began = datetime(2026, 1, 2, tzinfo=UTC)
    action = audit.Action("deadletter drop", "orders", {"key": 'ü"\n'}, began)
    line = json.loads(action.line("interrupted", began + timedelta(seconds=1.5), "SIGTERM"))
    assert (line["plan"], line["result"], line["seconds"], line["time"], line["error"]) == (
        {"key": 'ü"\n'}, "interrupted", 1.5, "2026-01-02T00:00:01.500Z", "SIGTERM",
    )  # fmt: skip
    assert "@" in line["actor"]


def test_actions_end_once(capsys):
    audit.begin("x", "orders")
    audit.end(EXIT_DONE)
    audit.end(EXIT_DONE)
    assert [line["result"] for line in lines(capsys.readouterr().err)] == ["begun", "done"]


def test_a_log_that_went_away_is_reported(tmp_path, monkeypatch, capsys):
    log = tmp_path / "log"
    monkeypatch.setenv("SHARDCTL_AUDIT_LOG", str(log))
    audit.begin("x", "orders")
    log.unlink()
    log.mkdir()
    audit.end(EXIT_DONE)
    err = capsys.readouterr().err
    assert f"SHARDCTL_AUDIT_LOG={log}: can't be written: Is a directory" in err
    assert [line["result"] for line in lines(err)] == ["begun", "done"]
