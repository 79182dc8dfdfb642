"""docs/quickstart.md, from its first command to its last, in two terminals. What needs a cluster or the network is left out."""

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

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"
ELSEWHERE = ("pip install", "kubectl", "provision")


def blocks() -> list[str]:
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if not any(word in block for word in ELSEWHERE)]


class Terminals:
    def __init__(self, folder: Path) -> None:
        self.folder, self.family = folder, []
        self.environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def stay(self, command: str, says: str) -> subprocess.Popen:
        """Start what stays, and wait until it says this."""
        log = self.folder / f"{len(self.family)}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder, env=self.environment, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.family.append(process)
        assert wait_until(lambda: re.search(says, log.read_text()) is not None, PATIENCE_SECONDS), log.read_text()
        return process

    def run(self, block: str) -> str:
        """In a terminal that has sourced what `up` wrote, where it has."""
        source = "[ ! -e build/env ] || . build/env\n"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", source + block],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=10 * PATIENCE_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        return done.stdout

    def close(self) -> None:
        descendants = [pid for process in self.family for pid in children(process.pid)]
        for process in reversed(self.family):
            process.send_signal(signal.SIGINT)
        for process in reversed(self.family):
            process.wait(PATIENCE_SECONDS)
        assert wait_until(lambda: not any(map(alive, descendants)), PATIENCE_SECONDS)


@pytest.fixture
def terminals(tmp_path):
    made = Terminals(tmp_path)
    yield made
    made.close()


@pytest.mark.proof
def test_every_command_of_the_page_works(terminals):
    run = []
    for block in blocks():
        for line in block.strip().splitlines():
            if line.startswith("shardctl up"):
                terminals.stay(line, "Ctrl-C stops it")
            elif line.startswith("shardctl ui"):
                terminals.run(". build/env")
                terminals.environment |= environment_of(terminals.folder)
                terminals.stay(line, r"http://127\.0\.0\.1:\d+/#")
            else:
                terminals.run(line)
            run.append(line)
    assert len(run) >= 9
    assert "rebalance go" in "".join(run)
    assert "customer" in terminals.run("shardctl verify -f tiny.yaml")
    assert "s2" in (terminals.folder / "tiny.yaml").read_text()


def environment_of(folder: Path) -> dict[str, str]:
    (file,) = folder.glob("build/run-*/env")
    return dict(re.findall(r"^export (\w+)='?([^'\n]*)'?$", file.read_text(), re.MULTILINE))
