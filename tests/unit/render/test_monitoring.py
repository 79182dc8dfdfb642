"""Alerts as Prometheus itself judges them, and every query by the names of metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from consumer.observability.metrics import Metrics
from shardctl.errors import UsageError
from shardctl.fleet.load import fleet_from
from shardctl.fleet.settings.gateway import OPEN, Auth, Gateway, KeysSecret
from shardctl.fleet.settings.relay import Relay
from shardctl.fleet.settings.secrets import SecretRef
from shardctl.fleet.spec import Fleet
from shardctl.fleet.yamlfile import parse
from shardctl.gateway.metrics import Metrics as GatewayMetrics
from shardctl.outbox.metrics import OutboxMetrics
from shardctl.render import documents
from shardctl.render.alerts import alerts

DOCS = Path(__file__).parents[3] / "docs" / "alerts.md"
KINDS = ["ConfigMap", "PodMonitoring", "PodMonitor", "Rules", "GlobalRules", "PrometheusRule"]
STACKS = ("managed-prometheus", "prometheus-operator")
FLEET = """
fleet: orders
project: my-project
namespace: writers
image: example.com/consumer:1.0.0
routing: {{slot_bits: 4}}
message_types:
  a: {{table: a, key: id, columns: {{id: text}}, on_poison: park}}
  b: {{http: {{url: "https://backend.example.com/b"}}, routing_key: id}}
monitoring: {monitoring}
shards:
  - {{name: s0, slots: 0-7}}
  - {{name: s1, slots: 8-15, workload: statefulset, leader: kubernetes}}
"""


def fleet_of(monitoring: str) -> Fleet:
    return fleet_from(parse(FLEET.format(monitoring=monitoring)))


def rendered(fleet: Fleet) -> list[dict[str, Any]]:
    manifests = [yaml.safe_load(document.text) for document in documents(fleet, kinds=KINDS)]
    return [item for item in manifests if "shard" not in item["metadata"]["labels"]]


KEYS = Gateway(auth=Auth(kind="keys", secret=KeysSecret(name="keys")))
RELAY = Relay(database=SecretRef(name="outbox"))


def rules(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """By name; of the fleet with a gateway that asks for keys and a relay, so that every alert is there."""
    groups = [
        group
        for item in rendered(fleet.model_copy(update={"gateway": KEYS, "relay": RELAY}))
        for group in item.get("spec", {}).get("groups", ())
    ]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


# --- alerts fire, and don't -------------------------------------------------------------------------------------------

PUBSUB = {
    "managed-prometheus": "pubsub_googleapis_com:subscription_{}",
    "prometheus-operator": "stackdriver_pubsub_subscription_pubsub_googleapis_com_subscription_{}",
}


def pubsub(name: str, subscription: str, project: str = "my-project") -> tuple[str, str]:
    return f"pubsub:{name}", f'project_id="{project}",subscription_id="{subscription}"'


def own(name: str, *, shard: str = "s0", pod: str = "p", labels: str = "") -> tuple[str, str]:
    more = f",{labels}" if labels else ""
    return f"shardctl_{name}", f'namespace="writers",app="orders-consumer",shard="{shard}",pod="{pod}"{more}'


def gateway(name: str) -> tuple[str, str]:
    return f"shardctl_gateway_{name}", 'namespace="writers",app="orders-gateway",pod="p"'


def relay(name: str, pod: str = "p") -> tuple[str, str]:
    return f"shardctl_outbox_{name}", f'namespace="writers",app="orders-relay",pod="{pod}"'


def kube(name: str, labels: str) -> tuple[str, str]:
    return name, f'namespace="writers",{labels}'


Series = tuple[tuple[str, str], str]  # a name and its labels, and its values a minute, as promtool writes them


@dataclass(frozen=True)
class Case:
    """What is there, for half an hour, and at which minute the alert fires, if at all; `labels` of what fires."""

    alert: str
    name: str
    series: tuple[Series, ...]
    labels: dict[str, str] | None  # None: it doesn't fire
    minute: int = 25
    stacks: tuple[str, ...] = STACKS

    def __str__(self) -> str:
        return f"{self.alert}: {self.name}"


S0 = {"shard": "s0"}
BACKLOG, AGE = "num_undelivered_messages", "oldest_unacked_message_age"


def bucket(bound: str, growth: str) -> Series:
    return own("batch_seconds_bucket", labels=f'le="{bound}"'), growth


def replicas(kind: str, name: str, wanted: int, there: int) -> tuple[Series, ...]:
    names = {
        "deployment": ("kube_deployment_spec_replicas", "kube_deployment_status_replicas_available"),
        "statefulset": ("kube_statefulset_replicas", "kube_statefulset_status_replicas_ready"),
    }[kind]
    return tuple(
        (kube(pod, f'{kind}="{name}"'), f"{value}x30") for pod, value in zip(names, (wanted, there), strict=True)
    )


def memory_of(pod: str, percent: int, stack: str, container: str = "consumer") -> tuple[Series, ...]:
    if stack == "managed-prometheus":
        labels = (
            f'monitored_resource="k8s_container",project_id="my-project",namespace_name="writers",'
            f'container_name="{container}",pod_name="{pod}"'
        )
        name = "kubernetes_io:container_memory_limit_utilization"
        return (
            ((name, f'{labels},memory_type="non-evictable"'), f"{percent / 100}x30"),
            ((name, f'{labels},memory_type="evictable"'), "0.99x30"),  # page cache: it goes when it must
        )
    labels = f'container="{container}",pod="{pod}"'
    return (
        (kube("container_memory_working_set_bytes", labels), f"{percent * 1000}x30"),
        (kube("kube_pod_container_resource_limits", f'{labels},resource="memory",unit="byte"'), "100000x30"),
        (kube("kube_pod_container_resource_limits", f'{labels},resource="cpu",unit="core"'), "999999x30"),
    )


LED_BY_NONE: tuple[Series, ...] = tuple((own("leader", shard="s1", pod=pod), "0x30") for pod in "pq")
ALIVE: Series = (own("ready"), "1x30")
CASES = [
    Case(
        "ShardctlBacklog",
        "over all topics and generations of the shard",
        (
            (pubsub(BACKLOG, "orders-s0-g1-t0"), "4000x30"),
            (pubsub(BACKLOG, "orders-s0-g1-t1"), "4000x30"),
            (pubsub(BACKLOG, "orders-s0-g2-t1"), "2001x30"),
        ),
        S0,
    ),
    Case(
        "ShardctlBacklog",
        "nobody else's",
        (
            (pubsub(BACKLOG, "orders-s0-g1"), "10000x30"),
            (pubsub(BACKLOG, "orders-s1-g1"), "9000x30"),
            (pubsub(BACKLOG, "orders-eu-s0-g1"), "99999x30"),
            (pubsub(BACKLOG, "orders-s0-g1", project="others"), "99999x30"),
            (pubsub(BACKLOG, "orders-s0-audit"), "99999x30"),
            (pubsub(BACKLOG, "orders-dead"), "99999x30"),
        ),
        None,
    ),
    Case("ShardctlBacklog", "not at once", ((pubsub(BACKLOG, "orders-s0-g1"), "0x20 20000x10"),), None),
    Case("ShardctlOldestMessage", "old", ((pubsub(AGE, "orders-s1-g3"), "601x30"),), {"shard": "s1"}),
    Case("ShardctlOldestMessage", "young", ((pubsub(AGE, "orders-s1-g3"), "600x30"),), None),
    Case("ShardctlDeadLetters", "one", ((pubsub(BACKLOG, "orders-dead"), "1x30"),), {}),
    Case(
        "ShardctlDeadLetters",
        "none",
        ((pubsub(BACKLOG, "orders-dead"), "0x30"), (pubsub(BACKLOG, "orders-dead-g1"), "5x30")),
        None,
    ),
    Case("ShardctlStrays", "one of one topic", ((pubsub(BACKLOG, "orders-strays-t1-0a1b2c"), "1x30"),), {}),
    Case(
        "ShardctlStrays",
        "none",
        ((pubsub(BACKLOG, "orders-strays"), "0x30"), (pubsub(BACKLOG, "orders-strays-g1"), "5x30")),
        None,
    ),
    Case("ShardctlParked", "one", ((own("messages_parked_total"), "0x20 1x10"),), S0),
    Case("ShardctlParked", "long ago", ((own("messages_parked_total"), "0 1x30"),), None),
    Case("ShardctlBarriersRefused", "one", ((own("barriers_refused_total"), "0x20 1x10"),), S0),
    Case("ShardctlBarriersRefused", "long ago", ((own("barriers_refused_total"), "0 1x30"),), None),
    Case(
        "ShardctlHandlingSlow",
        "two in a hundred",
        (bucket("30", "0+98x30"), bucket("60", "0+100x30"), bucket("+Inf", "0+100x30")),
        S0,
    ),
    Case(
        "ShardctlHandlingSlow",
        "one in a thousand",
        (bucket("30", "0+999x30"), bucket("60", "0+1000x30"), bucket("+Inf", "0+1000x30")),
        None,
    ),
    Case(
        "ShardctlFailureRate",
        "batches retried",
        (
            (own("batch_retries_total", labels='cause="again"'), "0+2x30"),
            (own("batch_seconds_count"), "0+100x30"),
        ),
        S0,
    ),
    Case(
        "ShardctlFailureRate",
        "writes dead-lettered for any reason",
        (
            (own("messages_dead_lettered_total", labels='reason="bad_json"'), "0+1x30"),
            (own("messages_dead_lettered_total", labels='reason="no_row"'), "0+1x30"),
            (own("messages_received_total"), "0+100x30"),
            (own("batch_retries_total", labels='cause="again"'), "0x30"),
            (own("batch_seconds_count"), "0+100x30"),
        ),
        S0,
    ),
    Case(
        "ShardctlFailureRate",
        "writes parked",
        ((own("messages_parked_total"), "0+2x30"), (own("messages_received_total"), "0+100x30")),
        S0,
    ),
    Case(
        "ShardctlFailureRate",
        "within what is allowed",
        (
            (own("batch_retries_total", labels='cause="again"'), "0+1x30"),
            (own("batch_seconds_count"), "0+100x30"),
            (own("messages_dead_lettered_total", labels='reason="no_row"'), "0+1x30"),
            (own("messages_parked_total"), "0+1x30"),
            (own("messages_received_total"), "0+100x30"),
        ),
        None,
    ),
    Case(
        "ShardctlFailureRate",
        "nothing to do",
        ((own("batch_retries_total", labels='cause="again"'), "0x30"), (own("batch_seconds_count"), "5x30")),
        None,
    ),
    Case(
        "ShardctlRedisDegraded",
        "one replica",
        ((own("redis_degraded"), "0x30"), (own("redis_degraded", pod="q"), "1x30")),
        S0,
    ),
    Case("ShardctlRedisDegraded", "for a moment", ((own("redis_degraded"), "0x22 1x8"),), None),
    Case("ShardctlSlotFailing", "long", ((own("slot_failing_seconds", shard="s1"), "0+60x30"),), {"shard": "s1"}),
    Case("ShardctlSlotFailing", "recovered", ((own("slot_failing_seconds"), "0 60 120 0x27"),), None),
    Case("ShardctlSlotHeld", "long", ((own("slot_held_seconds"), "0+60x30"),), S0),
    Case("ShardctlSlotHeld", "as a move takes", ((own("slot_held_seconds"), "0+60x5 0x25"),), None),
    Case("ShardctlPublishedAgain", "goes on", ((own("messages_published_again_total"), "0+1x30"),), S0),
    Case("ShardctlPublishedAgain", "after a move", ((own("messages_published_again_total"), "0x20 9x10"),), None),
    Case(
        "ShardctlInboxGrowth",
        "for a day, though another replica purges by now",
        (
            (own("inbox_overdue_seconds"), "160000x720"),
            (own("inbox_overdue_seconds", pod="q"), "_x730 160000x760"),
        ),
        S0,
        minute=1_470,
    ),
    Case(
        "ShardctlInboxGrowth",
        "as long as two walks through the inbox take",  # a tenth of 8 days, and the day that is allowed
        ((own("inbox_overdue_seconds"), "155520x1500"),),
        None,
        minute=1_470,
    ),
    Case(
        "ShardctlInboxGrowth",
        "as after an upgrade",
        ((own("inbox_overdue_seconds"), "2600000x700 0x800"),),
        None,
        minute=1_470,
    ),
    Case("ShardctlPodsUnavailable", "of a Deployment", replicas("deployment", "orders-s0", 4, 2), S0),
    Case("ShardctlPodsUnavailable", "of a StatefulSet", replicas("statefulset", "orders-s1", 2, 0), {"shard": "s1"}),
    Case(
        "ShardctlPodsUnavailable",
        "one, or another's",
        (*replicas("deployment", "orders-s0", 4, 3), *replicas("deployment", "orders-api", 4, 0)),
        None,
    ),
    Case("ShardctlSilent", "no pod at all", (), {"namespace": "writers", "app": "orders-consumer"}),
    Case("ShardctlSilent", "one pod, not ready", ((own("ready"), "0x30"),), None),
    Case("ShardctlNoLeader", "standbys alone", LED_BY_NONE, {"shard": "s1"}),
    Case("ShardctlNoLeader", "one that leads", (*LED_BY_NONE, (own("leader", shard="s1", pod="r"), "1x30")), None),
    Case("ShardctlNoLeader", "while another takes over", ((own("leader", shard="s1"), "1x20 0 1x9"),), None, minute=21),
    Case("ShardctlNoLeader", "of a shard whose replicas all write", ((own("leader"), "0x30"),), None),
    Case(
        "ShardctlBreakerOpen",
        "on one replica",
        (
            (own("http_breaker_open", labels='type="b"'), "0x30"),
            (own("http_breaker_open", pod="q", labels='type="b"'), "1x30"),
        ),
        S0 | {"type": "b"},
    ),
    Case("ShardctlBreakerOpen", "a moment", ((own("http_breaker_open", labels='type="b"'), "0x22 1x8"),), None),
    Case("ShardctlGatewayDown", "none is ready", ((gateway("ready"), "0x30"),), {}),
    Case("ShardctlGatewayDown", "none is there", (), {}),
    Case("ShardctlGatewayDown", "one is ready", ((gateway("ready"), "1x30"),), None),
    Case("ShardctlGatewayKeys", "a bad line", ((gateway("keys_failing"), "0x20 1x10"),), {}),
    Case("ShardctlGatewayKeys", "confirmed", ((gateway("keys_failing"), "0x30"),), None),
    Case("ShardctlRelayDown", "none is there", (), {}),
    Case("ShardctlRelayDown", "its database is away", ((relay("database_up"), "0x30"),), {}),
    Case(
        "ShardctlRelayDown", "one of two", ((relay("database_up"), "0x30"), (relay("database_up", "q"), "1x30")), None
    ),
    Case("ShardctlOutboxOldest", "a relay's", ((relay("oldest_seconds"), "0+60x30"),), {"app": "orders-relay"}),
    Case(
        "ShardctlOutboxOldest",
        "of a shard's sinks",
        ((own("outbox_oldest_seconds"), "0+60x30"),),
        S0 | {"app": "orders-consumer"},
    ),
    Case("ShardctlOutboxOldest", "published", ((relay("oldest_seconds"), "0 60 120 0x27"),), None),
    Case("ShardctlOutboxRefused", "one", ((relay("refused_rows"), "0x20 1x10"),), {"app": "orders-relay"}),
    Case("ShardctlOutboxRefused", "retried", ((relay("refused_rows"), "1x10 0x20"),), None),
    *(
        Case("ShardctlMemory", name, memory_of(pod, percent, stack, container), labels, stacks=(stack,))
        for stack in STACKS
        for name, pod, percent, container, labels in (
            ("short", "orders-s0-7d9f8b6c5-x2x4z", 81, "consumer", S0 | {"pod": "orders-s0-7d9f8b6c5-x2x4z"}),
            ("of a StatefulSet", "orders-s1-0", 95, "consumer", {"shard": "s1", "pod": "orders-s1-0"}),
            ("enough", "orders-s0-7d9f8b6c5-x2x4z", 80, "consumer", None),
            ("another container's", "orders-s0-7d9f8b6c5-x2x4z", 99, "proxy", None),
            ("another's pod", "orders-api-7d9f8b6c5-x2x4z", 99, "consumer", None),
        )
    ),
]


def rule_file(listed: list[dict[str, Any]], folder: Path) -> Path:
    """Rules as Prometheus reads them, whatever objects carry them in a cluster."""
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": listed}]}))
    return path


def run(promtool: str, *arguments: object) -> None:
    done = subprocess.run([promtool, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_prometheus_takes_the_rules(stack: str, promtool: str, tmp_path: Path) -> None:
    run(promtool, "check", "rules", rule_file([*rules(fleet_of(stack)).values()], tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("stack", "case"), [(stack, case) for case in CASES for stack in case.stacks], ids=str)
def test_an_alert_fires_when_it_should_and_not_else(stack: str, case: Case, promtool: str, tmp_path: Path) -> None:
    rule = rules(fleet_of(stack))[case.alert]
    del rule["annotations"]  # promtool would compare them; another test does
    expected = [] if case.labels is None else [{"exp_labels": {**rule["labels"], **case.labels}}]
    series = case.series if case.alert == "ShardctlSilent" else (*case.series, ALIVE)
    judge(promtool, tmp_path, rule, inputs(series, stack), case.minute, expected)


def test_alerts_say_what_and_where(promtool: str, tmp_path: Path) -> None:
    rule = rules(fleet_of("{stack: prometheus-operator, runbook_url: https://wiki.example.com/a}"))["ShardctlBacklog"]
    annotations = {
        "summary": "Shard s0 falls behind",
        "description": "12k messages wait for shard s0 of orders: more come in than its consumers write.",
        "runbook_url": "https://wiki.example.com/a#shardctlbacklog",
    }
    expected = [{"exp_labels": {**rule["labels"], **S0}, "exp_annotations": annotations}]
    series = inputs(((pubsub(BACKLOG, "orders-s0-g1"), "12000x30"),), "prometheus-operator")
    judge(promtool, tmp_path, rule, series, 25, expected)


def inputs(series: tuple[Series, ...], stack: str) -> list[dict[str, str]]:
    return [{"series": f"{named(name, stack)}{{{labels}}}", "values": values} for (name, labels), values in series]


def judge(
    promtool: str, folder: Path, rule: dict[str, Any], series: list[dict[str, str]], minute: int, expected: list[Any]
) -> None:
    tested = {"alertname": rule["alert"], "eval_time": f"{minute}m", "exp_alerts": expected}
    test_group = {"interval": "1m", "input_series": series, "alert_rule_test": [tested]}
    rule_file([rule], folder)
    (folder / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test_group]})
    )
    run(promtool, "test", "rules", folder / "test.yaml")


def named(name: str, stack: str) -> str:
    return PUBSUB[stack].format(name.removeprefix("pubsub:")) if name.startswith("pubsub:") else name


def test_each_alert_has_a_case_that_fires_and_one_that_doesnt() -> None:
    for stack in STACKS:
        for name in rules(fleet_of(stack)):
            outcomes = {case.labels is not None for case in CASES if case.alert == name and stack in case.stacks}
            assert outcomes == {True, False}, name


# --- what alerts say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
def test_each_alert_has_a_severity_a_text_and_a_section_of_the_runbook(stack: str) -> None:
    headings = re.findall(r"^## (\w+)$", DOCS.read_text(), re.MULTILINE)
    anchors = {heading.lower() for heading in headings}
    rules_by_name = rules(fleet_of(stack))
    assert sorted(heading for heading in headings if heading.startswith("Shardctl")) == sorted(rules_by_name)
    for rule in rules_by_name.values():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["labels"]["fleet"] == "orders"
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        base, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert base == "docs/alerts.md"
        assert anchor in anchors


def test_thresholds_are_the_files() -> None:
    fleet = fleet_of(
        "{stack: prometheus-operator, thresholds: {backlog_messages: 7, oldest_message_age: 1h, handling_latency: 2s, "
        "failure_percent: 2.5, unavailable_pods: 3, memory_percent: 55, dead_letters: 8, strays: 9, redis_degraded: 11m, "
        "slot_failing: 12m, slot_held: 13m, published_again: 14}}"
    )
    rules_by_name = rules(fleet)
    ends = {name: rule["expr"].rpartition(" > ")[2] for name, rule in rules_by_name.items()}
    assert ends["ShardctlBacklog"] == "7"
    assert ends["ShardctlOldestMessage"] == "3600"
    assert ends["ShardctlHandlingSlow"] == "2"
    assert rules_by_name["ShardctlFailureRate"]["expr"].count(" > 0.025") == 3
    assert ends["ShardctlPodsUnavailable"] == "3"
    assert ends["ShardctlMemory"] == "0.55"
    assert ends["ShardctlDeadLetters"] == "8"
    assert ends["ShardctlStrays"] == "9"
    assert rules_by_name["ShardctlRedisDegraded"]["for"] == "660s"
    assert ends["ShardctlSlotFailing"] == "720"
    assert ends["ShardctlSlotHeld"] == "780"
    assert ends["ShardctlPublishedAgain"] == "14"


def test_metrics_of_pubsub_can_be_named_otherwise() -> None:
    rules_by_name = rules(
        fleet_of("{stack: prometheus-operator, backlog_metric: my_backlog, oldest_age_metric: my:age}")
    )
    assert "my_backlog{" in rules_by_name["ShardctlBacklog"]["expr"]
    assert "my_backlog{" in rules_by_name["ShardctlStrays"]["expr"]
    assert "my:age{" in rules_by_name["ShardctlOldestMessage"]["expr"]


def test_a_fleet_without_a_type_that_parks_has_the_alert_on_parked_writes() -> None:
    """While a type's table isn't ready, its writes are parked, whatever its `on_poison`."""
    text = FLEET.replace(", on_poison: park", "").format(monitoring="prometheus-operator")
    assert "ShardctlParked" in rules(fleet_from(parse(text)))


def test_only_a_fleet_with_outboxes_is_watched_for_them() -> None:
    fleet = fleet_of("managed-prometheus")
    emitting = fleet.message_types["b"].model_copy(update={"emits": ("a",)})

    def watched(fleet: Fleet) -> set[str]:
        return {alert.name for alert in alerts(fleet) if "Outbox" in alert.name or "Relay" in alert.name}

    assert not watched(fleet)
    of_sinks = {"ShardctlOutboxOldest", "ShardctlOutboxRefused"}
    assert watched(fleet.model_copy(update={"message_types": {"b": emitting}})) == of_sinks
    assert watched(fleet.model_copy(update={"relay": RELAY})) == of_sinks | {"ShardctlRelayDown"}


@pytest.mark.parametrize(
    ("gateway", "watched"),
    [(None, set()), (OPEN, {"ShardctlGatewayDown"}), (KEYS, {"ShardctlGatewayDown", "ShardctlGatewayKeys"})],
    ids=["no gateway", "open", "keys"],
)
def test_only_a_gateway_that_asks_for_keys_is_watched_for_them(gateway: Gateway | None, watched: set[str]) -> None:
    fleet = fleet_of("managed-prometheus").model_copy(update={"gateway": gateway})
    assert {alert.name for alert in alerts(fleet) if "Gateway" in alert.name} == watched


def test_only_what_a_fleet_has_is_watched() -> None:
    text = FLEET.replace(", leader: kubernetes", "").replace("  b: {{http", "  # {{http")
    assert not {"ShardctlNoLeader", "ShardctlBreakerOpen"} & set(
        rules(fleet_from(parse(text.format(monitoring="prometheus-operator"))))
    )


def test_a_fleet_that_may_have_no_pods_isnt_missed() -> None:
    text = FLEET.format(monitoring="prometheus-operator") + "autoscaling: {kind: keda, min: 0}\n"
    assert "ShardctlSilent" not in rules(fleet_from(parse(text)))


def yaml_of_docs(containing: str) -> Any:
    (block,) = (block for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL) if containing in block)
    return yaml.safe_load(block)


def test_the_page_shows_the_defaults() -> None:
    shown = json.dumps(yaml_of_docs("thresholds:")["monitoring"])
    assert fleet_of(shown).monitoring == fleet_of("prometheus-operator").monitoring


def test_the_routing_example_goes_by_labels_and_alerts_that_exist() -> None:
    example = yaml_of_docs("inhibit_rules:")
    rules_by_name = rules(fleet_of("prometheus-operator"))
    for rule in example["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            name, _, pattern = matcher.partition(" =~ ")
            assert name == "alertname"
            assert set(pattern.strip('"').split("|")) <= set(rules_by_name)
    receivers = {receiver["name"] for receiver in example["receivers"]}
    assert {example["route"]["receiver"], *(route["receiver"] for route in example["route"]["routes"])} == receivers


# --- every name exists ------------------------------------------------------------------------------------------------

OTHERS = {
    "managed-prometheus": {
        "pubsub_googleapis_com:subscription_num_undelivered_messages",
        "pubsub_googleapis_com:subscription_oldest_unacked_message_age",
        "kubernetes_io:container_memory_limit_utilization",
    },
    "prometheus-operator": {
        "stackdriver_pubsub_subscription_pubsub_googleapis_com_subscription_num_undelivered_messages",
        "stackdriver_pubsub_subscription_pubsub_googleapis_com_subscription_oldest_unacked_message_age",
        "container_memory_working_set_bytes",
        "kube_pod_container_resource_limits",
    },
}
KUBE_STATE = {
    "kube_deployment_spec_replicas",
    "kube_deployment_status_replicas_available",
    "kube_statefulset_replicas",
    "kube_statefulset_status_replicas_ready",
}


def exported() -> set[str]:
    """The names of all samples that a pod of the fleet can export, those of labels that nobody set yet among them."""
    names, outbox = set(), CollectorRegistry()
    OutboxMetrics(outbox)
    for family in (*Metrics().registry.collect(), *GatewayMetrics(()).registry.collect(), *outbox.collect()):
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}[family.type]
        names |= {family.name + suffix for suffix in suffixes}
    return names


def asked_for(expr: str) -> set[str]:
    """The metrics that an expression names: what stands before braces."""
    return set(re.findall(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{", re.sub(r'"[^"]*"', '""', expr)))


@pytest.mark.parametrize("stack", STACKS)
def test_alerts_and_dashboard_ask_only_for_what_is_exported(stack: str) -> None:
    fleet = fleet_of(stack)
    queries = [target["expr"] for panel in dashboard(fleet)["panels"] for target in panel.get("targets", ())]
    asked = set().union(*(asked_for(expr) for expr in queries + [rule["expr"] for rule in rules(fleet).values()]))
    assert asked <= exported() | OTHERS[stack] | KUBE_STATE
    assert asked >= OTHERS[stack] | KUBE_STATE


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_prometheus_takes_the_dashboards_queries(stack: str, promtool: str, tmp_path: Path) -> None:
    panels = dashboard(fleet_of(stack))["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    run(
        promtool,
        "check",
        "rules",
        rule_file([{"record": f"q{number}", "expr": expr} for number, expr in enumerate(queries)], tmp_path),
    )


# --- objects ----------------------------------------------------------------------------------------------------------


def dashboard(fleet: Fleet) -> dict[str, Any]:
    (manifest,) = (item for item in rendered(fleet) if item["kind"] == "ConfigMap")
    assert manifest["metadata"]["labels"]["grafana_dashboard"] == "1"
    ((name, text),) = manifest["data"].items()
    assert name == "orders.json"
    return json.loads(text)  # type: ignore[no-any-return]


def test_nothing_is_rendered_that_isnt_asked_for() -> None:
    assert rendered(fleet_of("none")) == []


@pytest.mark.parametrize(
    ("stack", "kinds"),
    [
        ("managed-prometheus", {"ConfigMap", "PodMonitoring", "Rules", "GlobalRules"}),
        ("prometheus-operator", {"ConfigMap", "PodMonitor", "PrometheusRule"}),
    ],
)
def test_a_stack_has_its_own_kinds(stack: str, kinds: set[str]) -> None:
    assert {item["kind"] for item in rendered(fleet_of(stack))} == kinds
    assert {item["kind"] for item in rendered(fleet_of(f"{{stack: {stack}, dashboard: false}}"))} == kinds - {
        "ConfigMap"
    }
    assert not [d for d in documents(fleet_of(stack), shards=["s0"], kinds=KINDS) if d.kind != "ConfigMap"]


def test_managed_prometheus_scrapes_every_pod() -> None:
    (manifest,) = (item for item in rendered(fleet_of("managed-prometheus")) if item["kind"] == "PodMonitoring")
    assert manifest["spec"] == {
        "selector": {"matchLabels": {"app": "orders-consumer"}},
        "endpoints": [{"port": "http", "path": "/metrics", "interval": "30s"}],
        "targetLabels": {
            "metadata": ["pod", "container"],
            "fromPod": [{"from": "app", "to": "app"}, {"from": "shard", "to": "shard"}],
        },
    }


def test_the_operator_scrapes_every_pod() -> None:
    fleet = fleet_of("{stack: prometheus-operator, scrape_interval: 1m, labels: {release: kps}}")
    (manifest,) = (item for item in rendered(fleet) if item["kind"] == "PodMonitor")
    assert manifest["metadata"]["labels"]["release"] == "kps"
    assert manifest["spec"] == {
        "selector": {"matchLabels": {"app": "orders-consumer"}},
        "podMetricsEndpoints": [{"port": "http", "path": "/metrics", "interval": "60s"}],
        "podTargetLabels": ["app", "shard"],
    }


def test_rules_of_managed_prometheus_ask_only_for_what_their_scope_sees() -> None:
    """A namespace's Rules see series of that namespace; Google Cloud's own metrics bear no such label."""
    items = {item["kind"]: item for item in rendered(fleet_of("managed-prometheus"))}
    asked = {
        kind: set().union(*(asked_for(rule["expr"]) for rule in items[kind]["spec"]["groups"][0]["rules"]))
        for kind in ("Rules", "GlobalRules")
    }
    assert asked["GlobalRules"] == OTHERS["managed-prometheus"]
    assert asked["Rules"] <= exported() | KUBE_STATE
    assert "namespace" not in items["GlobalRules"]["metadata"]  # the whole cluster's
    assert items["GlobalRules"]["metadata"]["name"] == "writers-orders-consumer"


def test_panels_lie_beside_each_other() -> None:
    panels = dashboard(fleet_of("prometheus-operator"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stackdriver", "'stackdriver' isn't one of 'none', 'managed-prometheus'"),
        ("{thresholds: {handling_latency: 2m}}", "'2m' doesn't lie between 1s and 59s"),
        ("{thresholds: {failure_percent: 0}}", "must be greater than 0"),
        ("{alert_labels: {severity: page}}", "'severity' isn't a label of your own"),
        ("{backlog_metric: 9lives}", "'9lives' isn't the name of a Prometheus metric"),
        ("{runbook_url: 'a b'}", "'a b' isn't a URL or a path"),
        ("{scrape_interval: 5m}", "'5m' doesn't lie between 5s and 2m"),
    ],
)
def test_what_cant_work_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        fleet_of(text)
