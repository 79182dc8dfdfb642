from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from fleets import throughout
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateRuntimeError
from manifests import texts

from shardctl.cli.render import render
from shardctl.errors import ShardctlError, UsageError
from shardctl.fleet import spec_errors
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.load import fleet_from, load_fleet
from shardctl.fleet.settings.cloudsql import Database
from shardctl.fleet.settings.cluster import Autoscaling, Resources
from shardctl.fleet.settings.routing import Attributes
from shardctl.fleet.settings.secrets import SecretRef
from shardctl.fleet.shardconfig import ShardConfig, slice_of
from shardctl.fleet.spec import Fleet
from shardctl.fleet.yamlfile import parse
from shardctl.render import (
    CLOUD_KINDS,
    KINDS,
    BadTemplateError,
    account_id,
    config_text,
    documents,
    max_replicas,
    object_name,
    warnings,
)
from shardctl.render.templates import Lines, scalar

CASES = sorted((Path(__file__).parents[2] / "golden" / "cases").glob("*/shards.yaml"))
KUBERNETES_VERSION = "1.32"
WORKLOADS = ("Deployment", "StatefulSet")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

FLEET = """
fleet: orders
project: my-project
project_number: "123456789012"
namespace: writers
image: example.com/consumer:1.0.0
labels: {team: payments}
routing: {slot_bits: 4}
autoscaling: {max: 8}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, note: text}}
shards:
  - {name: s0, slots: 0-7}
  - {name: s1, slots: 8-15, generation: 3}
"""


def read_yaml(text: str) -> Any:
    return yaml.load(text, LOADER)


def fleet_of(text: str = FLEET) -> Fleet:
    return fleet_from(parse(text))


def objects(fleet: Fleet, **choice: Any) -> list[dict[str, Any]]:
    return [read_yaml(document.text) for document in documents(fleet, **choice)]


def only(fleet: Fleet, kind: str, name: str) -> dict[str, Any]:
    (manifest,) = (item for item in objects(fleet, kinds=[kind]) if item["metadata"]["name"] == name)
    return manifest


def workloads(fleet: Fleet) -> list[dict[str, Any]]:
    """What runs the pods of each shard, in the shards' order."""
    manifests = {item["metadata"]["labels"].get("shard"): item for item in objects(fleet, kinds=WORKLOADS)}
    return [manifests[shard.name] for shard in fleet.shards]


def cases() -> Any:
    return pytest.mark.parametrize("path", CASES, ids=lambda path: path.parent.name)


# --- what is rendered -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@cases()
def test_built_in_kinds_pass_the_kubernetes_schemas(path: Path) -> None:
    built_in = [item for item in objects(load_fleet(path)) if _is_built_in(item)]
    assert built_in
    for item in built_in:
        kubernetes_validate.validate(item, KUBERNETES_VERSION, strict=True)


def _is_built_in(item: dict[str, Any]) -> bool:
    group = item["apiVersion"].rpartition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and not group.startswith("gateway."))


@cases()
def test_documents_say_what_their_text_holds(path: Path) -> None:
    fleet = load_fleet(path)
    rendered = list(documents(fleet))
    for document in rendered:
        item = read_yaml(document.text)
        assert (item["kind"], item["metadata"]["name"]) == (document.kind, document.name)
        assert item["metadata"].get("namespace") == (
            None if item["kind"] in ("GlobalRules", "Namespace") else fleet.namespace
        )
        assert item["metadata"]["labels"].get("shard") == document.shard
        assert document.text.endswith("\n")
        assert not document.text.endswith("\n\n")
    assert len({(document.kind, document.name) for document in rendered}) == len(rendered)
    assert len({document.path.lower() for document in rendered}) == len(rendered)


@cases()
def test_what_others_need_comes_first(path: Path) -> None:
    kinds = [document.kind for document in documents(load_fleet(path))]
    assert kinds == sorted(kinds, key=KINDS.index)


def test_every_kind_is_in_some_golden_case() -> None:
    """But for what lies in Google Cloud, which other tests hold in each of its forms."""
    assert {document.kind for path in CASES for document in documents(load_fleet(path))} >= set(KINDS) - set(
        CLOUD_KINDS
    )


@cases()
def test_every_reference_has_its_object(path: Path) -> None:
    manifests = objects(
        load_fleet(path).model_copy(update={"provisioner": "config-connector"})
    )  # others' objects lie elsewhere
    there = {(item["kind"], item["metadata"]["name"]) for item in manifests}
    for item in manifests:
        assert set(_references(item)) <= there


def _references(item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    body = item.get("spec", {})
    match item["kind"]:
        case "Deployment" | "StatefulSet":
            pod = body["template"]["spec"]
            if "serviceName" in body:
                yield "Service", body["serviceName"]
            yield "ServiceAccount", pod["serviceAccountName"]
            yield from (("ConfigMap", v["configMap"]["name"]) for v in pod["volumes"] if "configMap" in v)
        case "HorizontalPodAutoscaler":
            yield body["scaleTargetRef"]["kind"], body["scaleTargetRef"]["name"]
            for metric in body["metrics"]:
                if metric["type"] == "External":
                    selector = metric["external"]["metric"]["selector"]["matchLabels"]
                    yield "PubSubSubscription", selector["resource.labels.subscription_id"]
        case "ScaledObject":
            yield body["scaleTargetRef"]["kind"], body["scaleTargetRef"]["name"]
            for trigger in body["triggers"]:
                if trigger["type"] == "prometheus":
                    (subscription,) = re.findall(r'subscription_id="([^"]+)"', trigger["metadata"]["query"])
                    yield "PubSubSubscription", subscription
                    yield "TriggerAuthentication", trigger["authenticationRef"]["name"]
        case "PubSubSubscription":
            yield "PubSubTopic", body["topicRef"]["name"]
            if "deadLetterPolicy" in body:
                yield "PubSubTopic", body["deadLetterPolicy"]["deadLetterTopicRef"]["name"]
        case "SQLInstance":
            if "masterInstanceRef" in body:
                yield "SQLInstance", body["masterInstanceRef"]["name"]
        case "SQLDatabase" | "SQLUser":
            yield "SQLInstance", body["instanceRef"]["name"]
        case "IAMPolicyMember":
            if "external" not in body["resourceRef"]:  # which is the user's own
                yield body["resourceRef"]["kind"], body["resourceRef"]["name"]
            if "memberFrom" in body:
                yield "IAMServiceAccount", body["memberFrom"]["serviceAccountRef"]["name"]


@cases()
def test_selectors_are_app_and_shard_and_match_their_pods_alone(path: Path) -> None:
    deployments = {item["metadata"]["name"]: item for item in objects(load_fleet(path), kinds=WORKLOADS)}
    budgets = {item["metadata"]["name"]: item for item in objects(load_fleet(path), kinds=["PodDisruptionBudget"])}
    assert deployments.keys() == budgets.keys()
    pods = {name: item["spec"]["template"]["metadata"]["labels"] for name, item in deployments.items()}
    for name, item in deployments.items():
        selector = item["spec"]["selector"]["matchLabels"]
        assert list(selector) == (["app"] if name.endswith(("-gateway", "-relay")) else ["app", "shard"])
        assert budgets[name]["spec"]["selector"]["matchLabels"] == selector
        assert [other for other, labels in pods.items() if selector.items() <= labels.items()] == [name]


def test_a_deployment_leaves_the_number_of_replicas_to_the_autoscaler() -> None:
    assert "replicas" not in only(fleet_of(), "Deployment", "orders-s0")["spec"]


def test_a_pod_outlives_its_drain() -> None:
    for path in CASES:
        fleet = load_fleet(path)
        for shard, item in zip(fleet.shards, workloads(fleet), strict=True):
            grace = item["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            assert grace >= shard.consumer.drain_timeout.total_seconds() + 5


def test_credentials_come_from_secrets_by_name() -> None:
    env = only(fleet_of(), "Deployment", "orders-s1")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {entry["name"]: entry["valueFrom"] for entry in env} == {
        "POD_NAME": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
        "DATABASE_URL": {"secretKeyRef": {"name": "orders-s1-db", "key": "url"}},
        "REDIS_URL": {"secretKeyRef": {"name": "orders-redis", "key": "url"}},
    }
    assert all("value" not in entry for entry in env)


def test_a_shards_subscription() -> None:
    assert only(fleet_of(), "PubSubSubscription", "orders-s1-g3") == {
        "apiVersion": "pubsub.cnrm.cloud.google.com/v1beta1",
        "kind": "PubSubSubscription",
        "metadata": {
            "name": "orders-s1-g3",
            "namespace": "writers",
            "labels": {
                "app": "orders-consumer",
                "shard": "s1",
                "team": "payments",
                "app.kubernetes.io/name": "shardctl-consumer",
                "app.kubernetes.io/instance": "orders-s1",
                "app.kubernetes.io/component": "consumer",
                "app.kubernetes.io/part-of": "orders",
                "app.kubernetes.io/managed-by": "shardctl",
            },
            "annotations": {
                "cnrm.cloud.google.com/deletion-policy": "abandon",
                "cnrm.cloud.google.com/project-id": "my-project",
            },
        },
        "spec": {
            "resourceID": "orders-s1-g3",
            "topicRef": {"name": "data-writes"},
            "filter": 'hasPrefix(attributes.slot,"1")',
            "enableMessageOrdering": True,
            "ackDeadlineSeconds": 60,
            "messageRetentionDuration": "604800s",
            "expirationPolicy": {"ttl": ""},
            "retryPolicy": {"minimumBackoff": "1s", "maximumBackoff": "600s"},
            "deadLetterPolicy": {"deadLetterTopicRef": {"name": "data-writes-dead"}, "maxDeliveryAttempts": 5},
        },
    }


def test_dead_letters_and_strays_are_kept_in_order_for_the_longest_time() -> None:
    for item in objects(fleet_of(), kinds=["PubSubSubscription"]):
        if "shard" not in item["metadata"]["labels"]:
            body = item["spec"]
            assert body["messageRetentionDuration"] == "2678400s"
            assert body["enableMessageOrdering"] is True
            assert body["expirationPolicy"] == {"ttl": ""}
            assert "deadLetterPolicy" not in body
    assert "filter" not in only(fleet_of(), "PubSubSubscription", "orders-dead")["spec"]


AGENT = "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"


def test_grants_are_these_and_no_others() -> None:
    grants = {
        (
            body["role"].removeprefix("roles/"),
            f"{body['resourceRef']['kind']}/{body['resourceRef']['name']}",
            body.get("member") or body["memberFrom"]["serviceAccountRef"]["name"],
        )
        for body in (item["spec"] for item in objects(fleet_of(), kinds=["IAMPolicyMember"]))
    }
    assert grants == {
        ("iam.workloadIdentityUser", "IAMServiceAccount/orders-s0", _pod_identity("orders-s0")),
        ("iam.workloadIdentityUser", "IAMServiceAccount/orders-s1", _pod_identity("orders-s1")),
        ("pubsub.subscriber", "PubSubSubscription/orders-s0-g1", "orders-s0"),
        ("pubsub.subscriber", "PubSubSubscription/orders-s1-g3", "orders-s1"),
        ("pubsub.publisher", "PubSubTopic/data-writes-dead", "orders-s0"),
        ("pubsub.publisher", "PubSubTopic/data-writes-dead", "orders-s1"),
        ("pubsub.subscriber", "PubSubSubscription/orders-s0-g1", AGENT),
        ("pubsub.subscriber", "PubSubSubscription/orders-s1-g3", AGENT),
        ("pubsub.publisher", "PubSubTopic/data-writes-dead", AGENT),
    }


def _pod_identity(account: str) -> str:
    return f"serviceAccount:my-project.svc.id.goog[writers/{account}]"


def test_without_a_project_number_the_service_agent_is_left_out_and_that_is_reported() -> None:
    fleet = fleet_of().model_copy(update={"project_number": None})
    assert AGENT not in "".join(document.text for document in documents(fleet))
    (warning,) = warnings(fleet)
    assert "project_number isn't set" in warning
    assert warnings(fleet_of()) == ()


@pytest.mark.parametrize(
    ("project", "email"),
    [
        ("my-project", "orders-s0@my-project.iam.gserviceaccount.com"),
        ("example.com:shop", "orders-s0@shop.example.com.iam.gserviceaccount.com"),
    ],
)
def test_a_pod_runs_as_its_shards_google_account(project: str, email: str) -> None:
    account = only(fleet_of().model_copy(update={"project": project}), "ServiceAccount", "orders-s0")
    assert account["metadata"]["annotations"] == {"iam.gke.io/gcp-service-account": email}


@pytest.mark.parametrize(
    ("shard_id", "expected"),
    [
        ("orders-s0", "orders-s0"),
        ("a-b", "a-b-writer"),
        ("a-bcd", "a-bcd-writer"),
        ("a-bcde", "a-bcde"),
        ("a" * 30, "a" * 30),
        ("abcdefghijklmnopqrst-vwxyz-01234", "abcdefghijklmnopqrst-753f25fb"),
    ],
)
def test_account_ids_are_stable_and_have_6_to_30_characters(shard_id: str, expected: str) -> None:
    assert account_id(shard_id) == expected
    assert 6 <= len(expected) <= 30


def test_two_shards_never_share_a_google_account() -> None:
    text = (
        FLEET.replace("fleet: orders", "fleet: a").replace("name: s0", "name: b").replace("name: s1", "name: b-writer")
    )
    with pytest.raises(UsageError, match="shards 'b' and 'b-writer' would share the Google service account a-b-writer"):
        documents(fleet_of(text))


@pytest.mark.parametrize("pubsub_id", ["data-writes", "a.b-c", "x" * 253])
def test_a_pubsub_id_that_kubernetes_allows_is_the_objects_name(pubsub_id: str) -> None:
    assert object_name(pubsub_id) == pubsub_id


def test_other_pubsub_ids_get_names_of_their_own() -> None:
    ids = ["Data_Writes", "data_writes", "data~writes", "x" * 254, "x" * 255, "D%41", "a-", "Z"]
    names = [object_name(pubsub_id) for pubsub_id in ids]
    assert len(set(names)) == len(ids)
    assert all(object_name(name) == name for name in names)


@pytest.mark.parametrize(
    ("scaling", "slots", "expected"),
    [
        ({"min": 2, "max": 10}, "0-7", 8),
        ({"min": 2, "max": 3}, "0-7", 3),
        ({"min": 9, "max": 10}, "0-7", 9),
        ({"min": 2, "max": 10}, "0", 2),
    ],
    ids=["capped by slots", "under the slots", "never under the minimum", "a standby for one slot"],
)
def test_replicas_are_capped_by_slots(scaling: dict[str, int], slots: str, expected: int) -> None:
    fleet = fleet_of()
    shard = fleet.shards[0].model_copy(update={"autoscaling": Autoscaling(**scaling), "slots": SlotSet.parse(slots)})
    assert max_replicas(shard) == expected


def test_capped_shards_are_named_in_one_warning() -> None:
    fleet = throughout(fleet_of(), autoscaling=Autoscaling(min=2, max=9))
    (warning,) = warnings(fleet)
    assert warning.endswith("capped for s0, s1")


def test_an_autoscaler_reads_the_backlog_of_each_subscription() -> None:
    fleet = fleet_of(FLEET.replace("slot_bits: 4", "slot_bits: 4, topic_bits: 2"))
    metrics = only(fleet, "HorizontalPodAutoscaler", "orders-s1")["spec"]["metrics"]
    assert [m["external"]["metric"]["selector"]["matchLabels"] for m in metrics if m["type"] == "External"] == [
        {"resource.labels.subscription_id": "orders-s1-g3-t2"},
        {"resource.labels.subscription_id": "orders-s1-g3-t3"},
    ]
    assert all(m["external"]["target"] == {"type": "AverageValue", "averageValue": "100"} for m in metrics[1:])


def test_the_longest_subscription_name_still_fits_an_autoscalers_selector() -> None:
    longest = "x" * 24
    text = FLEET.replace("fleet: orders", f"fleet: {longest}").replace("name: s1", f"name: {longest}")
    text = text.replace("generation: 3", "generation: 999999").replace("slot_bits: 4", "slot_bits: 8, topic_bits: 8")
    text = text.replace("0-7", "0-127").replace("8-15", "128-255")
    for document in documents(fleet_of(text), kinds=["PubSubSubscription"]):
        assert len(document.name) <= 63


@cases()
def test_a_consumer_reads_back_its_slice(path: Path) -> None:
    fleet = load_fleet(path)
    config_maps = [item for item in objects(fleet, kinds=["ConfigMap"]) if "shard" in item["metadata"]["labels"]]
    for shard, item in zip(fleet.shards, config_maps, strict=True):
        text = item["data"]["shard.json"]
        assert text == config_text(fleet, shard)
        assert ShardConfig.model_validate_json(text) == slice_of(fleet, shard)


def test_a_changed_setting_rolls_the_pods_of_its_shard_alone() -> None:
    def checksums(fleet: Fleet) -> list[str]:
        deployments = objects(fleet, kinds=["Deployment"])
        return [item["spec"]["template"]["metadata"]["annotations"]["checksum/config"] for item in deployments]

    before = checksums(fleet_of())
    after = checksums(fleet_of(FLEET.replace("generation: 3", "generation: 3, consumer: {concurrency: 9}")))
    assert before[0] == after[0]
    assert before[1] != after[1]


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_a_shards_objects_alone() -> None:
    rendered = list(documents(fleet_of(), shards=["s1"]))
    assert {document.shard for document in rendered} == {"s1"}
    assert rendered == [document for document in documents(fleet_of()) if document.shard == "s1"]


@pytest.mark.parametrize("kind", ["Deployment", "deployment", "DEPLOYMENT"])
def test_a_kinds_objects_alone(kind: str) -> None:
    assert [document.name for document in documents(fleet_of(), kinds=[kind])] == ["orders-s0", "orders-s1"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"shards": ["s9"]}, "no shard 's9' in fleet orders. Shards: s0, s1."),
        ({"kinds": ["Pod"]}, f"no kind 'Pod' is rendered. Kinds: {', '.join(KINDS)}."),
        ({"templates": Path("/nowhere")}, "/nowhere: no such folder of templates"),
    ],
)
def test_a_choice_that_isnt_there_is_refused_before_anything_is_rendered(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        documents(fleet_of(), **choice)
    assert str(error.value) == message


# --- nothing breaks out -----------------------------------------------------------------------------------------------

HOSTILE = [
    "x: y",
    "a\n---\nkind: Secret",
    "a\r\n- b",
    "' \" \\ \\\" ''",
    "{{ 7 * 7 }}{% raw %}",
    "# comment",
    " # comment",
    "- item",
    "&anchor *alias !!python/object:os.system",
    "\u2028\u2029\u0085\ufeff\x7f\x00\x1b",
    "yes",
    "null",
    "1e3",
    "0x1F",
    "1:30",
    "2026-01-01",
    " both ends ",
    "é😀\U0010ffff",
    "|",
    "> folded",
    "? key",
    "<<",
    "=",
    "~",
    "%TAG",
    "@at",
    "`tick`",
    "[flow, {a: b}]",
    "",
    'quoted "inside',
    'it\'s "both"',
]


def _hostile_fleets(text: str) -> Iterator[tuple[str, Fleet]]:
    """A fleet for each place where text is free, with `text` there, past the checks that refuse it in a file."""
    fleet = fleet_of()
    secret = SecretRef.model_construct(name=text, key=text)
    database = Database.model_construct(name=text, key=text)
    quantities = dict.fromkeys(Resources.model_fields, text)
    column = fleet.message_types["order"].model_copy(
        update={"table": text or "-", "key": (text,), "columns": {text: "text"}}
    )
    everywhere = {
        "namespace": text,
        "image": text,
        "project": text,
        "topic": fleet.topic.model_copy(update={"name": text}),
        "labels": {text: text},
        "redis": fleet.redis.model_copy(update={"secret": secret}),
        "resources": Resources.model_construct(**quantities),
        "message_types": {text: column},
        "shards": (fleet.shards[0].model_copy(update={"database": database}), fleet.shards[1]),
        "routing": fleet.routing.model_copy(update={"attributes": Attributes.model_construct(slot=text)}),
    }
    for field, value in everywhere.items():
        yield field, throughout(fleet, **{field: value})
    for field in ("name", "types"):
        value = text if field == "name" else (text,)
        yield (
            f"shard {field}",
            fleet.model_copy(update={"shards": (fleet.shards[0].model_copy(update={field: value}),)}),
        )


def _shape(value: Any, hostile: str) -> Any:
    """The tree of keys, without what the text itself adds: labels and settings are free to hold any key."""
    if isinstance(value, dict):
        return {key: _shape(item, hostile) for key, item in value.items() if key not in (hostile, "team", "shard.json")}
    return [_shape(item, hostile) for item in value] if isinstance(value, list) else type(value).__name__


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_text_breaks_out_of_its_scalar(text: str) -> None:
    benign = {(d.kind, d.path.rpartition("/")[2]): _shape(read_yaml(d.text), "") for d in documents(fleet_of())}
    kinds = {kind: shape for (kind, _), shape in benign.items()}
    for field, fleet in _hostile_fleets(text):
        seen: set[str] = set()
        for document in documents(fleet):
            (item,) = yaml.load_all(document.text, LOADER)
            if document.kind not in ("PubSubSubscription", "IAMPolicyMember"):  # these come in several shapes
                assert _shape(item, text) == kinds[document.kind], (field, document.path)
            assert item["kind"] == document.kind
            seen.update(texts(item))
        in_a_filter = text.replace("\\", "\\\\").replace('"', '\\"')
        assert any(text in value or in_a_filter in value for value in seen), field


@given(st.text())
def test_any_text_is_one_scalar_that_reads_back(text: str) -> None:
    written = scalar(text)
    assert "\n" not in written
    assert written.isascii()
    for loader in (yaml.SafeLoader, LOADER):
        assert yaml.load(f"a:\n  - k: {written}\n  - {written}\n", loader) == {"a": [{"k": text}, text]}
        if len(written) < 1000:  # YAML's limit for a key on one line
            assert yaml.load(f"{written}: 1\n", loader) == {text: 1}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("orders-s0", "orders-s0"),
        ("roles/pubsub.subscriber", "roles/pubsub.subscriber"),
        ("512Mi", '"512Mi"'),
        ("2", '"2"'),
        ("No", '"No"'),
        ("europe-docker.pkg.dev/p/i:1", '"europe-docker.pkg.dev/p/i:1"'),
        ('hasPrefix(attributes.slot,"1")', "'hasPrefix(attributes.slot,\"1\")'"),
        (7, "7"),
        (True, "true"),
        (Lines("{\n  a\n\n}\n"), "|\n    {\n      a\n    \n    }"),
    ],
)
def test_scalars_are_written_as_a_person_would(value: object, written: str) -> None:
    assert scalar(value) == written


@pytest.mark.parametrize(
    "value",
    [
        None,
        1.5,
        {"a": 1},
        ["a"],
        "\ud800",
        Lines("a"),
        Lines(" a\n"),
        Lines("a\r\n"),
        Lines("a\u2028\n"),
        Lines("a\tb\n"),
    ],
    ids=ascii,
)
def test_what_isnt_a_scalar_is_refused(value: object) -> None:
    with pytest.raises(TemplateRuntimeError):
        scalar(value)


# --- custom templates -------------------------------------------------------------------------------------------


def test_a_custom_template_takes_the_place_of_the_built_in(tmp_path: Path) -> None:
    (tmp_path / "serviceaccount.yaml.j2").write_text("kind: ServiceAccount\nmetadata:\n  name: {{ name }}\n")
    rendered = list(documents(fleet_of(), templates=tmp_path))
    assert [d.text for d in rendered if d.kind == "ServiceAccount"] == [
        "kind: ServiceAccount\nmetadata:\n  name: orders-s0\n",
        "kind: ServiceAccount\nmetadata:\n  name: orders-s1\n",
    ]
    assert len(rendered) == len(list(documents(fleet_of())))


@pytest.mark.parametrize(
    "line",
    [
        "name: {{ name }}",
        "- {{ name }}",
        "  - - {{ name }}",
        "{{ name }}: {{ namespace }}",
        "{{ name }}: fixed",
        "{{ name }}:\n  a: 1",
        "{% if name %}\nname: {{ name }}\n{% endif %}",
        "{% for k, v in labels %}\n  {{ k }}: {{ v }}\n{% endfor %}",
        "a.b/c-d: {{ name }}",
    ],
)
def test_an_expression_may_be_a_key_a_value_or_an_item(line: str, tmp_path: Path) -> None:
    (tmp_path / "configmap.yaml.j2").write_text(line + "\n")
    for document in documents(fleet_of(), kinds=["ConfigMap"], templates=tmp_path):
        read_yaml(document.text)


@pytest.mark.parametrize(
    "line",
    [
        "name: x-{{ name }}",
        "name: {{ name }}-x",
        'name: "{{ name }}"',
        "name: '{{ name }}'",
        "name: {{ name }}{{ name }}",
        "name: {{ name }} # {{ namespace }}",
        "# {{ name }}",
        "name: [{{ name }}]",
        "name: {a: {{ name }}}",
        "name: {% if true %}x{% endif %}{{ name }}",
        "name: |{{ name }}",
        "name: &a {{ name }}",
        "a: b: {{ name }}",
    ],
)
def test_an_expression_that_is_part_of_a_scalar_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "configmap.yaml.j2").write_text(f"a: {{{{ name }}}}\n{line}\n")
    with pytest.raises(BadTemplateError, match=r"configmap\.yaml\.j2:2: an expression must be a whole key, value or"):
        list(documents(fleet_of(), kinds=["ConfigMap"], templates=tmp_path))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("a: {{ nmae }}\n", r"configmap\.yaml\.j2:1: 'nmae' is undefined"),
        ("a: {{ labels }}\n", r"configmap\.yaml\.j2:1: a template shows text, whole numbers and booleans, not tuple"),
        ("a: 1\n{% if %}\n", r"configmap\.yaml\.j2:2: Expected an expression"),
        ("{% include 'nothing' %}\n", r"configmap\.yaml\.j2:1: .*nothing"),
    ],
)
def test_a_template_at_fault_is_named(body: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "configmap.yaml.j2").write_text(body)
    with pytest.raises(BadTemplateError, match=message):
        list(documents(fleet_of(), templates=tmp_path))


# --- labels in shards.yaml --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label",
    ["team: payments", 'cost-centre: "4711"', "example.com/Team: Payments.EU", 'empty: ""', "a_b: c_d"],
)
def test_custom_labels(label: str) -> None:
    fleet = fleet_of(FLEET.replace("team: payments", label))
    ((key, value),) = fleet.labels.items()
    assert all(item["metadata"]["labels"][key] == value for item in objects(fleet))


@pytest.mark.parametrize(
    "label",
    [
        "app: other",
        "shard: other",
        "app.kubernetes.io/managed-by: other",
        "k8s.io/x: y",
        "team: 'two words'",
        "team: Payments",
        "team: a.b",
        "Team: a",
        "team-: a",
        "1team: a",
        "a/b/c: d",
        "a..b/c: d",
        "/c: d",
        "c/: d",
        "example.com/x: -a",
        f"team: {'a' * 64}",
        f"{'a' * 64}: a",
        f"{'a' * 254}/x: a",
        "team: 4711",
        'team: "a\\nb"',
    ],
)
def test_labels_that_kubernetes_google_cloud_or_a_selector_would_not_bear(label: str) -> None:
    with pytest.raises(spec_errors.SpecError, match=r"shards.yaml:\d+: labels"):
        fleet_of(FLEET.replace("team: payments", label))


@pytest.mark.parametrize("number", ["123456789012", '"my-project"', '"0123"', '"12 34"', '""'])
def test_a_project_number_is_digits_in_quotes(number: str) -> None:
    with pytest.raises(spec_errors.SpecError, match="project_number"):
        fleet_of(FLEET.replace('"123456789012"', number))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shards.yaml"
    path.write_text(FLEET)
    return path


def test_the_stream_is_every_document_in_order(file: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert render(file) == 0
    out, err = capfdbinary.readouterr()
    assert out.decode() == "".join(f"---\n{document.text}" for document in documents(load_fleet(file)))
    assert err == b""


def test_warnings_go_to_stderr(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_text(FLEET.replace("project_number", "# project_number"))
    assert render(file, kind=["Deployment"]) == 0
    out, err = capfd.readouterr()
    assert "warning" not in out
    assert err.startswith("warning: project_number isn't set")


def test_files_are_created_updated_or_found_identical(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def talk() -> dict[str, str]:
        assert render(file, out) == 0
        done = dict(line.split(" ", 1)[::-1] for line in capsys.readouterr().err.splitlines())
        return {Path(path).relative_to(out).as_posix(): word for path, word in done.items()}

    fleet = load_fleet(file)
    assert talk() == {document.path: "create" for document in documents(fleet)}
    assert {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*.yaml")} == {
        document.path: document.text for document in documents(fleet)
    }

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.yaml")}
    assert set(talk().values()) == {"identical"}
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.yaml")} == before

    (out / "shards/s0/configmap.yaml").write_text("changed by hand\n")
    (out / "shards/s1/deployment.yaml").unlink()
    again = talk()
    assert {path: word for path, word in again.items() if word != "identical"} == {
        "shards/s0/configmap.yaml": "update",
        "shards/s1/deployment.yaml": "create",
    }


def test_files_of_an_earlier_render_are_named_and_left(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    stale = out / "shards/s7/deployment.yaml"
    stale.parent.mkdir(parents=True)
    stale.write_text("old\n")
    assert render(file, out) == 0
    assert f"unknown {stale}: not part of this fleet, left as it is" in capsys.readouterr().err
    assert stale.read_text() == "old\n"
    assert render(file, out, shard=["s0"]) == 0
    assert "unknown" not in capsys.readouterr().err, "a part of the fleet doesn't show which files are stale"


def test_a_folder_that_cant_be_written_is_reported(file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ShardctlError, match="can't be written"):
        render(file, tmp_path / "out")


COMMAND = "import sys, pathlib; from shardctl.cli.render import render; sys.exit(render(pathlib.Path(sys.argv[1])))"


@pytest.mark.slow
def test_the_bytes_are_the_same_under_every_hash_seed() -> None:
    case = next(path for path in CASES if path.parent.name == "types-and-topics")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, case],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed in ("0", "1", "random")
    ]
    outputs = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(outputs) == 1
    assert outputs.pop().startswith(b"---\n")


@pytest.mark.slow
def test_a_reader_that_closes_the_pipe_early_gets_no_error(file: Path) -> None:
    shards = "\n".join(f"  - {{name: s{n}, slots: {n}}}" for n in range(64))  # several pipes full
    file.write_text(FLEET.partition("shards:")[0].replace("slot_bits: 4", "slot_bits: 6") + f"shards:\n{shards}\n")
    command = [sys.executable, "-c", "from shardctl.cli import main; raise SystemExit(main())", "render", "-f", file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == b"---\n"
        run.stdout.close()
        talk = run.stderr.read().decode()
        assert run.wait() == 0
    assert all(line.startswith("warning: ") for line in talk.splitlines())
