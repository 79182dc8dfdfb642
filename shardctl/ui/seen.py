"""What the looks of this server have shown in the last hour: its time line where no Prometheus has kept one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Lock

from shardctl.status.history import DEAD, DEAD_TITLE, LAG, OLDEST_TITLE, SPAN_SECONDS, WRITES, Figure, History
from shardctl.status.report import Report, ShardStatus

STEP_SECONDS = 15


@dataclass(slots=True)
class _Kind:
    """How a figure is read from a look, and how the looks of one step become one value."""

    name: str
    title: str
    read: Callable[[ShardStatus], float | None]
    merged: Callable[[list[float]], float]


_KINDS = (
    _Kind(LAG, OLDEST_TITLE, lambda shard: shard.oldest_seconds, max),
    _Kind(WRITES, "Writes", lambda shard: shard.work.writes_per_second, lambda values: sum(values) / len(values)),
    _Kind(DEAD, DEAD_TITLE, lambda shard: shard.work.dead_lettered, max),
)


@dataclass(slots=True)
class Seen:
    """Steps without a look, and what was unknown in all looks of a step, stay None. Threads may share it."""

    _steps: dict[int, dict[tuple[str, str], list[float]]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def add(self, report: Report) -> None:
        with self._lock:
            self._add(report)

    def history(self) -> History:
        """From the first look of the hour to the last."""
        with self._lock:
            return self._history()

    def _add(self, report: Report) -> None:
        step = int(report.at.timestamp()) // STEP_SECONDS
        values = self._steps.setdefault(step, {})
        for shard in report.shards:
            for kind in _KINDS:
                value = kind.read(shard)
                if value is not None:
                    values.setdefault((kind.name, shard.name), []).append(value)
        for old in [number for number in self._steps if number <= step - SPAN_SECONDS // STEP_SECONDS]:
            del self._steps[old]

    def _history(self) -> History:
        if not self._steps:
            return History(0.0, STEP_SECONDS, ())
        first, last = min(self._steps), max(self._steps)
        return History(
            float(first * STEP_SECONDS),
            STEP_SECONDS,
            tuple(
                Figure(
                    kind.name,
                    kind.title,
                    {shard: tuple(self._values(kind, shard, first, last)) for shard in self._shards()},
                )
                for kind in _KINDS
            ),
        )

    def _shards(self) -> dict[str, None]:
        return {shard: None for values in self._steps.values() for _, shard in values}

    def _values(self, kind: _Kind, shard: str, first: int, last: int) -> Iterator[float | None]:
        for step in range(first, last + 1):
            values = self._steps.get(step, {}).get((kind.name, shard))
            yield kind.merged(values) if values else None
