"""What a window of work costs: CPU of each process, WAL, batches.

CPU time is what the kernel counted for a program and its processes. A busy machine makes it up to half larger; the time that
passes on the clock it makes many times as long.
"""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import time
from dataclasses import dataclass

import psutil

from bench.rig import SHARD
from shardctl.local import pauses
from shardctl.local.servers.install import find_installation

MIB = 1 << 20


@dataclass(frozen=True)
class Reading:
    """`handled` messages in `batches` transactions so far; CPU seconds by role; where the WAL ends."""

    at: float
    clock: float
    handled: int
    batches: float | None
    cpu: dict
    wal_end: str
    processors: Processors


@dataclass(frozen=True)
class Wal:
    """Bytes: of records without, and of full-page images alone."""

    records: int
    images: int


class Processors:
    """Who has had the machine's processors by the moment at which this is made."""

    def __init__(self):
        self._all, self._ours = psutil.cpu_times(), cpu_seconds(psutil.Process().pid)

    def elsewhere(self, until):
        """The part that neither we nor our servers took from this moment to the other."""
        passed = sum(until._all) - sum(self._all)
        return max(0.0, (passed - (until._all.idle - self._all.idle) - (until._ours - self._ours)) / passed)


class Meter:
    """Reads one consumer, whatever program it is, and the servers of its fleet. `counted` gives messages and batches so far."""

    def __init__(self, local, consumer_pid, counted):
        self._local, self._counted = local, counted
        self._pids = {
            "consumer": consumer_pid,
            "postgres": local.postgres.pid,
            "broker": local.broker.pid,
            "redis": local.redis.pid,
        }

    def read(self):
        handled, batches = self._counted()
        ((end,),) = self._local.query("SELECT pg_current_wal_flush_lsn()::text")
        cpu = {role: cpu_seconds(pid) for role, pid in self._pids.items()}
        return Reading(time.monotonic(), time.time(), handled, batches, cpu, end, Processors())

    def handled(self):
        return self._counted()[0]

    def resident_mib(self):
        return psutil.Process(self._pids["consumer"]).memory_info().rss / MIB

    def costs(self, first, last):
        """Figures a message of what happened between two readings."""
        handled = last.handled - first.handled
        micros = {role: (last.cpu[role] - first.cpu[role]) / handled * 1e6 for role in self._pids}
        wal = wal_between(self._local.postgres.pgdata, first.wal_end, last.wal_end)
        batches = None if first.batches is None else last.batches - first.batches
        return {
            "msgs_per_s": round(handled / (last.at - first.at)),
            **({"mean_batch_rows": round(handled / batches, 1)} if batches else {}),
            **{f"{role}_cpu_us_per_msg": round(micro, 1) for role, micro in micros.items()},
            "total_cpu_us_per_msg": round(sum(micros.values()), 1),
            "wal_bytes_per_msg": round(wal.records / handled),
            "wal_image_bytes_per_msg": round(wal.images / handled),
            "cpu_elsewhere": round(first.processors.elsewhere(last.processors), 2),
        }


def consumer_counts(local):
    """Of the product's consumer, by its own metrics."""
    metrics = local.consumer.metrics()
    handled = metrics.get("shardctl_messages_applied_total", 0) + metrics.get("shardctl_messages_duplicate_total", 0)
    return int(handled), metrics.get("shardctl_batch_rows_count", 0)


def cpu_seconds(pid):
    """Of a process, of all that live under it, and of those that have ended and were waited for."""
    root, seconds = psutil.Process(pid), 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            seconds += sum(process.cpu_times()[:4])
    return seconds


def wal_between(pgdata, start, end):
    """By PostgreSQL's own reading of the log, which must be on the disk up to `end`: what others insert meanwhile isn't."""
    installation = find_installation()
    program = str(installation.bin_dir / "pg_waldump")
    command = installation.command(program, "--stats", "--path", str(pgdata / "pg_wal"), "--start", start, "--end", end)
    reading = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    if reading.returncode:
        raise RuntimeError(f"pg_waldump: {reading.stderr.strip()}")
    total = re.search(r"^Total\s+\d+\s+(\d+) \[[^]]*\]\s+(\d+) \[", reading.stdout, re.MULTILINE)
    return Wal(int(total[1]), int(total[2]))


def commit_milliseconds(local, published_at, first, last):
    """From publish to commit of the messages that were published between two readings: p50 and p99 that occurred.

    `published_at`: when each write was sent, by its identity. By the commit's own time stamp; its flush to the disk is not in it.
    """
    commits = pauses.commits({"": local.database_url(SHARD)}, published_at, first.clock)
    waited = sorted(commit.committed - commit.published for commit in commits if commit.published < last.clock)
    return [round(waited[math.ceil(len(waited) * part) - 1] * 1_000, 1) for part in (0.5, 0.99)]
