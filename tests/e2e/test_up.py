"""`shardctl up` from the command line: it ends in order, and never leaves a process behind."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
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
