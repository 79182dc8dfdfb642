"""The whole fleet under load on this machine, judged by the oracle."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Protocol

from shardctl.broker.faults import Faults
from shardctl.errors import ShardctlError, UsageError
from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet, Shard
from shardctl.local import manifests, oracle, pauses
from shardctl.local.feed import Feed
from shardctl.local.fleet import POLL_SECONDS, LocalFleet, new_folder
from shardctl.local.load import DUPLICATE_RATE, Stream
from shardctl.local.oracle import Finding, ShardVerdict, Verdict

REDELIVERY_RATE = 0.02
QUIET_SECONDS = 60.0  # without a settled message, after which the fleet is taken to be stuck
EXAMPLES = 5  # of each kind of difference


@dataclass(frozen=True, slots=True)
class Plan:
    """What to publish, and where to write: manifests to `directory/manifests`, the run to a folder of its own there."""

    directory: Path
    writes: int = 20_000
    entities: int = 5_000
    seed: int = 1
    keep: bool = False


@dataclass(frozen=True, slots=True)
class ShardReport:
    """`published` counts messages, duplicates included. Milliseconds run from publish to the writing transaction, at full load;
    None where the database's clock is too coarse to show it.
    """

    shard: str
    slots: int
    writes: int
    published: int
    publisher_duplicates: int
    redelivered: int
    applied: int
    rows_expected: int
    rows: int
    writes_per_second: float
    p50_ms: float | None
    p99_ms: float | None
    verified: bool


@dataclass(frozen=True, slots=True)
class Report:
    """`kept_in` is the run's folder where it was left: asked for, or because of differences."""

    verified: bool
    seed: int
    writes: int
    entities: int
    published: int
    publisher_duplicates: int
    redelivered: int
    applied: int
    dead_letters: int
    strays: int
    restarts: int
    manifests: int
    load_seconds: float
    writes_per_second: float
    consumers: dict[str, float]
    shards: tuple[ShardReport, ...]
    differences: dict[str, int]
    examples: tuple[str, ...]
    kept_in: str | None = None

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Watch(Protocol):
    """Receives the run's progress."""

    def done(self, what: str) -> None:
        """A stage has ended."""

    def progress(self, published: int, settled: int, total: int) -> None:
        """How many messages are published, how many settled, of about how many."""

    def warn(self, what: str) -> None:
        """Something unexpected happened."""


def run(fleet: Fleet, plan: Plan, watch: Watch) -> Report:
    """Render, start, provision, publish, drain, judge, stop. Raises ShardctlError when it can't come to a verdict."""
    if plan.entities > plan.writes:
        raise UsageError(f"{plan.entities:,} entities need at least as many writes, and there are {plan.writes:,}")
    rendered = manifests.write(fleet, plan.directory / "manifests")
    watch.done(f"{rendered} objects rendered into {plan.directory / 'manifests'} and checked")
    local = LocalFleet(
        fleet, new_folder(plan.directory), faults=Faults(seed=plan.seed, duplicate_rate=REDELIVERY_RATE), keep=plan.keep
    )
    try:
        _start(local, watch)
        feed = Feed(fleet, local.broker.host, Stream(fleet, plan.writes, plan.entities, plan.seed))
        seconds = _load(local, feed, plan, watch)
        verdict = oracle.verify(fleet, feed.writes, local.databases)
        watch.done("every row and every record read back and judged")
        report = _report(local, feed, plan, verdict, rendered, seconds)
        local.keep |= not report.verified
    except ShardctlError:
        local.keep = True  # the logs show why
        raise
    finally:
        local.stop()
        if not local.keep:
            shutil.rmtree(local.directory, ignore_errors=True)
    return dataclasses.replace(report, kept_in=str(local.directory) if local.keep else None)


def _start(local: LocalFleet, watch: Watch) -> None:
    local.start_servers()
    database = "PostgreSQL" if local.postgres else "SQLite"
    watch.done(f"broker (REST: {local.broker.rest_url}), Redis and {database} up")
    local.provision()
    watch.done(f"{len(local.subscriptions())} subscriptions and {len(local.databases)} databases provisioned")
    local.start_consumers()
    watch.done(f"{len(local.consumers)} consumers ready, {len(local.consumers) // len(local.replicas)} for each shard")


def _load(local: LocalFleet, feed: Feed, plan: Plan, watch: Watch) -> float:
    """Publish everything and wait until all of it is settled; the seconds that took."""
    started = time.monotonic()

    def look() -> None:
        for consumer in local.revive():
            watch.warn(f"{consumer.name} ended unexpectedly (see {consumer.log_file}); restarted")
        standing = local.subscriptions()
        ids = [name for shard in local.spec.shards for name in local.subscription_ids(shard)]
        settled = sum(standing[name]["counts"].get("acked", 0) for name in ids)
        total = max(feed.published, round(plan.writes * (1 + DUPLICATE_RATE))) if feed.running else feed.published
        watch.progress(feed.published, settled, total)

    feed.start()
    while feed.running:
        look()
        time.sleep(POLL_SECONDS)
    feed.join()
    local.wait_drained(QUIET_SECONDS, meanwhile=look)
    look()
    seconds = time.monotonic() - started
    watch.done(f"{feed.published:,} messages published and settled")
    return seconds


def _report(local: LocalFleet, feed: Feed, plan: Plan, verdict: Verdict, rendered: int, seconds: float) -> Report:
    standing = local.subscriptions()
    shards = tuple(
        _report_shard(local, local.spec.shard(judged.shard), judged, standing, seconds, feed.published_at)
        for judged in verdict.shards
    )
    dead = standing[topology.dead_letter_subscription(local.spec)]["undelivered"]
    strays = sum(standing[stray.id]["undelivered"] for stray in topology.strays(local.spec))
    return Report(
        verified=verdict.ok and not dead and not strays,
        seed=plan.seed,
        writes=len(feed.writes),
        entities=plan.entities,
        published=feed.published,
        publisher_duplicates=feed.duplicates,
        redelivered=sum(shard.redelivered for shard in shards),
        applied=sum(shard.applied for shard in shards),
        dead_letters=dead,
        strays=strays,
        restarts=sum(consumer.restarts for consumer in local.consumers),
        manifests=rendered,
        load_seconds=round(seconds, 3),
        writes_per_second=round(len(feed.writes) / seconds, 1),
        consumers=_consumers_tell(local),
        shards=shards,
        differences=verdict.counts,
        examples=tuple(map(str, examples(verdict.findings))),
    )


def _report_shard(
    local: LocalFleet,
    shard: Shard,
    judged: ShardVerdict,
    standing: dict[str, Any],
    seconds: float,
    published_at: Mapping[bytes, float],
) -> ShardReport:
    counts: Counter[str] = Counter()
    for name in local.subscription_ids(shard):
        counts.update(standing[name]["counts"])
    p50_ms, p99_ms = _latencies(local.database_url(shard.name), published_at)
    return ShardReport(
        shard=judged.shard,
        slots=judged.slots,
        writes=judged.writes,
        published=counts["acked"],
        publisher_duplicates=counts["acked"] - judged.writes,
        redelivered=counts["delivered"] - counts["acked"],
        applied=judged.applied,
        rows_expected=judged.rows_expected,
        rows=judged.rows,
        writes_per_second=round(judged.writes / seconds, 1),
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        verified=judged.ok,
    )


def _latencies(url: str, published_at: Mapping[bytes, float]) -> tuple[float | None, float | None]:
    """Milliseconds from publish to commit, at the median and the 99th percentile; None where the database doesn't report it."""
    commits = pauses.commits({"": url}, published_at, 0.0)
    if not commits:
        return None, None
    waited = sorted(commit.committed - commit.published for commit in commits)
    p50, p99 = (waited[ceil(len(waited) * part) - 1] * 1_000 for part in (0.5, 0.99))
    return round(p50, 1), round(p99, 1)


def _consumers_tell(local: LocalFleet) -> dict[str, float]:
    """The consumers' own counters. A restart resets them, so they are reported and not judged."""
    total: Counter[str] = Counter()
    for consumer in local.consumers:
        total.update(consumer.metrics())
    batches = total["shardctl_batch_rows_count"]
    return {
        "applied": total["shardctl_messages_applied_total"],
        "duplicates": total["shardctl_messages_duplicate_total"],
        "received": total["shardctl_messages_received_total"],
        "batches": batches,
        "rows_per_batch": round(total["shardctl_batch_rows_sum"] / batches, 1) if batches else 0.0,
        "locks_contended": total["shardctl_locks_contended_total"],
    }


def examples(findings: tuple[Finding, ...]) -> Iterator[Finding]:
    """A few of each kind."""
    shown: Counter[str] = Counter()
    for finding in findings:
        shown[finding.difference] += 1
        if shown[finding.difference] <= EXAMPLES:
            yield finding
