"""Logs: text on a terminal, else in the form of Cloud Logging, one JSON object a line."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import version

import orjson

from shardctl.printable import printable, printable_json
from shardctl.redaction import redacted

FIELDS = ("action", "slot", "generation", "message_id", "partition_key", "message_type")

# httpx and httpcore report each call: its URL with the query, and at length its headers.
NOISY = ("asyncio", "google", "grpc", "httpcore", "httpx", "sqlalchemy", "uvicorn")

_TRACEPARENT = re.compile(r"00-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})", re.ASCII)


REPORTED_ERROR = "type.googleapis.com/google.devtools.clouderrorreporting.v1beta1.ReportedErrorEvent"


class JsonFormatter(logging.Formatter):
    """Lines with `severity`, `message`, `action`, the labels, and what the record is about.

    `project` is the one whose traces are named. An error with a traceback has the form that Error Reporting collects, under
    the name of `service`.
    """

    def __init__(self, project: str = "", service: str = "shardctl", **labels: str) -> None:
        super().__init__()
        self._project, self._labels = project, labels
        self._service = {"service": service, "version": version("shardctl")}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "severity": record.levelname,
            "message": redacted(record.getMessage()),
            "logger": record.name,
            **self._labels,
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        parent = _TRACEPARENT.fullmatch(getattr(record, "traceparent", ""))
        if parent and self._project:
            line["logging.googleapis.com/trace"] = f"projects/{self._project}/traces/{parent['trace']}"
            line["logging.googleapis.com/spanId"] = parent["span"]
            line["logging.googleapis.com/trace_sampled"] = bool(int(parent["flags"], 16) & 1)
        if record.exc_info:
            line["stack_trace"] = redacted(self.formatException(record.exc_info))
            # Error Reporting reads the exception out of a traceback. Warnings with one are handled failures, and no reports.
            if record.levelno >= logging.ERROR and record.exc_info[2]:
                line |= {"@type": REPORTED_ERROR, "serviceContext": self._service}
        try:
            return printable_json(orjson.dumps(line, default=str).decode())
        except TypeError:  # half a surrogate pair somewhere: the line must not be lost
            return json.dumps(line, default=str)


class PlainFormatter(logging.Formatter):
    """For a person at a terminal."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)))


def configure(level: str, formatter: logging.Formatter) -> None:
    """Log to stderr; of noisy libraries only warnings and errors, whatever the level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
