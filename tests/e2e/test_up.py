"""`shardctl up` from the command line: it ends in order, and never leaves a process behind."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from migrate_kit import revision_text
from patience import PATIENCE_SECONDS

from shardctl.local.servers.family import alive, children
from shardctl.local.servers.process import wait_until

pytestmark = pytest.mark.slow

FLEET = """
fleet: tiny
project: my-project
image: example.com/consumer:1
message_types:
  customer: {table: customers, key: customer_id, columns: {customer_id: text, name: text}}
shards: [{name: all, slots: 0-1023}]
local: {database: sqlite, replicas: 1}
"""


class Up:
    def __init__(self, folder: Path, fleet: str = FLEET, load: int = 50) -> None:
        (folder / "shards.yaml").write_text(fleet)
        self.log = folder / "up.log"
        command = (sys.executable, "-c", "import sys; from shardctl.cli import main; sys.exit(main())")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "up", "--load", str(load)], cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
        assert self.says(r"Ctrl-C stops it"), self.log.read_text()
        self.family = children(self.process.pid)

    def says(self, pattern: str) -> bool:
        return wait_until(lambda: re.search(pattern, self.log.read_text()) is not None, PATIENCE_SECONDS)

    def consumer(self) -> int:
        (pid,) = (pid for pid in children(self.process.pid) if b"--config" in Path(f"/proc/{pid}/cmdline").read_bytes())
        return pid

    def nobody_is_left(self) -> bool:
        return wait_until(lambda: not any(alive(pid) for pid in self.family), PATIENCE_SECONDS)


@pytest.fixture
def up(tmp_path):
    up = Up(tmp_path)
    yield up
    up.process.kill()
    up.process.wait()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the consumer in /proc")
def test_it_starts_dead_consumers_again_and_ends_in_order(up, tmp_path):
    first = up.consumer()
    os.kill(first, signal.SIGKILL)
    assert up.says("tiny-all-0 ended unexpectedly .* restarted")
    assert up.consumer() != first
    assert up.says(r"all 1/1 ready, backlog \d+, applied [1-9]")
    up.family = children(up.process.pid)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(PATIENCE_SECONDS) == 0
    assert up.says(r"\nstopped\n")
    assert up.nobody_is_left()
    assert "fork" not in up.log.read_text(), "gRPC complains of the processes that were started"
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["manifests"]


def test_nothing_outlives_it_when_it_is_killed(up):
    up.process.kill()
    up.process.wait()
    assert up.nobody_is_left()


MIGRATING = FLEET.replace("name: text}", "name: text, note: text}")


@pytest.mark.proof
def test_revisions_beside_the_file_are_applied_at_the_start_and_when_it_changes(tmp_path):
    """By the first `up` and a second one; a broken revision is an error that names its line, and leaves nothing behind."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    adding = "op.add_column('customers', sa.Column('{}', sa.Text()))"
    (folder / "r1.py").write_text(revision_text("r1", None, adding.format("extra")))
    for _ in range(2):
        up = Up(tmp_path, load=0)
        try:
            assert columns_of(tmp_path) == {"customer_id", "name", "slot", "extra"}
            (folder / "r2.py").write_text(revision_text("r2", "r1", adding.format("note")))
            (tmp_path / "shards.yaml").write_text(MIGRATING)
            assert up.says("shards.yaml changed and is applied"), up.log.read_text()
            assert "note" in columns_of(tmp_path)
            up.family = children(up.process.pid)
            up.process.send_signal(signal.SIGINT)
            assert up.process.wait(PATIENCE_SECONDS) == 0
            assert up.nobody_is_left()
        finally:
            up.process.kill()
            up.process.wait()
        (folder / "r2.py").unlink()
    for body, code, message in (
        ("pass\n    op.no_such_thing()", 1, r"migrations/r2\.py:\d+: AttributeError"),
        ("pass\n\ndef broken(:", 2, r"migrations/r2\.py:\d+: SyntaxError"),
    ):
        (folder / "r2.py").write_text(revision_text("r2", "r1", body))
        command = [sys.executable, "-m", "shardctl", "up", "--load", "0"]
        ended = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=10 * PATIENCE_SECONDS, check=False
        )
        assert (ended.returncode, bool(re.search(message, ended.stderr))) == (code, True), ended.stderr
        assert "Traceback" not in ended.stderr


def columns_of(folder):
    (file,) = folder.glob("build/run-*/env")
    path = re.search(r"SHARDCTL_DATABASE_URL_ALL='?sqlite:///([^'\n]*)", file.read_text())[1]
    with sqlite3.connect(path) as connection:
        return {row[1] for row in connection.execute("PRAGMA table_info(customers)")}
