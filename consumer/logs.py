"""Logs as Cloud Logging reads them: one JSON object a line, with `severity`, `message`, `action` and what it is about."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

import orjson

FIELDS = ("action", "slot", "generation", "message_id", "partition_key", "message_type")


class JsonFormatter(logging.Formatter):
    def __init__(self, **labels: str) -> None:
        super().__init__()
        self._labels = labels

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "severity": record.levelname,
            "message": record.getMessage(),
            "logger": record.name,
            **self._labels,
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["stack_trace"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # half a surrogate pair somewhere: never lose a line for it
            return json.dumps(line, default=str)


def configure(level: str, **labels: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(**labels))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("google", "grpc", "sqlalchemy", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
