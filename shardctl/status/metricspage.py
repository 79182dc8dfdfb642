"""A page of metrics in the text format of Prometheus, as consumers serve it."""

from __future__ import annotations


def read_metrics(text: str) -> dict[str, float]:
    """Counters, gauges, and histograms' sums and counts of a Prometheus page, by name."""
    metrics: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name and not name.startswith("#") and "_bucket" not in name and "_created" not in name:
            bare = name.partition("{")[0]
            metrics[bare] = metrics.get(bare, 0.0) + float(value)
    return metrics
