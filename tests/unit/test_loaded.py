"""`tests/loaded.py`: the command's exit code is its own, and nothing burns on after it."""

import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE_SECONDS

LOADED = Path(__file__).parents[1] / "loaded.py"
CHILDREN = "import os, pathlib; print(pathlib.Path(f'/proc/{os.getppid()}/task/{os.getppid()}/children').read_text())"


def loaded(*command):
    return subprocess.run(
        [sys.executable, LOADED, *command], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 1, 5])
def test_its_exit_code_is_the_commands(code):
    assert loaded(sys.executable, "-c", f"raise SystemExit({code})").returncode == code


def test_without_a_command_it_is_a_wrong_call():
    done = loaded()
    assert (done.returncode, "usage" in done.stderr) == (2, True)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_other_processes_burn_meanwhile_and_not_after_it():
    done = loaded(sys.executable, "-c", CHILDREN)
    burners = [int(pid) for pid in done.stdout.split()][:-1]
    assert burners
    assert not [pid for pid in burners if Path(f"/proc/{pid}").exists()]
