"""`shardctl rebalance go` beside a local fleet, in a process of its own as a person would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from shardctl.errors import ShardctlError
from shardctl.rebalance.run import Progress


class OneCommand:
    """Begins at once. `folder` takes what it prints: events in `rebalance.jsonl`, messages in `rebalance.log`."""

    def __init__(self, folder: Path, file: Path, environment: Mapping[str, str], *arguments: str) -> None:
        self._log = folder / "rebalance.log"
        event_log = folder / "rebalance.jsonl"
        with event_log.open("w") as out, self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "shardctl", "rebalance", "go", "-f", str(file), "--yes", "--json", *arguments],
                stdout=out,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C is for us
            )
        self._events = event_log.open("rb")

    def events(self) -> Iterator[dict[str, Any]]:
        """Those since the last call, without waiting for more. Raises ShardctlError where no more will come."""
        code = self._process.poll()
        while (line := self._events.readline()).endswith(b"\n"):
            yield json.loads(line)
        self._events.seek(-len(line), os.SEEK_CUR)  # what is half written comes whole the next time
        if code is not None:
            raise ShardctlError(f"`shardctl rebalance go` ended with exit code {code}; its log: {self._log}")

    def kill(self) -> None:
        """As if the machine had stopped; of one that has ended, nothing."""
        self._process.kill()
        self._process.wait()
        self._events.close()


def moment_of(event: Mapping[str, Any]) -> float:
    """When it happened, in seconds since 1970."""
    return datetime.fromisoformat(event["time"]).timestamp()


def progress_of(event: Mapping[str, Any]) -> Progress:
    """As far as an event reports it."""
    return Progress(
        total=event["slots"],
        arrived=event["handed_over"],
        waiting=0,
        settling=0,
        barriers=0,
        copying=event["copying"],
        preparing=0,
        catching_up=0,
        failed=(),
        trouble=tuple(event["trouble"]),
        ended=False,
    )
