"""A rebalance's run in a process of its own, like `shardctl rebalance run`, so that publishing keeps its CPU.

`python -m shardctl.local.executor` reads a pickled job on stdin and reports its progress on stdout, a JSON object a line. It ends
when its reader does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from shardctl.errors import ShardctlError
from shardctl.fleet.spec import Fleet
from shardctl.rebalance.run import PARALLEL, Progress

TELL_SECONDS = 0.1
END_SECONDS = 10.0


class ExecutorError(ShardctlError):
    """The run has not handed every slot over."""


def run(
    fleet: Fleet,
    databases: Mapping[str, str],
    environment: Mapping[str, str],
    look: Callable[[Progress], object] = lambda _: None,
    parallel: int = PARALLEL,
) -> dict[str, Any]:
    """Hand every slot of a transitional fleet over; URLs by shard. `look` receives the progress, some times a second.

    Returns what `Stats.as_json` counts. Raises ExecutorError.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,  # Ctrl-C is for us
    )
    assert process.stdin
    assert process.stdout
    last: Progress | None = None
    stats: dict[str, Any] | None = None
    try:
        with process.stdin as job:
            pickle.dump((fleet, dict(databases), parallel), job)
        for line in process.stdout:
            record = json.loads(line)
            if "error" in record:
                raise ExecutorError(f"the run ended early: {record['error']}")
            if "stats" in record:
                stats = record["stats"]
            else:
                last = _read(record)
                look(last)
        process.wait(END_SECONDS)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if last is None or not last.ended or stats is None:
        raise ExecutorError(f"the run ended early, with exit code {process.returncode}")
    if not last.complete:
        raise ExecutorError("; ".join(last.failed) or f"{last.arrived:,} of {last.total:,} slots were handed over")
    return stats


def _read(record: dict[str, object]) -> Progress:
    return Progress(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()})  # type: ignore[arg-type]  # as it was written


def _work() -> None:
    from shardctl.rebalance.driver import BarrierPublisher, drive
    from shardctl.shard import database
    from shardctl.shard.membership import Membership

    fleet, databases, parallel = pickle.load(sys.stdin.buffer)  # noqa: S301 - from ourselves to ourselves
    told_at = 0.0

    def tell(progress: Progress, _: object) -> None:
        nonlocal told_at
        if progress.ended or time.monotonic() - told_at >= TELL_SECONDS:
            told_at = time.monotonic()
            print(json.dumps(dataclasses.asdict(progress)), flush=True)

    publish = BarrierPublisher(fleet)
    engines = {name: database.connect(url, whose=Membership(fleet.fleet, name)) for name, url in databases.items()}
    try:
        _, stats = drive(fleet, engines, publish, parallel=parallel, tell=tell)
        print(json.dumps({"stats": stats.as_json()}), flush=True)
    except ShardctlError as error:
        print(json.dumps({"error": str(error)}), flush=True)
    finally:
        for engine in engines.values():
            engine.dispose()
        publish.close()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the reader has ended
        _work()
