"""Sharded, exactly-once database writes over Pub/Sub, with live slot moves.

What producers import: `from shardctl import Publisher, Write, load_fleet`. Each name is loaded when it is first used, so that
importing the package costs nothing, and no module of the command line loads a cloud library that it doesn't need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardctl.fleet.load import load_fleet
    from shardctl.fleet.spec import Fleet
    from shardctl.fleet.spec_errors import SpecError
    from shardctl.outbox.outbox import Outbox, emit
    from shardctl.outcomes.effect import Effect
    from shardctl.publisher import Outcome, Publisher, PublishError
    from shardctl.reader.answer import PartialReadError
    from shardctl.reader.asyncreader import AsyncReader
    from shardctl.reader.errors import ReadError
    from shardctl.reader.reader import Reader
    from shardctl.wire.message import InvalidWriteError, Write

__all__ = [
    "AsyncReader",
    "Effect",
    "Fleet",
    "InvalidWriteError",
    "Outbox",
    "Outcome",
    "PartialReadError",
    "PublishError",
    "Publisher",
    "ReadError",
    "Reader",
    "SpecError",
    "Write",
    "emit",
    "load_fleet",
]

_HOMES = {
    "AsyncReader": "shardctl.reader.asyncreader",
    "Effect": "shardctl.outcomes.effect",
    "Fleet": "shardctl.fleet.spec",
    "InvalidWriteError": "shardctl.wire.message",
    "Outbox": "shardctl.outbox.outbox",
    "Outcome": "shardctl.publisher",
    "PartialReadError": "shardctl.reader.answer",
    "PublishError": "shardctl.publisher",
    "Publisher": "shardctl.publisher",
    "ReadError": "shardctl.reader.errors",
    "Reader": "shardctl.reader.reader",
    "SpecError": "shardctl.fleet.spec_errors",
    "Write": "shardctl.wire.message",
    "emit": "shardctl.outbox.outbox",
    "load_fleet": "shardctl.fleet.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
