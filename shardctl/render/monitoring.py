"""Monitoring of the consumers: scraping, alert rules, a dashboard. None, unless the file asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from shardctl.render.alerts import Alert, alerts
from shardctl.render.dashboard import dashboard
from shardctl.render.objects import Object, Plan, seconds_text
from shardctl.render.templates import Lines


def pod_monitorings(plan: Plan) -> Iterator[Object]:
    yield from _scraping(plan, "managed-prometheus", "PodMonitoring")


def pod_monitors(plan: Plan) -> Iterator[Object]:
    yield from _scraping(plan, "prometheus-operator", "PodMonitor")


def _scraping(plan: Plan, stack: str, kind: str) -> Iterator[Object]:
    watching = plan.fleet.monitoring
    if plan.whole and watching.collector == stack:
        interval = seconds_text(watching.scrape_interval)
        yield plan.object(kind, plan.app, None, labels=_labels(plan), app=plan.app, interval=interval)


def namespace_rules(plan: Plan) -> Iterator[Object]:
    """Rules of managed Prometheus see only metrics from their own namespace."""
    if plan.whole and plan.fleet.monitoring.stack == "managed-prometheus":
        yield _rules(plan, "Rules", plan.app, (alert for alert in alerts(plan.fleet) if not alert.cloud))


def global_rules(plan: Plan) -> Iterator[Object]:
    """Metrics of Google Cloud itself carry neither our namespace nor our cluster: only GlobalRules see them."""
    if plan.whole and plan.fleet.monitoring.stack == "managed-prometheus":
        name = f"{plan.fleet.namespace}-{plan.app}"  # the whole cluster's, so it says whose it is
        yield _rules(plan, "GlobalRules", name, (alert for alert in alerts(plan.fleet) if alert.cloud))


def prometheus_rules(plan: Plan) -> Iterator[Object]:
    if plan.whole and plan.fleet.monitoring.stack == "prometheus-operator":
        yield _rules(plan, "PrometheusRule", plan.app, alerts(plan.fleet))


def _rules(plan: Plan, kind: str, name: str, alerts: Iterable[Alert]) -> Object:
    return plan.object(
        kind,
        name,
        None,
        labels=_labels(plan),
        group=plan.app,
        interval=seconds_text(plan.fleet.monitoring.evaluation_interval),
        rules=[_rule(plan, alert) for alert in alerts],
    )


def _rule(plan: Plan, alert: Alert) -> dict[str, object]:
    watching = plan.fleet.monitoring
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "lasts": seconds_text(alert.lasts) if alert.lasts else None,
        "labels": [*sorted(watching.alert_labels.items()), ("fleet", plan.fleet.fleet), ("severity", alert.severity)],
        "annotations": [
            ("summary", alert.summary),
            ("description", alert.description),
            ("runbook_url", f"{watching.runbook_url}#{alert.name.lower()}"),
        ],
    }


def dashboards(plan: Plan) -> Iterator[Object]:
    """A ConfigMap that Grafana's sidecar finds by its label."""
    watching = plan.fleet.monitoring
    if plan.whole and watching.stack in ("managed-prometheus", "prometheus-operator") and watching.dashboard:
        yield plan.object(
            "ConfigMap",
            f"{plan.fleet.fleet}-dashboard",
            None,
            template="dashboard",
            labels=sorted({**dict(_labels(plan)), "grafana_dashboard": "1"}.items()),
            file=f"{plan.fleet.fleet}.json",
            dashboard=Lines(json.dumps(dashboard(plan.fleet), indent=1) + "\n"),
        )


def _labels(plan: Plan) -> list[tuple[str, str]]:
    return sorted({**plan.fleet.monitoring.labels, **dict(plan.labels)}.items())
