"""Threads that are started as calls need them, and that hold up no program's end."""

import logging
import subprocess
import sys
import threading
from queue import Empty, SimpleQueue

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


def test_a_call_that_comes_while_a_thread_goes_idle_keeps_no_other_waiting():
    threads, met = DaemonThreads(3, "t", log), threading.Barrier(4)
    begun, second_idle, idlers = threading.Event(), threading.Event(), []

    def wait():
        begun.set()
        met.wait(PATIENCE_SECONDS)

    class Calls(SimpleQueue):
        """A call comes as the first thread has found none, and that thread is the one that runs it."""

        def get_nowait(self):
            if idlers and threading.current_thread() is not idlers[0]:
                begun.wait(PATIENCE_SECONDS)
            try:
                return super().get_nowait()
            except Empty:
                idlers.append(threading.current_thread())
                if len(idlers) == 1:
                    submitting = threading.Thread(target=threads.submit, args=(wait,))
                    submitting.start()
                    submitting.join(0.1)  # or it waits until this thread counts as idle
                else:
                    second_idle.set()
                raise

    threads._calls = Calls()
    threads.submit(lambda: None)
    assert begun.wait(PATIENCE_SECONDS)
    second_idle.wait(0.1)  # where there is a second one already
    threads.submit(wait)
    threads.submit(wait)
    met.wait(PATIENCE_SECONDS)  # all three run
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
