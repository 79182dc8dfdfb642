"""Logs: for a person at a terminal in plain words, elsewhere as Cloud Logging reads them, one JSON object a line."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

from shardctl.printable import printable, printable_json
from shardctl.redaction import redacted

_QUIET = ("uvicorn", "google", "grpc", "asyncio", "httpx", "httpcore")


class JsonFormatter(logging.Formatter):
    def __init__(self, **labels: str) -> None:
        super().__init__()
        self._labels = labels

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "severity": record.levelname,
            "message": redacted(record.getMessage()),
            "logger": record.name,
            **self._labels,
        }
        if hasattr(record, "action"):
            line["action"] = record.action
        if record.exc_info:
            line["stack_trace"] = redacted(self.formatException(record.exc_info))
        return printable_json(orjson.dumps(line, default=str).decode())


class PlainFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)))


def configure(level: str, **labels: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    plain = sys.stderr.isatty()
    handler.setFormatter(PlainFormatter() if plain else JsonFormatter(**labels))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in _QUIET:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
