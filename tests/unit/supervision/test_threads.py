"""Threads that are started as calls need them, and that hold up no program's end."""

import logging
import subprocess
import sys
import threading

import pytest
from patience import PATIENCE_SECONDS

from shardctl.supervision.threads import DaemonThreads

log = logging.getLogger(__name__)


def test_calls_run_beside_each_other_up_to_the_bound():
    threads, met, go = DaemonThreads(2, "bounded", log), threading.Barrier(3), threading.Event()
    ran, done = [], threading.Semaphore(0)

    def wait():
        met.wait(PATIENCE_SECONDS)
        go.wait(PATIENCE_SECONDS)

    threads.submit(wait)
    threads.submit(wait)
    met.wait(PATIENCE_SECONDS)  # both have begun
    for number in range(3):
        threads.submit(lambda number=number: (ran.append(number), done.release()))
    assert sum(thread.name == "bounded" for thread in threading.enumerate()) == 2
    go.set()
    assert all(done.acquire(timeout=PATIENCE_SECONDS) for _ in range(3))
    assert sorted(ran) == [0, 1, 2]
    threads.shutdown()


def test_what_was_submitted_before_the_end_still_runs():
    threads, go, done = DaemonThreads(1, "t", log), threading.Event(), threading.Event()
    threads.submit(go.wait, PATIENCE_SECONDS)
    threads.submit(done.set)
    threads.shutdown()
    with pytest.raises(RuntimeError, match="stopped"):
        threads.submit(done.set)
    go.set()
    assert done.wait(PATIENCE_SECONDS)


def test_a_program_ends_while_a_call_hangs():
    code = """
import logging, threading
from shardctl.supervision.threads import DaemonThreads
DaemonThreads(1, "t", logging.getLogger()).submit(threading.Event().wait)
print("end")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    assert (done.stdout, done.stderr) == ("end\n", "")
