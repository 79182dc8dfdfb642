"""Two lines for each action of an operator: its begin and its outcome. Who, what, on which fleet, by which plan.

An action begins when its plan is confirmed and its first effect is next; commands that only read leave no line. Lines go to
stderr, where pipelines keep them, and to the file that `SHARDCTL_AUDIT_LOG` names, if it does: JSON, one object a line. A line
`begun` without another one of its `id` means that the process or the machine was killed; what was done until then stays done.
"""

from __future__ import annotations

import errno
import getpass
import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from shardctl.errors import EXIT_BUG, EXIT_DONE, EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_USAGE, EXIT_WAITING, ShardctlError
from shardctl.printable import printable_json
from shardctl.redaction import redacted

LOG_VARIABLE, ACTOR_VARIABLE = "SHARDCTL_AUDIT_LOG", "SHARDCTL_ACTOR"
BEGUN, FAILED = "begun", "failed"
MAX_ERROR_CHARACTERS = 500
_RESULTS = {
    EXIT_DONE: "done",
    EXIT_REFUSED: "refused",
    EXIT_USAGE: "usage",
    EXIT_BUG: "bug",
    EXIT_WAITING: "waiting",
    EXIT_INTERRUPTED: "interrupted",
}


@dataclass(slots=True)
class Action:
    """An action that was begun. `plan` says what it will do, in numbers and names; never a secret."""

    name: str
    fleet: str
    plan: Mapping[str, Any]
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    def line(self, result: str, at: datetime, error: str = "") -> str:
        """`error` is what ended it, if something did."""
        entry = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "id": self.id,
            "actor": actor(),
            "action": self.name,
            "fleet": self.fleet,
            "plan": dict(self.plan),
            "result": result,
            "seconds": round((at - self.began).total_seconds(), 3),
        }
        entry |= {"error": error[:MAX_ERROR_CHARACTERS]} if error else {}
        return printable_json(json.dumps(_redacted(entry), ensure_ascii=False))


def _redacted(data: Any) -> Any:
    if isinstance(data, str):
        return redacted(data)
    if isinstance(data, Mapping):
        return {_redacted(name): _redacted(value) for name, value in data.items()}
    return [_redacted(value) for value in data] if isinstance(data, list | tuple) else data


_under_way: list[Action] = []


def begin(name: str, fleet: str, **plan: Any) -> None:
    """Record the begin, just before the first effect. Raises ShardctlError where the log can't be written."""
    action = Action(name, fleet, plan)
    line = action.line(BEGUN, action.began)
    try:
        _log(line)
    except OSError as error:
        raise ShardctlError(f"{_cannot_log(error)}. Nothing was done.") from error
    _under_way.append(action)
    _tell(f"audit: {line}")


def end(code: int, error: str = "") -> None:
    """Record the end of the action with this exit code; `error` says why, if an error or a signal ended it."""
    result = FAILED if code == EXIT_REFUSED and error else _RESULTS.get(code, str(code))
    for action in _under_way:
        line = action.line(result, datetime.now(UTC), error)
        try:
            _log(line)
        except OSError as fault:
            _tell(f"warning: {_cannot_log(fault)}", always=True)
        _tell(f"audit: {line}")
    _under_way.clear()


def _log(line: str) -> None:
    """Durable on return, and in one piece: others may write to the same log."""
    path = os.environ.get(LOG_VARIABLE)
    if not path:
        return
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        data = f"{line}\n".encode(errors="backslashreplace")
        if os.write(handle, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with suppress(OSError):  # a pipe or a device
            os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_log(error: OSError) -> str:
    return f"{LOG_VARIABLE}={os.environ.get(LOG_VARIABLE)}: can't be written: {error.strerror}"


def _tell(line: str, *, always: bool = False) -> None:
    """On stderr, except on a terminal where the log has it: nobody needs to read it twice."""
    if always or not (sys.stderr.isatty() and os.environ.get(LOG_VARIABLE)):
        with suppress(OSError):  # a closed stderr must not stop the action
            print(line, file=sys.stderr, flush=True)


def actor() -> str:
    """The actor: `SHARDCTL_ACTOR`, which a pipeline sets, or the user of this machine."""
    if named := os.environ.get(ACTOR_VARIABLE):
        return named
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in a container
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
