"""`shardctl status` as it is called, and what it draws."""

import json
import re
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from fleets import text
from rich.console import Console
from status_kit import WORKING, Databases, backlogs, settled, transitional

from shardctl.cli import main
from shardctl.cli.status import _watch
from shardctl.rebalance.backlog import Backlog
from shardctl.status import drawing
from shardctl.status.collector import FleetFile
from shardctl.status.report import Unknown, Work, assemble

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "shards.yaml").write_text(text(("0-7", "8-15"), slot_bits=4))
    monkeypatch.chdir(tmp_path)
    for name in ("SHARDCTL_LOCAL_FLEET", "SHARDCTL_DATABASE_URL_S0", "SHARDCTL_PROMETHEUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    return tmp_path


def report(**more):
    fleet = settled()
    backlog_of = backlogs(fleet, orders_s0_g1=Backlog(1_234, 1_000_000_000 - 5_000_000, 1_000_000_000))
    return assemble(fleet, NOW, {"s0": Unknown("gone"), "s1": Unknown("gone")}, backlog_of, {"s0": WORKING} | more)


def test_a_line_names_the_fault():
    troubled = Work(applied=99, writes_per_second=3.2, replicas=2, ready=1, troubles=("replica r isn't ready",))
    assert drawing.line(report(s1=troubled)) == (
        "s0 2/2 ready, backlog 1,234, applied 10 (2.0/s)   s1 1/2 ready, backlog 0, applied 99 (3.2/s)   "
        "dead letters 0   strays 0   degraded: 1   not known: databases of s0, s1"
    )


def test_a_table_shows_what_is_not_known_as_such():
    cells = drawing.cells(report().shards[1])
    assert dict(zip(drawing.HEADERS, cells, strict=True)) == {
        "shard": "s1", "slots": "8", "ready": "?", "backlog": "0", "oldest": "0.0 s", "writes/s": "?", "rows a batch": "?",
        "lock waits/s": "?", "dups/s": "?", "dead": "?", "parked": "?", "inbox rows": "?", "inbox size": "?", "overdue": "?",
    }  # fmt: skip
    console = Console(width=100, record=True)
    console.print(drawing.table(report(), "the foot"))
    drawn = console.export_text()
    assert "not known: databases of s0, s1: gone" in drawn
    assert "the foot" in drawn


def test_the_inbox_is_shown_as_far_as_it_is_known():
    work = Work(replicas=2, ready=2, inbox_rows=1_234_567, inbox_bytes=119_700_000, inbox_overdue_seconds=0.0)
    shown = report(s0=work)
    cells = dict(zip(drawing.HEADERS, drawing.cells(shown.shards[0]), strict=True))
    assert (cells["inbox rows"], cells["inbox size"], cells["overdue"]) == ("1,234,567", "120 MB", "0.0 s")
    s0, s1 = drawing.as_json(shown)["shards"]
    assert (s0["inbox_rows"], s0["inbox_bytes"], s0["inbox_overdue_seconds"]) == (1_234_567, 119_700_000, 0.0)
    assert (s1["inbox_rows"], s1["inbox_bytes"], s1["inbox_overdue_seconds"]) == (None, None, None)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (8_192, "8.2 kB"), (3 * 10**12, "3.0 TB")])
def test_sizes_are_shown_in_a_unit_that_fits(count, text):
    assert drawing.size(count) == text


@pytest.mark.parametrize("width", [40, 60, 80, 130])
def test_a_narrow_terminal_shows_fewer_columns_and_breaks_none(width):
    console = Console(width=width, record=True)
    console.print(drawing.table(report()))
    drawn = console.export_text()
    lines = [line.strip() for line in drawn.splitlines()]
    header, *rows = (re.split("  +", line) for line in lines if line.startswith(("shard ", "s0 ", "s1 ")))
    shown = set(header)
    assert {"shard", "ready", "backlog", "dead"} <= shown <= set(drawing.HEADERS)
    assert [len(row) for row in rows] == [len(header)] * 2
    missing = [name for name in drawing.HEADERS if name not in shown]
    assert (f"since the terminal is narrow: {', '.join(missing)}" in " ".join(drawn.split())) == bool(missing)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (9.94, "9.9 s"), (59, "59 s"), (180, "3 min"), (7_200, "2 h"), (400_000, "5 d")]
)
def test_durations_are_shown_in_a_unit_that_fits(seconds, text):
    assert drawing.duration(seconds) == text


def test_nobody_at_all_is_refused(folder, capsys):
    assert main(["status"]) == 1
    out, err = capsys.readouterr()
    assert "nothing is known: no source" in err
    assert "not known: databases of s0, s1: no URL" in out
    assert "not known: backlog: nothing listens at PUBSUB_EMULATOR_HOST=127.0.0.1:1" in out


def test_json_has_null_for_what_is_unknown(folder, tmp_path, capsys):
    databases = Databases(tmp_path)
    assert main(["status", "--json", "--database", f"s0={databases.urls['s0']}"]) == 0
    document = json.loads(capsys.readouterr().out)
    s0, s1 = document["shards"]
    assert (s0["parked_keys"], s0["lanes"]["active"], s0["backlog"], s0["writes_per_second"]) == (0, 8, None, None)
    assert (s1["parked_keys"], s1["lanes"]) == (None, None)
    assert document["unknown"]["metrics"].startswith("where they are is unknown")
    assert s0["troubles"] == ["no consumer has read generation 1, which holds slots"]


def test_json_of_a_rebalance_has_its_stages(tmp_path):
    after = transitional()
    databases = Databases(tmp_path)
    databases.add("s2", after)
    databases.open_rebalance(after)
    from shardctl.status.collector import Collector, Sources

    sources = Sources(lambda _: databases.urls, lambda fleet: lambda _: backlogs(fleet), lambda _: {}, local=True)
    rebalance = drawing.as_json(Collector(sources).look(after).report)["rebalance"]
    assert rebalance["states"] == {"s0": "open", "s2": "open"}
    assert rebalance["stages"]["broken"] == 8  # nothing is announced yet
    assert json.dumps(rebalance)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--database", "s9=sqlite:///x"], "no shard 's9'"),
        (["--database", "s0"], "--database wants SHARD=URL"),
        (["--prometheus", "nowhere"], "--prometheus wants the URL"),
        (["-f", "none.yaml"], "none.yaml"),
    ],
)
def test_bad_input_is_reported_as_such(folder, capsys, arguments, message):
    assert main(["status", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_watch_says_once_that_its_file_cant_be_followed(folder, capsys):
    """What it goes on to show is of the file before."""

    class Collector:
        sources, looks = SimpleNamespace(pace_seconds=0.0), 0

        def look(self, _):
            self.looks += 1
            if self.looks == 1:
                (folder / "shards.yaml").write_text("fleet: 7")
            if self.looks == 4:
                raise KeyboardInterrupt
            return SimpleNamespace(report=report())

    assert _watch(Collector(), FleetFile(folder / "shards.yaml"), as_json=True) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert err.count("warning: the file isn't followed any more: ") == 1
    assert "shards.yaml:1: fleet: " in err
