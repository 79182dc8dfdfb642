"""The metrics of local consumers, read from each of them; rates are computed between two looks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from shardctl.status.localfile import LocalConsumer
from shardctl.status.metricspage import read_metrics
from shardctl.status.report import Work

TIMEOUT_SECONDS = 2.0
AT_ONCE = 16
MAX_PAGE_BYTES = 4 * 1024**2
_direct = build_opener(ProxyHandler({}))  # they are on loopback, whatever proxy is set

APPLIED, DUPLICATES = "shardctl_messages_applied_total", "shardctl_messages_duplicate_total"
CONTENDED, DEAD = "shardctl_locks_contended_total", "shardctl_messages_dead_lettered_total"
ROWS, BATCHES = "shardctl_batch_rows_sum", "shardctl_batch_rows_count"
COUNTERS = (APPLIED, DUPLICATES, CONTENDED, DEAD, ROWS, BATCHES)
INBOX_ROWS, INBOX_BYTES, INBOX_OVERDUE = "shardctl_inbox_rows", "shardctl_inbox_bytes", "shardctl_inbox_overdue_seconds"
READY, REDIS_DEGRADED, DATABASE_UP = "shardctl_ready", "shardctl_redis_degraded", "shardctl_database_up"


@dataclass(frozen=True, slots=True)
class Sample:
    """One replica's answer. `metrics` is empty without one; `not_ready` is the text of its readiness probe."""

    consumer: LocalConsumer
    metrics: Mapping[str, float]
    not_ready: str = ""


def samples(consumers: Sequence[LocalConsumer]) -> tuple[Sample, ...]:
    """The samples of all consumers, read concurrently."""
    if not consumers:
        return ()
    with ThreadPoolExecutor(min(AT_ONCE, len(consumers)), thread_name_prefix="metrics") as threads:
        return tuple(threads.map(_sample, consumers))


def _sample(consumer: LocalConsumer) -> Sample:
    status, text = _get(f"{consumer.url}/metrics")
    try:
        metrics = read_metrics(text) if status == 200 else {}
    except ValueError:
        metrics = {}  # another process has the port now
    if metrics and not metrics.get(READY):
        return Sample(consumer, metrics, _get(f"{consumer.url}/ready")[1].strip())
    return Sample(consumer, metrics)


def _get(url: str) -> tuple[int, str]:
    """Status and body; status 0 without an answer."""
    try:
        with _direct.open(url, timeout=TIMEOUT_SECONDS) as answer:
            return answer.status, answer.read(MAX_PAGE_BYTES).decode(errors="replace")
    except HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read(MAX_PAGE_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return 0, ""


class Rates:
    """Computes sums and rates of samples. A restarted replica counts from 0; its earlier counts stay in the sums."""

    def __init__(self) -> None:
        self._last: dict[str, Mapping[str, float]] = {}
        self._totals: dict[str, dict[str, float]] = {}
        self._taken: float | None = None

    def work(self, samples: Sequence[Sample], now: float | None = None) -> dict[str, Work]:
        """By shard. Rates are None at the first look, and where no replica answers."""
        now = time.monotonic() if now is None else now
        seconds = None if self._taken is None else max(0.001, now - self._taken)
        self._taken = now
        by_shard: dict[str, list[Sample]] = {}
        for sample in samples:
            by_shard.setdefault(sample.consumer.shard, []).append(sample)
        return {shard: self._work(shard, all_, seconds) for shard, all_ in by_shard.items()}

    def _work(self, shard: str, samples: Sequence[Sample], seconds: float | None) -> Work:
        grown, totals = dict.fromkeys(COUNTERS, 0.0), self._totals.setdefault(shard, dict.fromkeys(COUNTERS, 0.0))
        answered = [sample for sample in samples if sample.metrics]
        for sample in answered:
            before = self._last.get(sample.consumer.name)
            for counter in COUNTERS:
                value = sample.metrics.get(counter, 0.0)
                last = before.get(counter, 0.0) if before else 0.0
                growth = value - last if value >= last else value
                totals[counter] += growth
                grown[counter] += growth if before is not None else 0.0
            self._last[sample.consumer.name] = sample.metrics
        has_answers = bool(answered)
        rates = {name: grown[name] / seconds if has_answers and seconds else None for name in COUNTERS}
        rows, batches = (grown if grown[BATCHES] else totals)[ROWS], (grown if grown[BATCHES] else totals)[BATCHES]
        return Work(
            round(totals[APPLIED]) if has_answers else None,
            round(totals[DUPLICATES]) if has_answers else None,
            round(totals[DEAD]) if has_answers else None,
            rates[APPLIED],
            rates[DUPLICATES],
            rates[CONTENDED],
            rows / batches if has_answers and batches else None,
            len(samples),
            sum(sample.metrics.get(READY, 0.0) > 0 for sample in answered),
            frozenset(sample.consumer.name for sample in samples),
            tuple(trouble for sample in samples for trouble in _troubles(sample)),
            whole(_largest(answered, INBOX_ROWS)),
            whole(_largest(answered, INBOX_BYTES)),
            _largest(answered, INBOX_OVERDUE),
        )


def _largest(samples: Sequence[Sample], name: str) -> float | None:
    """Of replicas that report the same database, some a while ago. One that doesn't know has no such metric."""
    return max((sample.metrics[name] for sample in samples if name in sample.metrics), default=None)


def whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _troubles(sample: Sample) -> list[str]:
    name, metrics = sample.consumer.name, sample.metrics
    if not metrics:
        return [f"replica {name} doesn't answer"]
    troubles = []
    if not metrics.get(READY):
        troubles.append(f"replica {name} isn't ready" + (f" ({sample.not_ready[:200]})" if sample.not_ready else ""))
    if metrics.get(REDIS_DEGRADED):
        troubles.append(f"replica {name} works without Redis: replicas may repeat each other's work, nothing is lost")
    if metrics.get(DATABASE_UP) == 0:
        troubles.append(f"replica {name} can't reach the database")
    return troubles
