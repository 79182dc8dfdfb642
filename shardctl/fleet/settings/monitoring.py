"""`monitoring` of `shards.yaml`: what scrapes the consumers, and when alerts fire."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from shardctl.fleet.model import Model, OrJust
from shardctl.fleet.scalars import Between, LabelKey, LabelValue, Text, as_tuple

Stack = Literal["none", "managed-prometheus", "prometheus-operator", "cloud-monitoring"]

MetricName = Annotated[str, Text(r"[a-zA-Z_:][a-zA-Z0-9_:]*", "the name of a Prometheus metric", 200)]
AlertLabel = Annotated[
    str,
    Text(
        r"(?!__|(severity|alertname|shard|fleet)$)[a-zA-Z_][a-zA-Z0-9_]*",
        "a label of your own: letters, digits and '_' (severity, shard and fleet are taken)",
        100,
    ),
]
Place = Annotated[str, Text(r"[!-~]+", "a URL or a path, without blanks", 500)]


Channel = Annotated[
    str,
    Text(
        r"projects/[a-z][-a-z0-9]{4,28}[a-z0-9]/notificationChannels/[A-Za-z0-9_-]+",
        "a notification channel, projects/PROJECT/notificationChannels/ID",
        200,
    ),
]


class NotificationChannels(Model):
    """Who is notified, by the alert's severity. `gcloud monitoring channels list --format='value(name)'` prints the names."""

    critical: Annotated[tuple[Channel, ...], BeforeValidator(as_tuple)] = ()
    warning: Annotated[tuple[Channel, ...], BeforeValidator(as_tuple)] = ()


class Thresholds(Model):
    """Above which value an alert fires. A duration is how long a condition may last."""

    backlog_messages: Annotated[int, Field(ge=1, description="Undelivered messages of a shard.")] = 10_000
    oldest_message_age: Annotated[timedelta, Between("30s", "31d")] = timedelta(minutes=10)
    # The histogram's last bucket ends at 60 s, so no quantile of it exceeds that.
    handling_latency: Annotated[timedelta, Between("1s", "59s")] = timedelta(seconds=30)
    failure_percent: Annotated[float, Field(gt=0, le=100, description="Of a shard's batches, or of its writes.")] = 1
    unavailable_pods: Annotated[int, Field(ge=0, description="Of a shard: the most that may be missing.")] = 1
    memory_percent: Annotated[int, Field(ge=1, le=100, description="Of a container's memory limit.")] = 80
    dead_letters: Annotated[
        int, Field(ge=0, description="On the dead-letter subscription: the most that may be there.")
    ] = 0
    strays: Annotated[int, Field(ge=0, description="On the strays subscriptions: the most that may be there.")] = 0
    redis_degraded: Annotated[timedelta, Between("0s", "1d")] = timedelta(minutes=5)
    slot_failing: Annotated[timedelta, Between("10s", "1d")] = timedelta(minutes=2)
    slot_held: Annotated[timedelta, Between("10s", "1d")] = timedelta(minutes=5)
    outbox_age: Annotated[
        timedelta, Between("10s", "1d"), Field(description="Of the oldest write that waits in an outbox.")
    ] = timedelta(minutes=1)
    published_again: Annotated[
        int, Field(ge=0, description="Messages of a shard in 10 minutes that arrived after their slot's barrier.")
    ] = 0


class Monitoring(Model):
    stack: Annotated[
        Stack,
        Field(
            description="Google Cloud's managed Prometheus, the Prometheus Operator, Cloud Monitoring's own alert policies, or "
            "nothing rendered."
        ),
    ] = "none"
    managed_collection: Annotated[
        bool,
        Field(
            description="With `cloud-monitoring`: GKE's managed collection scrapes the consumers, so that no alert is missing. "
            "Without it, alerts come from logs and from Google Cloud's own metrics."
        ),
    ] = False
    notification_channels: Annotated[
        NotificationChannels, Field(description="With `cloud-monitoring`: who is notified.")
    ] = NotificationChannels()
    # Alerts look at windows of 5 minutes, and a rate needs a few samples.
    scrape_interval: Annotated[timedelta, Between("5s", "2m")] = timedelta(seconds=30)
    evaluation_interval: Annotated[timedelta, Between("5s", "10m")] = timedelta(seconds=30)
    labels: Annotated[
        dict[LabelKey, LabelValue],
        Field(description="On the objects of monitoring alone: what your Prometheus chooses them by."),
    ] = {}
    alert_labels: Annotated[
        dict[AlertLabel, LabelValue], Field(description="On every alert: what Alertmanager routes by.")
    ] = {}
    runbook_url: Annotated[
        Place, Field(description="Where your copy of docs/alerts.md is read; each alert links to its section of it.")
    ] = "docs/alerts.md"
    dashboard: Annotated[bool, Field(description="A Grafana dashboard in a ConfigMap, or one of Cloud Monitoring.")] = (
        True
    )
    backlog_metric: Annotated[
        MetricName | None, Field(description="Undelivered messages by subscription_id, where they are named otherwise.")
    ] = None
    oldest_age_metric: Annotated[
        MetricName | None, Field(description="Seconds of the oldest unacked message by subscription_id, likewise.")
    ] = None
    thresholds: Thresholds = Thresholds()

    @property
    def collector(self) -> Literal["managed-prometheus", "prometheus-operator"] | None:
        """What scrapes the consumers. None: nothing does."""
        if self.stack == "cloud-monitoring":
            return "managed-prometheus" if self.managed_collection else None
        return None if self.stack == "none" else self.stack

    @property
    def by_logs(self) -> bool:
        """Whether alerts go by logs and by Google Cloud's own metrics alone."""
        return self.stack == "cloud-monitoring" and not self.managed_collection


MonitoringSetting = Annotated[Monitoring, OrJust("stack", get_args(Stack))]
