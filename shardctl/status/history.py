"""The last hour of a fleet: lag, writes and dead letters of each shard, at equal steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from shardctl.fleet.spec import Fleet
from shardctl.render.series import Series
from shardctl.status.prometheus import WINDOW, Prometheus, PrometheusError, Range

SPAN_SECONDS = 3_600
STEP_SECONDS = 30
LAG, WRITES, DEAD = "lag", "writes", "dead"
UNITS = {LAG: "seconds", WRITES: "per second", DEAD: "writes"}
DEAD_TITLE = "Dead-lettered since the consumers started"
OLDEST_TITLE = "Age of the oldest message"


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured: `name` is one of UNITS. None stands where nothing is known."""

    name: str
    title: str
    values: Range


@dataclass(frozen=True, slots=True)
class History:
    """`began`, in seconds since 1970, is the moment of each figure's first value; the others follow in steps."""

    began: float
    step_seconds: int
    figures: tuple[Figure, ...]

    def as_json(self) -> dict[str, Any]:
        """For the page: figures with their units, rounded to what a line can show."""
        return {
            "began": self.began,
            "step_seconds": self.step_seconds,
            "figures": [
                {
                    "name": figure.name,
                    "title": figure.title,
                    "unit": UNITS[figure.name],
                    "shards": {
                        shard: [None if value is None else round(value, 2) for value in values]
                        for shard, values in figure.values.items()
                    },
                }
                for figure in self.figures
            ],
        }


def ask(server: Prometheus, fleet: Fleet) -> History:
    """From a Prometheus that scrapes the consumers. Raises PrometheusError."""
    points = SPAN_SECONDS // STEP_SECONDS
    began = time.time() - STEP_SECONDS * (points - 1)
    answers = server.ranges(queries(fleet), began, STEP_SECONDS, points)
    if not any(answers.values()):
        raise PrometheusError("it has no figures of this fleet's last hour")
    oldest = answers["oldest_age"]
    lag_title = OLDEST_TITLE if oldest else "From publishing to commit, 99th percentile"
    return History(
        began,
        STEP_SECONDS,
        (
            Figure(LAG, lag_title, oldest or answers["commit_age"]),
            Figure(WRITES, "Writes", answers["writes"]),
            Figure(DEAD, DEAD_TITLE, _from_zero(answers["dead_lettered"], answers["applied"], points)),
        ),
    )


def queries(fleet: Fleet) -> dict[str, str]:
    """Pub/Sub's own age of the oldest message is there only where something exports it."""
    series = Series(fleet)
    return {
        "oldest_age": series.oldest_age,
        "commit_age": series.quantile(0.99, "shardctl_publish_to_commit_seconds"),
        "writes": series.rate("shardctl_messages_applied_total", WINDOW),
        "applied": f"sum by (shard) ({series.own('shardctl_messages_applied_total')})",
        "dead_lettered": f"sum by (shard) ({series.own('shardctl_messages_dead_lettered_total')})",
    }


def _from_zero(dead: Range, applied: Range, points: int) -> Range:
    """Dead letters by shard. Their counter is labelled by reason: where consumers report and it doesn't exist, it is 0."""
    nothing: tuple[float | None, ...] = (None,) * points
    return {
        shard: tuple(
            count if count is not None else (None if known is None else 0.0)
            for count, known in zip(dead.get(shard, nothing), applied.get(shard, nothing), strict=True)
        )
        for shard in dict.fromkeys((*applied, *dead))
    }
