"""The fleet's dashboard: backlog, throughput, latency, failures, slots, inboxes and pods, as Grafana imports it.

`rows` is the table of panels; Cloud Monitoring's dashboard is made of it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from shardctl.fleet.spec import Fleet
from shardctl.render.series import Series

SCHEMA_VERSION = 39
COLUMNS, HEIGHT = 24, 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(fleet: Fleet) -> dict[str, Any]:
    """As Grafana imports it. The viewer chooses the data source; nothing in it is tied to one."""
    return {
        "title": f"Shards of {fleet.fleet}",
        "uid": f"shardctl-{fleet.fleet}",  # at most 40 characters
        "tags": ["shardctl"],
        "schemaVersion": SCHEMA_VERSION,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}]
        },
        "panels": list(_laid_out(Series(fleet))),
    }


def _laid_out(series: Series) -> Iterator[dict[str, Any]]:
    numbers, top = count(1), 0
    for row, panels in rows(series):
        yield {
            "id": next(numbers),
            "type": "row",
            "title": row,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
        }
        width = COLUMNS // len(panels)
        for place, (title, unit, queries) in enumerate(panels):
            yield {
                "id": next(numbers),
                "type": "timeseries",
                "title": title,
                "datasource": DATASOURCE,
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
                "gridPos": {"x": place * width, "y": top + 1, "w": width, "h": HEIGHT},
                "targets": [
                    {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend}
                    for number, (legend, expr) in enumerate(queries)
                ],
            }
        top += 1 + HEIGHT


Panel = tuple[str, str, list[tuple[str, str]]]  # title, unit, and its queries by legend
SHARD, OUTBOX = "{{shard}}", "{{app}} {{shard}}"


def rows(series: Series) -> Iterator[tuple[str, list[Panel]]]:
    """Those that the fleet's monitoring has series for."""
    if series.fleet.monitoring.by_logs:
        yield from _rows_by_logs(series)
        return
    yield "Backlog", _backlog(series)
    yield "Throughput", _throughput(series)
    yield "Latency", _latencies(series)
    yield "Failures", _failures(series)
    yield "Slots", _slots(series)
    yield "Inboxes", _inboxes(series)
    if series.fleet.relay or any(kind.emits for kind in series.fleet.message_types.values()):
        yield "Outboxes", _outboxes(series)
    yield "Pods", _pods(series)


def _backlog(series: Series) -> list[Panel]:
    return [
        ("Undelivered messages", "short", [(SHARD, series.backlog)]),
        ("Oldest unacked message", "s", [(SHARD, series.oldest_age)]),
        ("Dead letters and strays", "short", [("dead letters", series.dead_letters), ("strays", series.strays)]),
    ]


def _throughput(series: Series) -> list[Panel]:
    return [
        ("Messages received", "ops", _rate(series, "messages_received")),
        ("Writes applied", "ops", _rate(series, "messages_applied")),
        ("Duplicates", "ops", _rate(series, "messages_duplicate")),
        ("Stale writes", "ops", _rate(series, "writes_stale")),
    ]


def _latencies(series: Series) -> list[Panel]:
    return [
        ("Batch, from start to acknowledgement", "s", _quantiles(series, "batch_seconds")),
        ("Message, from publish to commit", "s", _quantiles(series, "publish_to_commit_seconds")),
        ("Database transaction", "s", _quantiles(series, "transaction_seconds")),
        ("Messages per transaction", "short", _quantiles(series, "batch_rows")),
    ]


def _failures(series: Series) -> list[Panel]:
    dead_lettered = series.rate("shardctl_messages_dead_lettered_total", by="shard, reason")
    return [
        ("Batches retried", "ops", _rate(series, "batch_retries")),
        ("Writes dead-lettered", "ops", [(f"{SHARD} {{{{reason}}}}", dead_lettered)]),
        ("Writes parked", "ops", _rate(series, "messages_parked")),
        ("Longest failure of a slot", "s", _highest(series, "slot_failing_seconds")),
    ]


def _slots(series: Series) -> list[Panel]:
    passed_on = [
        (f"{SHARD} passed on", series.rate("shardctl_messages_passed_on_total")),
        (f"{SHARD} published again", series.rate("shardctl_messages_published_again_total")),
        (f"{SHARD} barriers", series.rate("shardctl_barriers_passed_total")),
    ]
    return [
        ("Lock conflicts", "ops", _rate(series, "locks_contended")),
        ("Longest hold of a slot", "s", _highest(series, "slot_held_seconds")),
        ("Messages held", "ops", _rate(series, "messages_held")),
        ("Passed on and published again", "ops", passed_on),
    ]


def _inboxes(series: Series) -> list[Panel]:
    return [
        ("Inbox rows", "short", _highest(series, "inbox_rows")),
        ("Inbox with indexes", "bytes", _highest(series, "inbox_bytes")),
        ("Inbox rows deleted", "ops", _rate(series, "inbox_rows_purged")),
        ("Oldest row past its retention", "s", _highest(series, "inbox_overdue_seconds")),
    ]


def _outboxes(series: Series) -> list[Panel]:
    published = f"sum by (app, shard) (rate({series.outboxes('shardctl_outbox_published_total')}[5m]))"

    def highest(name: str) -> list[tuple[str, str]]:
        return [(OUTBOX, f"max by (app, shard) ({series.outboxes(f'shardctl_outbox_{name}')})")]

    return [
        ("Writes that wait", "short", highest("rows")),
        ("Oldest write that waits", "s", highest("oldest_seconds")),
        ("Writes published", "ops", [(OUTBOX, published)]),
        ("Writes refused and kept", "short", highest("refused_rows")),
    ]


def _pods(series: Series) -> list[Panel]:
    dependencies = [
        (f"{SHARD} without locks", f"max by (shard) ({series.own('shardctl_redis_degraded')})"),
        (f"{SHARD} database", f"min by (shard) ({series.own('shardctl_database_up')})"),
    ]
    return [
        ("Ready", "short", [(SHARD, f"sum by (shard) ({series.own('shardctl_ready')})")]),
        ("Missing", "short", [(SHARD, series.unavailable)]),
        ("Memory, share of the limit", "percentunit", [("{{pod}}", series.memory)]),
        ("Messages in flight", "short", [(SHARD, f"sum by (shard) ({series.own('shardctl_messages_outstanding')})")]),
        ("Redis and database", "bool_on_off", dependencies),
    ]


def _rows_by_logs(series: Series) -> Iterator[tuple[str, list[Panel]]]:
    """Without the consumers' metrics: what Google Cloud and the logs say."""
    yield "Backlog", _backlog(series)
    yield (
        "Throughput",
        [
            ("Messages sent to consumers", "ops", [(SHARD, series.sent)]),
            ("Messages acknowledged", "ops", [(SHARD, series.acked("rate", "5m"))]),
        ],
    )
    yield (
        "Failures",
        [
            ("Batches retried", "ops", [(SHARD, series.logged_rate("batch-retries"))]),
            ("Writes dead-lettered", "ops", [(SHARD, series.logged_rate("dead-lettered"))]),
            ("Writes parked", "ops", [(SHARD, series.logged_rate("parked"))]),
        ],
    )
    yield (
        "Pods",
        [
            ("Missing", "short", [(SHARD, series.unavailable)]),
            ("Memory, share of the limit", "percentunit", [("{{pod}}", series.memory)]),
            ("Restarts in ten minutes", "short", [("{{pod_name}}", series.restarts)]),
        ],
    )


def _rate(series: Series, name: str) -> list[tuple[str, str]]:
    return [(SHARD, series.rate(f"shardctl_{name}_total"))]


def _highest(series: Series, name: str) -> list[tuple[str, str]]:
    return [(SHARD, f"max by (shard) ({series.own(f'shardctl_{name}')})")]


def _quantiles(series: Series, name: str) -> list[tuple[str, str]]:
    metric = f"shardctl_{name}"
    return [(f"{SHARD} p{quantile * 100:g}", series.quantile(quantile, metric)) for quantile in (0.5, 0.99)]
