"""Logs as Cloud Logging reads them: one JSON object a line, with `severity`, `message`, `action` and what it is about."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

import orjson

from shardctl.printable import printable_json
from shardctl.redaction import redacted

FIELDS = ("action", "slot", "generation", "message_id", "partition_key", "message_type")


_TRACEPARENT = re.compile(r"00-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})", re.ASCII)


class JsonFormatter(logging.Formatter):
    """`project` is the one whose traces are named."""

    def __init__(self, project: str = "", **labels: str) -> None:
        super().__init__()
        self._project, self._labels = project, labels

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "severity": record.levelname,
            "message": redacted(record.getMessage()),
            "logger": record.name,
            **self._labels,
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if found := _TRACEPARENT.fullmatch(getattr(record, "traceparent", "")):
            line["logging.googleapis.com/trace"] = f"projects/{self._project}/traces/{found['trace']}"
            line["logging.googleapis.com/spanId"] = found["span"]
            line["logging.googleapis.com/trace_sampled"] = bool(int(found["flags"], 16) & 1)
        if record.exc_info:
            line["stack_trace"] = redacted(self.formatException(record.exc_info))
        try:
            return printable_json(orjson.dumps(line, default=str).decode())
        except TypeError:  # half a surrogate pair somewhere: never lose a line for it
            return json.dumps(line, default=str)


def configure(level: str, project: str = "", **labels: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(project, **labels))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("google", "grpc", "sqlalchemy", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
