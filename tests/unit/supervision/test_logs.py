"""Every log line is one JSON object that Cloud Logging reads, with any text in it."""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import version

import pytest
from fleets import fleet as fleet_of

from shardctl.gateway.server import log_formatter as gateway_formatter
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
def test_a_log_line_about_a_traced_write_names_its_trace(flags, sampled):
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


def test_without_a_project_no_trace_is_named():
    record = logging.LogRecord("consumer", logging.WARNING, "", 0, "dead-lettered", (), None)
    record.traceparent = f"00-{7:032x}-{8:016x}-01"
    assert not [name for name in json.loads(JsonFormatter().format(record)) if "trace" in name]


def failure(level):
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        return logging.LogRecord("consumer", level, "", 0, "x", (), sys.exc_info())


def test_an_error_with_a_traceback_has_the_form_that_error_reporting_collects():
    read = json.loads(JsonFormatter("my-project", "orders-consumer").format(failure(logging.ERROR)))
    assert read["@type"].endswith("devtools.clouderrorreporting.v1beta1.ReportedErrorEvent")
    assert read["serviceContext"] == {"service": "orders-consumer", "version": version("shardctl")}
    assert read["stack_trace"].startswith("Traceback (most recent call last):\n")
    assert read["stack_trace"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    "record",
    [
        failure(logging.WARNING),
        logging.LogRecord("consumer", logging.ERROR, "", 0, "x", (), None),
        logging.LogRecord("consumer", logging.ERROR, "", 0, "x", (), (ValueError, ValueError("y"), None)),
    ],
    ids=["a warning", "no exception", "an exception that was never raised"],
)
def test_no_other_line_is_reported_as_an_error(record):
    """Error Reporting can't read an exception from them, and would count them as entries without a form."""
    assert not {"@type", "serviceContext"} & set(json.loads(JsonFormatter("my-project").format(record)))


def test_the_gateway_names_its_fleet_and_project():
    fleet = fleet_of(["0-1023"])
    read = json.loads(gateway_formatter(fleet).format(failure(logging.ERROR)))
    assert (read["fleet"], read["serviceContext"]["service"]) == (fleet.fleet, f"{fleet.fleet}-gateway")
