"""A fleet's part in Google Cloud as a Terraform module in JSON, for the `google` provider.

Addresses are the names that the Kubernetes objects have, so they are stable: adding a shard changes no other address.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from typing import Any

from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet
from shardctl.render.cloud import Account, Cloud, External, Grant, Job, Key, Project, Subscription, Topic, cloud
from shardctl.render.cloudmonitoring import dashboard_body, metric_body, policy_body
from shardctl.render.objects import digest
from shardctl.render.redisinstances import RedisInstance, ValkeyInstance
from shardctl.render.sqlinstances import Backups, Database, Instance, User

_RESOURCES = {
    Topic: "google_pubsub_topic",
    Subscription: "google_pubsub_subscription",
    Account: "google_service_account",
    External: "google_service_account",
    Project: "google_project",
    Key: "google_kms_crypto_key",
}
_MAPS = ("labelExtractors",)  # whose names are the user's
# A destroy would delete the backlog, so Terraform must refuse it: also to replace a subscription whose filter changed.
_KEPT = {"prevent_destroy": True}


def text(fleet: Fleet) -> str:
    """One module, to be used as a folder of its own. Needs the whole fleet: Terraform would destroy what is left out."""
    made = cloud(fleet)
    module = {
        "//": f"Rendered by shardctl from shards.yaml of the fleet {fleet.fleet}. Edit that file instead.",
        "terraform": {
            "required_version": ">= 1.0",
            "required_providers": {"google": {"source": "hashicorp/google", "version": _version(made)}},
        },
        "resource": {kind: resources for kind, resources in _resources(fleet, made).items() if resources},
    }
    return json.dumps(module, indent=2) + "\n"


def _version(made: Cloud) -> str:
    if made.valkey_instances:
        return ">= 7.0"  # before, their endpoints had another name
    if any(topic.in_transit for topic in made.topics):
        return ">= 6.18"  # the first that knows enforce_in_transit
    if made.alert_policies:
        return ">= 6.14"  # the first that makes a policy on metrics which don't exist yet
    return ">= 5.0"


def _resources(fleet: Fleet, cloud: Cloud) -> dict[str, dict[str, Any]]:
    project = _literal(fleet.project)
    labels = {key: _literal(value) for key, value in sorted(topology.cloud_labels(fleet).items())}
    resources: dict[str, dict[str, Any]] = {
        "google_pubsub_topic": {
            address(topic.name): {
                "project": project,
                "name": _literal(topic.id),
                **_storage(topic, cloud),
                "labels": labels,
                "lifecycle": _KEPT,
            }
            for topic in cloud.topics
        },
        "google_pubsub_subscription": {
            address(sub.name): {"project": project, **_subscription(sub), "labels": labels, "lifecycle": _KEPT}
            for sub in cloud.subscriptions
        },
        "google_service_account": {
            address(account.name): {
                "project": project,
                "account_id": account.id,
                "display_name": _literal(account.display_name),
            }
            for account in cloud.accounts
        },
        "google_redis_instance": {
            address(instance.name): {
                "project": project,
                **_redis_instance(instance),
                "labels": labels,
                "lifecycle": _KEPT,
            }
            for instance in cloud.redis_instances
        },
        "google_memorystore_instance": {
            address(instance.name): {**_valkey_instance(instance), "labels": labels, "lifecycle": _KEPT}
            for instance in cloud.valkey_instances
        },
        "google_sql_database_instance": {
            address(instance.name): _sql_instance(instance, labels) for instance in cloud.sql_instances
        },
        "google_sql_database": {address(database.name): _sql_database(database) for database in cloud.sql_databases},
        "google_sql_user": {address(user.name): _sql_user(user) for user in cloud.sql_users},
        "google_pubsub_topic_iam_member": {},
        "google_pubsub_subscription_iam_member": {},
        "google_service_account_iam_member": {},
        "google_project_iam_member": {},
        "google_kms_crypto_key_iam_member": {},
        "google_cloud_scheduler_job": {address(job.name): {"project": project, **_job(job)} for job in cloud.jobs},
        **_monitoring(cloud, project, labels),
    }
    for grant in cloud.grants:
        kind = f"{_RESOURCES[type(grant.resource)]}_iam_member"
        own = {"project": project} if grant.on in ("topic", "subscription") else {}
        resources[kind][address(grant.name)] = {**own, **_grant(grant)}
    return resources


def _storage(topic: Topic, cloud: Cloud) -> dict[str, Any]:
    """What encrypts the topic's messages, as soon as the service agent may use the key, and where they may be stored."""
    fields: dict[str, Any] = {}
    if topic.kms_key:
        fields["kms_key_name"] = topic.kms_key
        grants = [address(grant.name) for grant in cloud.grants if grant.on == "key"]
        fields["depends_on"] = [f"google_kms_crypto_key_iam_member.{grant}" for grant in grants]
    if topic.regions:
        fields["message_storage_policy"] = {"allowed_persistence_regions": list(topic.regions)}
        if topic.in_transit:
            fields["message_storage_policy"]["enforce_in_transit"] = True
    return fields


def _subscription(sub: Subscription) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": _literal(sub.id),
        "topic": _reference(sub.topic, "id"),
        "enable_message_ordering": True,
        "ack_deadline_seconds": sub.ack_deadline_seconds,
        "message_retention_duration": sub.retention,
        "expiration_policy": {"ttl": ""},  # never
    }
    if sub.retain_acked:
        fields["retain_acked_messages"] = True
    if sub.filter:
        fields["filter"] = _literal(sub.filter)
    if sub.push:
        fields["push_config"] = {
            "push_endpoint": _literal(sub.push.endpoint),
            "oidc_token": {
                "service_account_email": sub.push.service_account,
                "audience": _literal(sub.push.audience),
            },
        }
        if not sub.push.wrapped:
            fields["push_config"]["no_wrapper"] = {"write_metadata": True}
    if sub.dead_letter:
        fields["retry_policy"] = {
            "minimum_backoff": sub.dead_letter.minimum_backoff,
            "maximum_backoff": sub.dead_letter.maximum_backoff,
        }
        fields["dead_letter_policy"] = {
            "dead_letter_topic": _reference(sub.dead_letter.topic, "id"),
            "max_delivery_attempts": sub.dead_letter.max_attempts,
        }
    return fields


def _redis_instance(instance: RedisInstance) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": instance.name,
        "region": instance.region,
        "tier": instance.tier,
        "memory_size_gb": instance.memory_gb,
        "redis_version": instance.version,
        "transit_encryption_mode": instance.encryption,
        "auth_enabled": instance.auth,
        "connect_mode": instance.connect,
    }
    return {**fields, "authorized_network": instance.network} if instance.network else fields


def _valkey_instance(instance: ValkeyInstance) -> dict[str, Any]:
    return {
        "project": instance.project,
        "instance_id": instance.name,
        "location": instance.region,
        "mode": "CLUSTER_DISABLED",
        "shard_count": 1,
        "replica_count": instance.replicas,
        "node_type": instance.node_type,
        "engine_version": instance.version,
        "transit_encryption_mode": instance.encryption,
        "authorization_mode": instance.authorization,
        "deletion_protection_enabled": True,
        "desired_auto_created_endpoints": [{"network": instance.network, "project_id": instance.project}],
    }


def _sql_instance(instance: Instance, labels: dict[str, str]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "tier": instance.tier,
        "edition": instance.edition,
        "availability_type": instance.availability,
        "deletion_protection_enabled": True,
        "disk_autoresize": True,
        "user_labels": labels,
        "ip_configuration": {"ipv4_enabled": instance.public},
    }
    if instance.disk_gb:
        settings["disk_size"] = instance.disk_gb
    if instance.backups:
        settings["backup_configuration"] = _sql_backups(instance.backups)
    if instance.flags:
        settings["database_flags"] = [{"name": name, "value": _literal(value)} for name, value in instance.flags]
    if instance.network:
        settings["ip_configuration"]["private_network"] = instance.network
    if instance.psc_projects:
        psc = {"psc_enabled": True, "allowed_consumer_projects": list(instance.psc_projects)}
        settings["ip_configuration"]["psc_config"] = psc
    fields: dict[str, Any] = {
        "project": instance.project,
        "name": instance.name,
        "region": instance.region,
        "database_version": instance.version,
        "settings": settings,
        "deletion_protection": True,
        "lifecycle": _KEPT,
    }
    if instance.primary:
        fields["master_instance_name"] = _sql_name(instance.primary)
    return fields


def _sql_backups(backups: Backups) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "enabled": True,
        "start_time": backups.start_time,
        "backup_retention_settings": {"retained_backups": backups.retained},
    }
    if backups.binary_log is not None:
        fields["binary_log_enabled"] = backups.binary_log
    if backups.point_in_time is not None:
        fields["point_in_time_recovery_enabled"] = backups.point_in_time
    return fields


def _sql_database(database: Database) -> dict[str, Any]:
    return {
        "project": database.project,
        "instance": _sql_name(database.instance),
        "name": database.database,
        "deletion_policy": "ABANDON",
        "lifecycle": _KEPT,
    }


def _sql_user(user: User) -> dict[str, Any]:
    return {
        "project": user.project,
        "instance": _sql_name(user.instance),
        "name": user.login,
        "type": "CLOUD_IAM_SERVICE_ACCOUNT",
        "deletion_policy": "ABANDON",
        "depends_on": [f"google_service_account.{address(user.account)}"],
    }


def _sql_name(instance: str) -> str:
    return f"${{google_sql_database_instance.{address(instance)}.name}}"


def _grant(grant: Grant) -> dict[str, Any]:
    on = {"account": "service_account_id", "key": "crypto_key_id"}.get(grant.on, grant.on)
    member, condition = grant.member, grant.condition
    return {
        on: _resource(grant),
        "role": grant.role,
        "member": _literal(member) if isinstance(member, str) else f"serviceAccount:{_reference(member, 'email')}",
        **({"condition": {"title": condition.title, "expression": condition.expression}} if condition else {}),
    }


def _resource(grant: Grant) -> str:
    match grant.resource:
        case Project(id) | Key(id):
            return id
        case External(path):
            return path
        case made:
            return _reference(made, "name")


def _job(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "region": job.region,
        "schedule": _literal(job.cron),
        "time_zone": job.time_zone,
        "pubsub_target": {
            "topic_name": _reference(job.topic, "id"),
            "data": b64encode(job.data).decode(),
            "attributes": {_literal(key): _literal(value) for key, value in job.attributes},
        },
    }


def _monitoring(cloud: Cloud, project: str, labels: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {
        "google_logging_metric": {
            address(metric.name): {"project": project, "name": metric.name, **_snake(metric_body(metric))}
            for metric in cloud.log_metrics
        },
        "google_monitoring_alert_policy": {
            address(policy.name): {"project": project, **_snake(policy_body(policy)), "user_labels": labels}
            for policy in cloud.alert_policies
        },
        "google_monitoring_dashboard": {
            address(board.name): {"project": project, "dashboard_json": _literal(json.dumps(dashboard_body(board)))}
            for board in cloud.dashboards
        },
    }


def _snake(body: Any) -> Any:
    """What an API reads, under Terraform's names; texts as they stand."""
    match body:
        case dict():
            return {
                re.sub("([A-Z])", r"_\1", name).lower(): value if name in _MAPS else _snake(value)
                for name, value in body.items()
            }
        case list():
            return [_snake(item) for item in body]
        case str():
            return _literal(body)
    return body


def address(name: str) -> str:
    """A name as Terraform's identifiers go: itself wherever it is one."""
    if re.fullmatch(r"[A-Za-z_][-A-Za-z0-9_]*", name):
        return name
    return f"_{re.sub(r'[^-A-Za-z0-9_]', '-', name)}-{digest(name)}"


def _reference(to: Topic | Subscription | Account, attribute: str) -> str:
    return f"${{{_RESOURCES[type(to)]}.{address(to.name)}.{attribute}}}"


def _literal(value: str) -> str:
    """Text that Terraform shows as it stands: in its JSON, `${` and `%{` would begin an expression."""
    return value.replace("${", "$${").replace("%{", "%%{")
