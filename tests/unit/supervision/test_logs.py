"""Every log line is one JSON object that Cloud Logging reads, with any text in it."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from shardctl.supervision.logs import JsonFormatter


@pytest.mark.parametrize("text", ["plain", "ünï 🦆", "new\nline", "half \ud800 pair", "\x00"])
def test_every_log_line_is_one_json_object(text):
    record = logging.LogRecord("consumer", logging.WARNING, "", 0, "text: %s", (text,), None)
    record.action, record.slot = "test", 7
    line = JsonFormatter(shard="s0").format(record)
    assert "\n" not in line
    read = json.loads(line)
    assert (read["severity"], read["action"], read["slot"], read["shard"]) == ("WARNING", "test", 7, "s0")


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True)])
def test_a_line_about_a_traced_write_stands_beside_its_trace(flags, sampled):
    record = logging.LogRecord("consumer", logging.WARNING, "", 0, "dead-lettered", (), None)
    record.traceparent = f"00-{7:032x}-{8:016x}-{flags}"
    read = json.loads(JsonFormatter("my-project").format(record))
    assert read["logging.googleapis.com/trace"] == f"projects/my-project/traces/{7:032x}"
    assert (read["logging.googleapis.com/spanId"], read["logging.googleapis.com/trace_sampled"]) == (
        f"{8:016x}",
        sampled,
    )
    record.traceparent = "nonsense"
    assert not [name for name in json.loads(JsonFormatter("my-project").format(record)) if "trace" in name]


def test_a_traceback_stays_in_its_line():
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        record = logging.LogRecord("consumer", logging.ERROR, "", 0, "x", (), sys.exc_info())
    assert "ZeroDivisionError" in json.loads(JsonFormatter().format(record))["stack_trace"]
