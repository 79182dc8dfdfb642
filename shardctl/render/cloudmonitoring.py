"""Cloud Monitoring's alert policies and dashboard, and the log-based metrics that they go by: `monitoring: cloud-monitoring`.

Queries are PromQL, as in the rules of both Prometheus stacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shardctl.fleet.spec import Fleet
from shardctl.render import alerts, logmetrics
from shardctl.render.dashboard import Panel, rows
from shardctl.render.objects import Object, Plan, seconds_text
from shardctl.render.series import Series

COLUMNS, HEIGHT = 48, 16
_UNITS = {"s": "s", "bytes": "By"}
# Prometheus's templates as the variables of an alert policy's documentation; what else they do with a number, nothing does here.
_VARIABLES = (
    (r"\{\{ \$labels\.(\w+) \}\}", r"${metric_or_resource.label.\1}"),
    (r"\{\{ \$value \| humanizeDuration \}\}", "${metric.label.value} s"),
    (r"\{\{ \$value \| humanizePercentage \}\}", "${metric.label.value} (1 is all)"),
    (r"\{\{ \$value( \| humanize)? \}\}", "${metric.label.value}"),
)


@dataclass(frozen=True, slots=True)
class LogMetric:
    """`labels`: the field of a log line by the label that it becomes. `name`, here and below, is the object's in Kubernetes."""

    name: str
    description: str
    filter: str
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AlertPolicy:
    """`title` is unique in the project: a policy's id is the service's own. Durations are as the API writes them."""

    name: str
    title: str
    alert: str
    group: str
    severity: str
    query: str
    duration: str
    interval: str
    labels: tuple[tuple[str, str], ...]
    subject: str
    text: str
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    x: int
    y: int
    width: int
    height: int
    title: str
    queries: tuple[str, ...]
    unit: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    name: str
    title: str
    tiles: tuple[Tile, ...]


def log_metrics(plan: Plan) -> Iterator[Object]:
    if not plan.whole or not plan.fleet.monitoring.by_logs:
        return
    for metric in logmetrics.log_metrics(plan.fleet):
        made = LogMetric(
            logmetrics.metric_id(plan.fleet, metric.name),
            metric.description,
            logmetrics.filter_text(plan.fleet, metric),
            tuple((label, f"EXTRACT(jsonPayload.{field})") for label, field in metric.fields),
        )
        yield plan.object(
            "LoggingLogMetric",
            made.name,
            None,
            labels=_labels(plan),
            project=f"projects/{plan.fleet.project}",
            metric=made,
        )


def alert_policies(plan: Plan) -> Iterator[Object]:
    if not plan.whole or plan.fleet.monitoring.stack != "cloud-monitoring":
        return
    for alert in alerts.alerts(plan.fleet):
        policy = _policy(plan, alert)
        yield plan.object(
            "MonitoringAlertPolicy", policy.name, None, labels=_labels(plan), project=plan.fleet.project, policy=policy
        )


def _policy(plan: Plan, alert: alerts.Alert) -> AlertPolicy:
    watching = plan.fleet.monitoring
    runbook = f"{watching.runbook_url}#{alert.name.lower()}"
    return AlertPolicy(
        name=f"{plan.fleet.fleet}{_dashed(alert.name.removeprefix('Shardctl'))}",
        title=f"{plan.app}/{alert.name}",
        alert=alert.name,
        group=plan.app,
        severity=alert.severity.upper(),
        query=alert.expr,
        duration=seconds_text(alert.lasts),
        interval=seconds_text(watching.evaluation_interval),
        labels=(*sorted(watching.alert_labels.items()), ("fleet", plan.fleet.fleet), ("severity", alert.severity)),
        subject=_with_variables(alert.summary),
        text=f"{_with_variables(alert.summary)}.\n\n{_with_variables(alert.description)}\n\nRunbook: {runbook}",
        channels=getattr(watching.notification_channels, alert.severity),
    )


def _dashed(name: str) -> str:
    return re.sub("([A-Z])", r"-\1", name).lower()


def _with_variables(text: str) -> str:
    for pattern, variable in _VARIABLES:
        text = re.sub(pattern, variable, text)
    return text


def dashboards(plan: Plan) -> Iterator[Object]:
    watching = plan.fleet.monitoring
    if plan.whole and watching.stack == "cloud-monitoring" and watching.dashboard:
        board = Dashboard(f"{plan.fleet.fleet}-shards", f"Shards of {plan.fleet.fleet}", tuple(_tiles(plan.fleet)))
        yield plan.object(
            "MonitoringDashboard",
            board.name,
            None,
            labels=_labels(plan),
            project=f"projects/{plan.fleet.project}",
            board=board,
            columns=COLUMNS,
        )


def _tiles(fleet: Fleet) -> Iterator[Tile]:
    for line, (row, panels) in enumerate(rows(Series(fleet))):
        width = COLUMNS // len(panels)
        for place, panel in enumerate(panels):
            yield _tile(row, panel, place * width, line * HEIGHT, width)


def _tile(row: str, panel: Panel, x: int, y: int, width: int) -> Tile:
    title, unit, queries = panel
    named = tuple(query if len(queries) == 1 else _named(legend, query) for legend, query in queries)
    return Tile(x, y, width, HEIGHT, f"{row}: {title}", named, _UNITS.get(unit, "1"))


def _named(legend: str, query: str) -> str:
    """With a label that tells the lines of one chart apart: Cloud Monitoring's legend shows each line's labels."""
    name = re.sub(r"\{\{\w+\}\}", "", legend).strip()
    return f'label_replace({query}, "line", "{name}", "", "")'


# --- as the APIs read them, for Terraform and gcloud --------------------------------------------------------------------


def metric_body(metric: LogMetric) -> dict[str, Any]:
    descriptor: dict[str, Any] = {"metricKind": "DELTA", "valueType": "INT64", "unit": "1"}
    body = {"description": metric.description, "filter": metric.filter, "metricDescriptor": descriptor}
    if metric.labels:
        descriptor["labels"] = [{"key": label, "valueType": "STRING"} for label, _ in metric.labels]
        body["labelExtractors"] = dict(metric.labels)
    return body


def policy_body(policy: AlertPolicy) -> dict[str, Any]:
    """Accepted even while a metric that the query names doesn't exist yet."""
    condition = {
        "query": policy.query,
        "duration": policy.duration,
        "evaluationInterval": policy.interval,
        "ruleGroup": policy.group,
        "alertRule": policy.alert,
        "labels": dict(policy.labels),
        "disableMetricValidation": True,
    }
    return {
        "displayName": policy.title,
        "enabled": True,
        "severity": policy.severity,
        "combiner": "OR",
        "conditions": [{"displayName": policy.alert, "conditionPrometheusQueryLanguage": condition}],
        "documentation": {"mimeType": "text/markdown", "subject": policy.subject, "content": policy.text},
        "notificationChannels": list(policy.channels),
    }


def dashboard_body(board: Dashboard) -> dict[str, Any]:
    return {
        "displayName": board.title,
        "mosaicLayout": {"columns": COLUMNS, "tiles": [_tile_body(tile) for tile in board.tiles]},
    }


def _tile_body(tile: Tile) -> dict[str, Any]:
    data = [
        {"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": query, "unitOverride": tile.unit}}
        for query in tile.queries
    ]
    place = {"xPos": tile.x, "yPos": tile.y, "width": tile.width, "height": tile.height}
    return {**place, "widget": {"title": tile.title, "xyChart": {"dataSets": data}}}


# --- what can't be had --------------------------------------------------------------------------------------------------


def warnings(fleet: Fleet) -> Iterator[str]:
    if fleet.monitoring.stack != "cloud-monitoring":
        return
    if names := alerts.missing(fleet):
        yield (
            f"monitoring: cloud-monitoring can't have the alerts {', '.join(names)}: they take the consumers' own "
            "metrics, and ShardctlFailureRate doesn't count batches that are retried; `managed_collection: true` lets GKE "
            "collect these metrics"
        )
    silent = [
        severity
        for severity in ("critical", "warning")
        if not getattr(fleet.monitoring.notification_channels, severity)
    ]
    if silent:
        yield (
            f"monitoring.notification_channels names none for {' and '.join(silent)} alerts: their incidents open in Cloud "
            "Monitoring, and nobody is notified"
        )


def _labels(plan: Plan) -> list[tuple[str, str]]:
    return sorted({**plan.fleet.monitoring.labels, **dict(plan.labels)}.items())
