"""`monitoring: cloud-monitoring`: the rules of Prometheus as alert policies, and what logs can't tell said by name."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_monitoring import FLEET, KEYS, RELAY, judge, replicas, rule_file, run

from shardctl.errors import UsageError
from shardctl.fleet.load import fleet_from
from shardctl.fleet.settings.gateway import KeysSecret
from shardctl.fleet.spec import Fleet
from shardctl.fleet.yamlfile import parse
from shardctl.render import documents, gcloud, logmetrics, terraform, warnings
from shardctl.render.alerts import alerts, missing

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "alerts.md").read_text()
KINDS = ["LoggingLogMetric", "MonitoringAlertPolicy", "MonitoringDashboard", "PodMonitoring", "ConfigMap"]
COLLECTED = "{stack: cloud-monitoring, managed_collection: true}"


def fleet_of(monitoring: str = "cloud-monitoring", more: str = "") -> Fleet:
    """With a gateway that asks for keys and a relay, so that every alert is there."""
    return fleet_from(parse(FLEET.format(monitoring=monitoring) + more)).model_copy(
        update={"gateway": KEYS, "relay": RELAY}
    )


def rendered(fleet: Fleet, kind: str) -> dict[str, dict[str, Any]]:
    items = [yaml.safe_load(document.text) for document in documents(fleet, kinds=KINDS)]
    return {item["metadata"]["name"]: item.get("spec", {}) for item in items if item["kind"] == kind}


def policies(fleet: Fleet) -> dict[str, dict[str, Any]]:
    return {
        policy["conditions"][0]["displayName"]: policy for policy in rendered(fleet, "MonitoringAlertPolicy").values()
    }


def condition(policy: dict[str, Any]) -> dict[str, Any]:
    (only,) = policy["conditions"]
    return only["conditionPrometheusQueryLanguage"]  # type: ignore[no-any-return]


# --- one table --------------------------------------------------------------------------------------------------------


def test_collected_metrics_give_the_alerts_of_managed_prometheus() -> None:
    rules = {alert.name: alert for alert in alerts(fleet_of("managed-prometheus"))}
    made = policies(fleet_of(COLLECTED))
    assert list(made) == list(rules)
    for name, rule in rules.items():
        asked = condition(made[name])
        assert (asked["query"], asked["duration"]) == (rule.expr, f"{int(rule.lasts.total_seconds())}s")
        assert made[name]["severity"] == rule.severity.upper()
    assert missing(fleet_of(COLLECTED)) == ()


def test_without_them_each_alert_is_there_or_is_named_as_missing() -> None:
    fleet = fleet_of()
    names = [alert.name for alert in alerts(fleet_of("managed-prometheus"))]
    assert sorted([*policies(fleet), *missing(fleet)]) == sorted(names)
    assert any(all(name in sentence for name in missing(fleet)) for sentence in warnings(fleet))


def test_the_page_names_what_is_missing() -> None:
    section = PAGE.partition("## Cloud Monitoring without Prometheus")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(Shardctl\w+)` \| (.*?) \|", section, re.MULTILINE))
    fleet = fleet_of()
    assert {name for name, way in rows.items() if way.startswith("none")} == set(missing(fleet))
    assert set(rows) == {alert.name for alert in alerts(fleet_of("managed-prometheus"))}


def test_thresholds_and_durations_are_the_files() -> None:
    made = policies(
        fleet_of(
            "{stack: cloud-monitoring, thresholds: {backlog_messages: 7, failure_percent: 2.5, redis_degraded: 11m, "
            "slot_failing: 12m, unavailable_pods: 3, memory_percent: 55}}"
        )
    )
    assert condition(made["ShardctlBacklog"])["query"].endswith(" > 7")
    assert condition(made["ShardctlFailureRate"])["query"].count(" > 0.025") == 2
    assert condition(made["ShardctlRedisDegraded"])["duration"] == "660s"
    assert condition(made["ShardctlSlotFailing"])["duration"] == "720s"
    assert condition(made["ShardctlPodsUnavailable"])["query"].endswith(" > 3")
    assert condition(made["ShardctlMemory"])["query"].endswith(" > 0.55")


@pytest.mark.parametrize("monitoring", ["cloud-monitoring", COLLECTED])
def test_a_policy_says_what_and_where_in_cloud_monitorings_words(monitoring: str) -> None:
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)}
    for name, policy in policies(fleet_of(monitoring)).items():
        text = policy["documentation"]["content"]
        assert "{{" not in text
        assert f"\n\nRunbook: docs/alerts.md#{name.lower()}" in text
        assert name.lower() in anchors
        assert condition(policy)["labels"]["fleet"] == "orders"
    assert (
        "Shard ${metric_or_resource.label.shard} falls behind"
        in policies(fleet_of())["ShardctlBacklog"]["documentation"]["content"]
    )


def test_channels_go_by_severity() -> None:
    channels = "{critical: [projects/my-project/notificationChannels/1], warning: [projects/my-project/notificationChannels/2]}"
    fleet = fleet_of(f"{{stack: cloud-monitoring, notification_channels: {channels}}}")
    for policy in policies(fleet).values():
        number = {"CRITICAL": 1, "WARNING": 2}[policy["severity"]]
        assert policy["notificationChannels"] == [{"external": f"projects/my-project/notificationChannels/{number}"}]
    assert not any("nobody is notified" in sentence for sentence in warnings(fleet))
    assert any("critical and warning alerts" in sentence for sentence in warnings(fleet_of()))


# --- logs -------------------------------------------------------------------------------------------------------------


def test_every_action_that_is_counted_is_logged() -> None:
    code = {
        container: "".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
        for container, folders in {
            "consumer": ("consumer", "shardctl/outbox"),
            "relay": ("shardctl/outbox",),
            "gateway": ("shardctl/gateway", "shardctl/supervision"),
        }.items()
    }
    for metric in logmetrics.log_metrics(fleet_of()):
        for action in metric.actions:
            assert all(f'"{action}"' in code[container] for container in metric.containers), action


def test_every_log_based_metric_is_asked_for_and_every_one_that_is_asked_for_is_there() -> None:
    fleet = fleet_of()
    charts = json.dumps([*policies(fleet).values(), *rendered(fleet, "MonitoringDashboard").values()])
    asked = set(re.findall(r"logging_googleapis_com:user_(\w+)\{", charts))
    assert asked == {name.replace("-", "_") for name in rendered(fleet, "LoggingLogMetric")}


def test_only_what_a_fleet_has_is_counted() -> None:
    fleet = fleet_from(parse(FLEET.replace("  b: {{http", "  # {{http").format(monitoring="cloud-monitoring")))
    assert not [metric for metric in logmetrics.log_metrics(fleet) if metric.name.startswith(("gateway", "breakers"))]
    assert rendered(fleet_of(COLLECTED), "LoggingLogMetric") == {}


# --- alerts fire, and don't, as Prometheus judges them ----------------------------------------------------------------

S0, S1 = {"shard": "s0"}, {"shard": "s1"}


def logged(name: str, values: str, labels: str = 'shard="s0",pod_name="p"') -> dict[str, str]:
    series = f'logging_googleapis_com:user_orders_{name}{{monitored_resource="k8s_container",project_id="my-project",{labels}}}'
    return {"series": series, "values": values}


def acked(values: str, subscription: str = "orders-s0-g1") -> dict[str, str]:
    labels = f'project_id="my-project",subscription_id="{subscription}"'
    return {"series": f"pubsub_googleapis_com:subscription_ack_message_count{{{labels}}}", "values": values}


def running(pod: str) -> dict[str, str]:
    labels = (
        'monitored_resource="k8s_container",project_id="my-project",namespace_name="writers",container_name="consumer",'
        f'pod_name="{pod}"'
    )
    return {"series": f"kubernetes_io:container_uptime{{{labels}}}", "values": "60+60x30"}


def pods_of(component: str, available: int) -> dict[str, str]:
    labels = f'namespace="writers",deployment="orders-{component}"'
    return {"series": f"kube_deployment_status_replicas_available{{{labels}}}", "values": f"{available}x30"}


def pods(*series: Any) -> list[dict[str, str]]:
    return [{"series": f"{name}{{{labels}}}", "values": values} for (name, labels), values in series]


KEY = 'pod_name="g"'
TYPED = 'shard="s0",pod_name="p",type="b"'
OF_RELAY, IN_RELAY = 'container_name="relay",pod_name="r"', {"container_name": "relay"}
CASES: list[tuple[str, str, list[dict[str, str]], dict[str, str] | None]] = [
    ("ShardctlParked", "one", [logged("parked", "0x20 1x10")], S0),
    ("ShardctlParked", "long ago", [logged("parked", "0 1x30")], None),
    ("ShardctlBarriersRefused", "one", [logged("barriers_refused", "0x20 1x10")], S0),
    ("ShardctlBarriersRefused", "long ago", [logged("barriers_refused", "0 1x30")], None),
    ("ShardctlFailureRate", "two in a hundred", [logged("dead_lettered", "0+2x30"), acked("0+100x30")], S0),
    ("ShardctlFailureRate", "parked", [logged("parked", "0+2x30"), acked("0+100x30")], S0),
    ("ShardctlFailureRate", "one in a thousand", [logged("dead_lettered", "0+1x30"), acked("0+1000x30")], None),
    ("ShardctlRedisDegraded", "for ten minutes", [logged("redis_lost", "0x14 1x9 2x6")], S0),
    ("ShardctlRedisDegraded", "for hours", [logged("redis_lost", "1x5 2x9 3x9 4x6")], S0),
    ("ShardctlRedisDegraded", "back again", [logged("redis_lost", "0x16 1x13"), logged("redis_back", "0x22 1x7")], None),
    (
        "ShardctlRedisDegraded",
        "one of two is back",
        [
            logged("redis_lost", "0x16 1x13"),
            logged("redis_lost", "0x16 1x13", 'shard="s0",pod_name="q"'),
            logged("redis_back", "0x22 1x7"),
        ],
        S0,
    ),
    ("ShardctlBreakerOpen", "still", [logged("breakers_opened", "0x10 1x19", TYPED)], S0 | {"type": "b"}),
    (
        "ShardctlBreakerOpen",
        "closed",
        [logged("breakers_opened", "0x10 1x19", TYPED), logged("breakers_closed", "0x20 1x9", TYPED)],
        None,
    ),
    ("ShardctlSlotFailing", "the whole shard", [logged("batch_retries", "0+6x30"), acked("7x30")], S0),
    ("ShardctlSlotFailing", "nothing ever succeeded", [logged("batch_retries", "0+6x30")], S0),
    ("ShardctlSlotFailing", "others are written", [logged("batch_retries", "0+6x30"), acked("0+50x30")], None),
    (
        "ShardctlSlotFailing",
        "while another shard is well",
        [logged("batch_retries", "0+6x30"), acked("0+50x30", "orders-s1-g1")],
        S0,
    ),
    ("ShardctlPodsUnavailable", "two", pods(*replicas("deployment", "orders-s0", 4, 2)), S0),
    ("ShardctlPodsUnavailable", "one", pods(*replicas("statefulset", "orders-s1", 4, 3)), None),
    ("ShardctlSilent", "no container", [], {
        "monitored_resource": "k8s_container", "project_id": "my-project", "namespace_name": "writers",
        "container_name": "consumer",
    }),
    ("ShardctlSilent", "one container", [running("orders-s1-0")], None),
    ("ShardctlGatewayDown", "none available", [pods_of("gateway", 0)], {}),
    ("ShardctlGatewayDown", "none there", [], {}),
    ("ShardctlGatewayDown", "one available", [pods_of("gateway", 1)], None),
    ("ShardctlRelayDown", "none available", [pods_of("relay", 0)], {}),
    ("ShardctlRelayDown", "one available", [pods_of("relay", 1)], None),
    ("ShardctlOutboxOldest", "for ten minutes", [logged("outbox_waits", "0x14 1x15", OF_RELAY)], IN_RELAY),
    (
        "ShardctlOutboxOldest",
        "works again",
        [logged("outbox_waits", "0x14 1x15", OF_RELAY), logged("outbox_works", "0x20 1x9", OF_RELAY)],
        None,
    ),
    ("ShardctlOutboxRefused", "one", [logged("outbox_refused", "0x20 1x10", OF_RELAY)], IN_RELAY),
    ("ShardctlOutboxRefused", "long ago", [logged("outbox_refused", "0 1x30", OF_RELAY)], None),
    ("ShardctlGatewayKeys", "a bad line", [logged("gateway_keys_failing", "0x20 1x9", KEY)], {}),
    (
        "ShardctlGatewayKeys",
        "corrected",
        [logged("gateway_keys_failing", "0x20 1x9", KEY), logged("gateway_keys_back", "0x23 1x6", KEY)],
        None,
    ),
]  # fmt: skip


def rule(policy: dict[str, Any]) -> dict[str, Any]:
    """A policy's condition as a rule of Prometheus."""
    asked = condition(policy)
    return {"alert": asked["alertRule"], "expr": asked["query"], "for": asked["duration"], "labels": asked["labels"]}


@pytest.mark.slow
@pytest.mark.parametrize(("alert", "name", "series", "labels"), CASES, ids=[f"{case[0]}: {case[1]}" for case in CASES])
def test_an_alert_by_logs_fires_when_it_should_and_not_else(
    alert: str, name: str, series: list[dict[str, str]], labels: dict[str, str] | None, promtool: str, tmp_path: Path
) -> None:
    tested = rule(policies(fleet_of())[alert])
    expected = [] if labels is None else [{"exp_labels": {**tested["labels"], **labels}}]
    judge(promtool, tmp_path, tested, series, 25, expected)


def test_each_alert_by_logs_has_a_case_that_fires_and_one_that_doesnt() -> None:
    same = {alert.name for alert in alerts(fleet_of("managed-prometheus")) if alert.cloud}
    for alert in alerts(fleet_of()):
        if alert.name not in same:
            assert {labels is not None for name, _, _, labels in CASES if name == alert.name} == {True, False}, (
                alert.name
            )


@pytest.mark.slow
@pytest.mark.parametrize("monitoring", ["cloud-monitoring", COLLECTED])
def test_prometheus_takes_every_query(monitoring: str, promtool: str, tmp_path: Path) -> None:
    fleet = fleet_of(monitoring)
    queries = [
        data["timeSeriesQuery"]["prometheusQuery"]
        for board in rendered(fleet, "MonitoringDashboard").values()
        for tile in board["mosaicLayout"]["tiles"]
        for data in tile["widget"]["xyChart"]["dataSets"]
    ]
    assert len(queries) > 10
    charts = [{"record": f"q{number}", "expr": query} for number, query in enumerate(queries)]
    run(promtool, "check", "rules", rule_file([*map(rule, policies(fleet).values()), *charts], tmp_path))


# --- objects ----------------------------------------------------------------------------------------------------------


def test_only_collected_consumers_are_scraped_and_grafana_gets_nothing() -> None:
    assert rendered(fleet_of(), "PodMonitoring") == {}
    assert set(rendered(fleet_of(COLLECTED), "PodMonitoring")) == {"orders-consumer", "orders-gateway", "orders-relay"}
    assert not [name for name in rendered(fleet_of(COLLECTED), "ConfigMap") if name.endswith("dashboard")]
    assert rendered(fleet_of("{stack: cloud-monitoring, dashboard: false}"), "MonitoringDashboard") == {}


@pytest.mark.parametrize("monitoring", ["cloud-monitoring", COLLECTED])
def test_charts_lie_beside_each_other(monitoring: str) -> None:
    (board,) = rendered(fleet_of(monitoring), "MonitoringDashboard").values()
    taken: set[tuple[int, int]] = set()
    for tile in board["mosaicLayout"]["tiles"]:
        across, down = range(tile["width"]), range(tile["height"])
        cells = {(tile["xPos"] + x, tile["yPos"] + y) for x in across for y in down}
        assert not cells & taken
        assert max(x for x, _ in cells) < board["mosaicLayout"]["columns"]
        taken |= cells


@pytest.mark.parametrize("monitoring", ["cloud-monitoring", COLLECTED])
def test_terraform_and_gcloud_make_the_same(monitoring: str) -> None:
    fleet = fleet_of(monitoring)
    queries = {condition(policy)["query"] for policy in policies(fleet).values()}
    resources = json.loads(terraform.text(fleet))["resource"]
    conditions = [
        policy["conditions"][0]["condition_prometheus_query_language"]
        for policy in resources["google_monitoring_alert_policy"].values()
    ]
    assert {asked["query"] for asked in conditions} == queries
    assert all(asked["disable_metric_validation"] for asked in conditions)
    metrics = {metric["name"]: metric for metric in resources.get("google_logging_metric", {}).values()}
    assert {name: metric["filter"] for name, metric in metrics.items()} == {
        name: spec["filter"] for name, spec in rendered(fleet, "LoggingLogMetric").items()
    }
    script = gcloud.text(fleet)
    assert all(json.dumps(query)[1:-1] in script for query in queries)
    (board,) = resources["google_monitoring_dashboard"].values()
    (spec,) = rendered(fleet, "MonitoringDashboard").values()
    assert json.loads(board["dashboard_json"]) == {name: value for name, value in spec.items() if name != "projectRef"}


def test_terraform_shows_cloud_monitorings_variables_as_they_stand() -> None:
    policies = json.loads(terraform.text(fleet_of()))["resource"]["google_monitoring_alert_policy"]
    assert policies["orders-backlog"]["documentation"]["subject"].startswith("Shard $${metric_or_resource.label.shard}")


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitoring", "more", "message"),
    [
        (
            "{stack: cloud-monitoring, notification_channels: {critical: [oncall]}}",
            "",
            "'oncall' isn't a notification channel, projects/PROJECT/notificationChannels/ID",
        ),
        ("{stack: cloud-monitoring, notification_channels: {page: []}}", "", "there is no such field"),
        ("{stack: cloud-monitoring, evaluation_interval: 45s}", "", "evaluates a query every 30 s, or at a multiple"),
        (
            "{stack: prometheus-operator, managed_collection: true}",
            "",
            "it belongs to cloud-monitoring, and the stack is",
        ),
        (
            "{notification_channels: {warning: [projects/my-project/notificationChannels/1]}}",
            "",
            "monitoring.notification_channels: it belongs to cloud-monitoring, and the stack is none",
        ),
        ("cloud-monitoring", "provisioner: api\n", "`provisioner: api` makes topics and subscriptions alone"),
        (
            "cloud-monitoring",
            "consumer: {log_level: warning}\n",
            "consumer.log_level: alerts of cloud-monitoring go by log",
        ),
        ("cloud-monitoring", "gateway: {auth: {kind: none}}\n", None),
    ],
)
def test_what_cant_work_is_refused(monitoring: str, more: str, message: str | None) -> None:
    text = FLEET.format(monitoring=monitoring) + more
    if message is None:
        assert fleet_from(parse(text))
        return
    with pytest.raises(UsageError, match=re.escape(message)):
        fleet_from(parse(text))


def test_a_shard_or_a_gateway_that_logs_less_is_refused_by_name() -> None:
    keys = KeysSecret(name="keys")
    text = FLEET.format(monitoring="cloud-monitoring").replace(
        "slots: 0-7}", "slots: 0-7, consumer: {log_level: error}}"
    )
    with pytest.raises(UsageError, match=r"shards\[0\].*log_level|shards\.s0.*log_level"):
        fleet_from(parse(text))
    gateway = f"gateway: {{log_level: error, auth: {{kind: keys, secret: {{name: {keys.name}}}}}}}\n"
    with pytest.raises(UsageError, match=r"gateway\.log_level"):
        fleet_from(parse(FLEET.format(monitoring="cloud-monitoring") + gateway))
    assert fleet_from(parse(FLEET.format(monitoring=COLLECTED) + gateway)).monitoring.evaluation_interval == timedelta(
        seconds=30
    )
