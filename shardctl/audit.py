"""One line for each thing an operator does: who, what, to which fleet, by which plan, and how it ended.

An action begins when its plan is confirmed and its first effect is next; commands that only look leave no line. The line goes to
stderr, where pipelines keep it, and to the file that `SHARDCTL_AUDIT_LOG` names, if it does: JSON, one object a line.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shardctl.errors import EXIT_BUG, EXIT_DONE, EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_USAGE, ShardctlError

LOG_VARIABLE, ACTOR_VARIABLE = "SHARDCTL_AUDIT_LOG", "SHARDCTL_ACTOR"
_RESULTS = {
    EXIT_DONE: "done",
    EXIT_REFUSED: "refused",
    EXIT_USAGE: "usage",
    EXIT_BUG: "bug",
    EXIT_INTERRUPTED: "interrupted",
}


@dataclass(slots=True)
class Action:
    """What was begun. `plan` says what it will do, in numbers and names; never a secret."""

    name: str
    fleet: str
    plan: Mapping[str, Any]
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def line(self, code: int, ended: datetime) -> str:
        told = {
            "time": ended.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "actor": actor(),
            "action": self.name,
            "fleet": self.fleet,
            "plan": dict(self.plan),
            "result": _RESULTS.get(code, str(code)),
            "seconds": round((ended - self.began).total_seconds(), 3),
        }
        return json.dumps(told, ensure_ascii=False)


_under_way: list[Action] = []


def begin(name: str, fleet: str, **plan: Any) -> None:
    """Its first effect is next. Raises ShardctlError where the log can't be written: then nothing has been done yet."""
    path = os.environ.get(LOG_VARIABLE)
    if path:
        try:
            Path(path).open("a", encoding="utf-8").close()
        except OSError as error:
            raise ShardctlError(
                f"{LOG_VARIABLE}={path}: can't be written: {error.strerror}. Nothing was done."
            ) from error
    _under_way.append(Action(name, fleet, plan))


def end(code: int) -> list[str]:
    """The lines of what was begun, now that it ended with this exit code; they are in the log."""
    lines = [action.line(code, datetime.now(UTC)) for action in _under_way]
    _under_way.clear()
    path = os.environ.get(LOG_VARIABLE)
    if path and lines:
        try:
            with Path(path).open("a", encoding="utf-8") as log:
                log.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            lines.append(f"{LOG_VARIABLE}={path}: can't be written: {error.strerror}")
    return lines


def actor() -> str:
    """Who: `SHARDCTL_ACTOR`, which a pipeline sets, or the user at this machine."""
    if named := os.environ.get(ACTOR_VARIABLE):
        return named
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in a container
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
