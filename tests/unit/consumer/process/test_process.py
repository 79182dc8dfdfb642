"""The process around the work: what ends it, and that it ends silently."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import subprocess
import sys
import types

import pytest
from consumer_kit import CONFIG

from consumer.process.run import _live, log_formatter
from consumer.replica.maintenance import NotEndedError


class Startup:
    async def wait(self, stop):
        pass


class Life:
    async def run(self, stop):
        await stop.wait()


class Maintenance:
    """Ends at the stop, or by `error`; `hangs` in its last transaction."""

    def __init__(self, error=None, *, hangs=False):
        self.error, self.hangs = error, hangs

    async def run(self, stop):
        if self.error:
            raise self.error
        await stop.wait()
        if self.hangs:
            await asyncio.Event().wait()


def live(maintenance, *, stop_at_once=True):
    async def run():
        stop = asyncio.Event()
        if stop_at_once:
            asyncio.get_running_loop().call_later(0.01, stop.set)
        await _live(stop, Startup(), Life(), maintenance, types.SimpleNamespace(beat=lambda: None))

    asyncio.run(run())


def test_a_stop_leaves_no_line_of_an_error_behind(caplog):
    """asyncio reports an exception that nobody looked at when its task is collected."""
    caplog.set_level(logging.INFO)
    live(Maintenance())
    gc.collect()
    assert caplog.records == []


def test_a_bug_beside_the_work_stops_the_process_and_is_seen():
    with pytest.raises(KeyError, match="a bug"):
        live(Maintenance(KeyError("a bug")), stop_at_once=False)


def test_maintenance_that_doesnt_end_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("consumer.process.run.LEAST_SECONDS", 0.01)
    with pytest.raises(NotEndedError):
        live(Maintenance(hangs=True))


@pytest.mark.slow
def test_garbage_with_cycles_still_goes():
    """Seldom, but before it is many megabytes."""
    code = """
import gc
from consumer.process import collector
collector.hold()
collector.release()
for _ in range(1_000_000):
    cycle = []
    cycle.append(cycle)
left = sum(1 for each in gc.get_objects() if type(each) is list and each and each[0] is each)
assert left <= collector.THRESHOLDS[0], left
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_log_lines_name_the_replica_and_errors_the_fleets_consumers():
    settings = types.SimpleNamespace(config=CONFIG, replica="pod-1")
    try:
        raise ValueError("x")  # noqa: TRY301
    except ValueError:
        record = logging.LogRecord("consumer", logging.ERROR, "", 0, "x", (), sys.exc_info())
    line = json.loads(log_formatter(settings).format(record))
    assert (line["fleet"], line["shard"], line["replica"]) == (CONFIG.fleet, CONFIG.shard, "pod-1")
    assert line["serviceContext"]["service"] == f"{CONFIG.fleet}-consumer"
