"""The Terraform module, held against the arguments that the google provider documents."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardctl.fleet.spec import Fleet
from shardctl.provision import wanted_subscriptions, wanted_topics
from shardctl.render import documents, terraform
from tests.unit.render.cloud_kit import FLEET, fleet_of

# Resource: argument → whether it must be there, or the arguments of its block.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "google_pubsub_topic": {
        "name": True,
        "project": False,
        "labels": False,
        "kms_key_name": False,
        "message_storage_policy": {"allowed_persistence_regions": True, "enforce_in_transit": False},
    },
    "google_pubsub_subscription": {
        "name": True,
        "topic": True,
        "project": False,
        "labels": False,
        "ack_deadline_seconds": False,
        "message_retention_duration": False,
        "enable_message_ordering": False,
        "filter": False,
        "expiration_policy": {"ttl": True},
        "retry_policy": {"minimum_backoff": False, "maximum_backoff": False},
        "dead_letter_policy": {"dead_letter_topic": False, "max_delivery_attempts": False},
    },
    "google_service_account": {"account_id": True, "display_name": False, "project": False},
    "google_pubsub_topic_iam_member": {"topic": True, "role": True, "member": True, "project": False},
    "google_pubsub_subscription_iam_member": {"subscription": True, "role": True, "member": True, "project": False},
    "google_kms_crypto_key_iam_member": {"crypto_key_id": True, "role": True, "member": True},
    "google_service_account_iam_member": {"service_account_id": True, "role": True, "member": True},
    "google_redis_instance": {
        "project": False,
        "name": True,
        "region": False,
        "tier": False,
        "memory_size_gb": True,
        "redis_version": False,
        "transit_encryption_mode": False,
        "auth_enabled": False,
        "connect_mode": False,
        "authorized_network": False,
        "labels": False,
    },
    "google_sql_database_instance": {
        "project": False,
        "name": False,
        "region": False,
        "database_version": True,
        "master_instance_name": False,
        "deletion_protection": False,
        "settings": {
            "tier": True,
            "edition": False,
            "availability_type": False,
            "deletion_protection_enabled": False,
            "disk_autoresize": False,
            "disk_size": False,
            "user_labels": False,
            "database_flags": False,
            "backup_configuration": {
                "enabled": False,
                "start_time": False,
                "binary_log_enabled": False,
                "point_in_time_recovery_enabled": False,
                "backup_retention_settings": {"retained_backups": True},
            },
            "ip_configuration": {
                "ipv4_enabled": False,
                "private_network": False,
                "psc_config": {"psc_enabled": False, "allowed_consumer_projects": False},
            },
        },
    },
    "google_sql_database": {"project": False, "instance": True, "name": True, "deletion_policy": False},
    "google_sql_user": {"project": False, "instance": True, "name": True, "type": False, "deletion_policy": False},
    "google_project_iam_member": {
        "project": True,
        "role": True,
        "member": True,
        "condition": {"title": True, "expression": True, "description": False},
    },
    "google_cloud_scheduler_job": {
        "name": True,
        "region": False,
        "project": False,
        "schedule": False,
        "time_zone": False,
        "pubsub_target": {"topic_name": True, "data": False, "attributes": False},
    },
}
REFERENCE = re.compile(r"(?<!\$)\$\{(\w+)\.([-\w]+)\.(\w+)\}")


def module(fleet: Fleet) -> dict[str, Any]:
    return json.loads(terraform.text(fleet))


def resources(fleet: Fleet) -> dict[str, dict[str, Any]]:
    return module(fleet)["resource"]


def check(fields: dict[str, Any], known: dict[str, Any], where: str) -> None:
    assert set(fields) <= set(known), where
    for name, rule in known.items():
        if isinstance(rule, dict):
            if name in fields:
                check(fields[name], rule, f"{where}.{name}")
        elif rule:
            assert fields[name] not in (None, []), where


def test_every_resource_has_documented_arguments_alone() -> None:
    resources_by_kind = resources(fleet_of())
    assert set(resources_by_kind) == set(ARGUMENTS)
    for kind, instances in resources_by_kind.items():
        for address, fields in instances.items():
            assert re.fullmatch(r"[A-Za-z_][-A-Za-z0-9_]*", address)
            own = {name: value for name, value in fields.items() if name not in ("lifecycle", "depends_on")}
            check(own, ARGUMENTS[kind], f"{kind}.{address}")


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *strings(item))
    elif isinstance(value, str):
        yield value


def test_every_reference_has_its_resource() -> None:
    resources_by_kind = resources(fleet_of())
    references = [match for text in strings(resources_by_kind) for match in REFERENCE.findall(text)]
    assert references
    for kind, address, attribute in references:
        assert address in resources_by_kind[kind]
        assert attribute in {"id", "name", "email"}


def test_topics_and_subscriptions_are_what_provision_wants() -> None:
    fleet, resources_by_kind = fleet_of(), resources(fleet_of())
    topics = {fields["name"]: fields for fields in resources_by_kind["google_pubsub_topic"].values()}
    assert {name: fields["labels"] for name, fields in topics.items()} == {
        topic.name.rpartition("/")[2]: dict(topic.labels) for topic in wanted_topics(fleet)
    }
    subscriptions = {fields["name"]: fields for fields in resources_by_kind["google_pubsub_subscription"].values()}
    for wanted in wanted_subscriptions(fleet):
        fields = subscriptions.pop(wanted.name.rpartition("/")[2])
        assert fields["topic"] == f"${{google_pubsub_topic.{wanted.topic.rpartition('/')[2]}.id}}"
        assert fields.get("filter", "") == wanted.filter
        assert fields["enable_message_ordering"] is True
        assert fields["ack_deadline_seconds"] == wanted.ack_deadline_seconds
        assert fields["message_retention_duration"] == f"{wanted.message_retention_duration.total_seconds():.0f}s"
        assert fields["expiration_policy"] == {"ttl": ""}
        assert ("dead_letter_policy" in fields) == bool(wanted.dead_letter_policy.dead_letter_topic)
        assert ("retry_policy" in fields) == ("retry_policy" in wanted)
    assert not subscriptions


def test_nothing_of_a_database_is_ever_destroyed() -> None:
    resources_by_kind = resources(fleet_of())
    for instance in resources_by_kind["google_sql_database_instance"].values():
        assert instance["deletion_protection"] is instance["settings"]["deletion_protection_enabled"] is True
        assert instance["lifecycle"] == {"prevent_destroy": True}
    for kind in ("google_sql_database", "google_sql_user"):
        assert {fields["deletion_policy"] for fields in resources_by_kind[kind].values()} == {"ABANDON"}


def test_a_user_of_the_database_waits_for_its_account() -> None:
    (user,) = resources(fleet_of())["google_sql_user"].values()
    assert user["depends_on"] == ["google_service_account.orders-s1"]
    assert user["depends_on"][0].rpartition(".")[2] in resources(fleet_of())["google_service_account"]


def test_topics_are_encrypted_and_stored_as_provision_wants() -> None:
    fleet, resources_by_kind = fleet_of(), resources(fleet_of())
    topics = {fields["name"]: fields for fields in resources_by_kind["google_pubsub_topic"].values()}
    for wanted in wanted_topics(fleet):
        fields, policy = topics.pop(wanted.name.rpartition("/")[2]), wanted.message_storage_policy
        assert fields["kms_key_name"] == wanted.kms_key_name
        assert fields["message_storage_policy"] == {
            "allowed_persistence_regions": list(policy.allowed_persistence_regions),
            "enforce_in_transit": policy.enforce_in_transit,
        }
        (grant,) = fields["depends_on"]  # the key may be used before a topic is encrypted by it
        kind, _, address = grant.partition(".")
        assert resources_by_kind[kind][address]["crypto_key_id"] == wanted.kms_key_name
        assert resources_by_kind[kind][address]["member"].startswith(
            "serviceAccount:service-123456789012@gcp-sa-pubsub."
        )
    assert topics == {}


def test_an_older_provider_does_unless_a_topic_needs_more() -> None:
    plain = FLEET.replace("  enforce_in_transit: true\n", "")
    versions = [
        json.loads(terraform.text(fleet_of(text)))["terraform"]["required_providers"]["google"]["version"]
        for text in (FLEET, plain)
    ]
    assert versions[0] == ">= 6.18"
    assert versions[1] != versions[0]


def test_its_grants_are_config_connectors() -> None:
    fleet = fleet_of()
    members = sum(len(members) for kind, members in resources(fleet).items() if kind.endswith("_iam_member"))
    config_connector = fleet.model_copy(update={"provisioner": "config-connector"})
    assert members == len(list(documents(config_connector, kinds=["IAMPolicyMember"])))


def test_what_holds_a_backlog_is_never_destroyed() -> None:
    resources_by_kind = resources(fleet_of())
    for kind in ("google_pubsub_topic", "google_pubsub_subscription"):
        assert all(fields["lifecycle"] == {"prevent_destroy": True} for fields in resources_by_kind[kind].values())


def test_another_shard_changes_nobodys_address() -> None:
    one_more = FLEET.replace("slots: 8-15, generation: 3}", "slots: 8-11, generation: 3}\n  - {name: a, slots: 12-15}")
    before, after = resources(fleet_of()), resources(fleet_of(one_more))
    assert all(set(before[kind]) <= set(after[kind]) for kind in before)


def test_text_is_never_an_expression() -> None:
    fleet = fleet_of()
    attributes = fleet.routing.attributes.model_copy(update={"slot": "${path.module}%{if}"})
    routing = fleet.routing.model_copy(update={"attributes": attributes})
    text = terraform.text(fleet.model_copy(update={"routing": routing}))
    assert "$${path.module}%%{if}" in text
    assert not re.search(r"(?<!\$)\$\{path|(?<!%)%\{", text)


def test_names_that_terraform_wouldnt_take_get_addresses_of_their_own() -> None:
    names = ["orders-s0", "a.b", "a-b", "0a", "é"]
    addresses = [terraform.address(name) for name in names]
    assert addresses[0] == "orders-s0"
    assert len(set(addresses)) == len(names)
    assert all(terraform.address(address) == address for address in addresses)


def test_without_schedules_there_are_no_jobs() -> None:
    assert "google_cloud_scheduler_job" not in resources(fleet_of().model_copy(update={"schedules": ()}))


def test_it_is_the_same_each_time() -> None:
    assert terraform.text(fleet_of()) == terraform.text(fleet_of())


def test_terraform_reads_it(tmp_path: Path) -> None:
    """Without the provider it can't say more than that the syntax and the references between resources are right."""
    if not shutil.which("terraform"):
        pytest.skip("no terraform on the PATH")
    (tmp_path / "orders.tf.json").write_text(terraform.text(fleet_of()))
    run = subprocess.run(
        ["terraform", "validate", "-json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/usr/local/bin:/bin"},
    )
    faults = {fault["summary"] for fault in json.loads(run.stdout)["diagnostics"] if fault["severity"] == "error"}
    assert faults <= {"Missing required provider"}
