"""What a command does when stdout or stderr takes nothing: never exit 0 for data that a full disk lost, never a traceback."""

import json
import os
import sys
from threading import Event

import pytest
from patience import PATIENCE_SECONDS

from shardctl.cli import main, terminal
from shardctl.fleet import scaffold

COMMANDS = [
    "--help",
    "--version",
    "schema",
    "validate",
    "validate --json",
    "route x",
    "render",
    "render --format gcloud",
    "simulate --rate 10",
    "rebalance plan --add s3 -o -",
    "rebalance status --json",
    "init --help",
]


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = scaffold.text(3)
    (tmp_path / "shards.yaml").write_text(text)
    return text


@pytest.fixture
def stream(monkeypatch):
    """Puts a file in the place of stdout or stderr."""
    files = []

    def put(name, path_or_handle):
        file = open(path_or_handle, "w", buffering=1 if name == "stderr" else -1)  # noqa: PTH123, SIM115
        files.append(file)
        monkeypatch.setattr(sys, name, file)

    yield put
    for file in files:
        file.close()  # raises where it still holds what the disk didn't take


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_an_error(fleet, stream, capsys, command):
    stream("stdout", "/dev/full")
    assert main(command.split()) == 1
    err = capsys.readouterr().err
    assert "error: stdout: can't be written: No space left on device. What was printed is incomplete." in err
    assert "bug" not in err


@pytest.mark.slow
@pytest.mark.parametrize(("command", "code"), [*((command, 0) for command in COMMANDS), ("render --check .", 1)])
def test_a_reader_that_has_had_enough_leaves_the_command_its_result(fleet, stream, capsys, command, code):
    reader, writer = os.pipe()
    os.close(reader)
    stream("stdout", writer)
    assert main(command.split()) == code
    err = capsys.readouterr().err
    assert "error" not in err
    assert "bug" not in err


def test_an_encoding_without_a_character_gets_its_escape(fleet, monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding="latin-1") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert main(["route", "kü→", "--json"]) == 0
    shown = (tmp_path / "out").read_text(encoding="latin-1")
    assert "kü\\u2192" in shown
    assert json.loads(shown)["key"] == "kü→"


def test_a_closed_stdout_is_refused_before_anything_is_done(fleet, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["init", "-f", "new.yaml"]) == 1
    assert "stdout is closed" in capsys.readouterr().err
    assert not (tmp_path / "new.yaml").exists()


def test_a_full_stderr_stops_no_command(fleet, tmp_path, stream, capsys):
    stream("stderr", os.open("/dev/full", os.O_WRONLY))
    assert main(["init", "-f", "new.yaml"]) == 0
    assert (tmp_path / "new.yaml").read_text() == fleet
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # lets it be closed


def test_a_closed_stderr_puts_no_talk_among_the_data(fleet, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["validate", "--json"]) == 0
    assert capsys.readouterr().out.startswith("{")


def test_a_bug_is_reported_where_no_file_can_keep_its_traceback(fleet, monkeypatch, capsys):
    monkeypatch.setattr("shardctl.fleet.scaffold.text", lambda *_: 1 / 0)
    monkeypatch.setattr("tempfile.tempdir", "/proc/nothing")
    assert main(["init", "-f", "new.yaml"]) == 3
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "the traceback above" in err


def test_a_long_wait_is_not_silent(monkeypatch):
    heard, lines = Event(), []
    monkeypatch.setattr(terminal, "WAITING_SECONDS", 0.01)
    monkeypatch.setattr(terminal, "say", lambda line: (lines.append(line), heard.set()))
    with terminal.waiting(lambda: "Pub/Sub"):
        assert heard.wait(PATIENCE_SECONDS)
    assert lines[0].startswith("still waiting for Pub/Sub, ")
