"""What a fleet has in Google Cloud, independent of any output format.

Read from the same objects that become Config Connector's, so that all formats make the same.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shardctl.fleet import operators
from shardctl.fleet.spec import Fleet
from shardctl.render import (
    apps,
    cloudmonitoring,
    cloudsql,
    gateway,
    messaging,
    operator,
    redisinstances,
    relay,
    sqlinstances,
)
from shardctl.render.objects import Object, Plan

On = Literal["topic", "subscription", "account", "project", "key"]
_ON: Mapping[str, On] = {
    "PubSubTopic": "topic",
    "PubSubSubscription": "subscription",
    "IAMServiceAccount": "account",
    "Project": "project",
    "KMSCryptoKey": "key",
}
_GRANTS = (messaging.grants, cloudsql.grants, redisinstances.grants, gateway.grants, relay.grants, operator.grants)


@dataclass(frozen=True, slots=True)
class Topic:
    """`name`, here and below, is the object's in Kubernetes, unique among its kind: formats derive their own ids from it."""

    name: str
    id: str
    kms_key: str | None
    regions: tuple[str, ...]
    in_transit: bool


@dataclass(frozen=True, slots=True)
class DeadLetter:
    topic: Topic
    max_attempts: int
    minimum_backoff: str
    maximum_backoff: str


@dataclass(frozen=True, slots=True)
class Push:
    endpoint: str
    service_account: str
    audience: str
    wrapped: bool


@dataclass(frozen=True, slots=True)
class Subscription:
    name: str
    id: str
    topic: Topic
    filter: str
    ack_deadline_seconds: int
    retention: str
    retain_acked: bool
    dead_letter: DeadLetter | None
    push: Push | None


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    id: str
    email: str
    display_name: str


@dataclass(frozen=True, slots=True)
class External:
    """A service account that is yours, not the fleet's; `path` is its full name in Google Cloud."""

    path: str
    email: str


@dataclass(frozen=True, slots=True)
class Project:
    id: str


@dataclass(frozen=True, slots=True)
class Key:
    """A key in Cloud KMS, which is yours; `id` is its full name."""

    id: str


@dataclass(frozen=True, slots=True)
class Condition:
    """What narrows a grant, as IAM writes it."""

    title: str
    expression: str


@dataclass(frozen=True, slots=True)
class Grant:
    """`member` is who gets `role` on one resource: an account of the fleet, or another's name as IAM writes it."""

    name: str
    role: str
    on: On
    resource: Topic | Subscription | Account | External | Project | Key
    member: Account | str
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    region: str
    cron: str
    time_zone: str
    topic: Topic
    data: bytes
    attributes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Cloud:
    """Everything, in an order in which it can be made. Strays and dead letters come before the shards' subscriptions: from a
    topic's first message on, nothing may go by unseen.
    """

    topics: tuple[Topic, ...]
    subscriptions: tuple[Subscription, ...]
    accounts: tuple[Account, ...]
    redis_instances: tuple[redisinstances.RedisInstance, ...]
    valkey_instances: tuple[redisinstances.ValkeyInstance, ...]
    sql_instances: tuple[sqlinstances.Instance, ...]
    sql_databases: tuple[sqlinstances.Database, ...]
    sql_users: tuple[sqlinstances.User, ...]
    grants: tuple[Grant, ...]
    jobs: tuple[Job, ...]
    log_metrics: tuple[cloudmonitoring.LogMetric, ...]
    alert_policies: tuple[cloudmonitoring.AlertPolicy, ...]
    dashboards: tuple[cloudmonitoring.Dashboard, ...]


def cloud(fleet: Fleet) -> Cloud:
    apps.refuse_shared_names(fleet)
    plan = Plan(fleet, fleet.shards, whole=True)
    emails = {writer.id: plan.account_email(writer) for writer in plan.writers}
    emails |= {apps.name_of(fleet, part): apps.email(fleet, part) for part in (gateway.COMPONENT, relay.COMPONENT)}
    emails[operators.name_of(fleet)] = operators.email(fleet)
    topics = {name: _topic(name, fields) for name, fields in _read(messaging.topics, plan)}
    objects = sorted(messaging.subscriptions(plan), key=lambda item: item.owner is not None)
    subscriptions = {item.name: _subscription(item, topics) for item in objects}
    accounts = {
        name: Account(name, fields["account_id"], emails[name], fields["display_name"])
        for build in (messaging.accounts, gateway.accounts, relay.accounts, operator.accounts)
        for name, fields in _read(build, plan)
    }
    made: Mapping[On, Mapping[str, Any]] = {"topic": topics, "subscription": subscriptions, "account": accounts}
    grants = (_grant(name, fields, made) for build in _GRANTS for name, fields in _read(build, plan))
    jobs = (
        Job(
            name,
            fields["region"],
            fields["cron"],
            fields["time_zone"],
            topics[fields["topic_name"]],
            b64decode(fields["data"]),
            fields["attributes"],
        )
        for name, fields in _read(messaging.scheduler_jobs, plan)
    )
    return Cloud(
        topics=tuple(topics.values()),
        subscriptions=tuple(subscriptions.values()),
        accounts=tuple(accounts.values()),
        redis_instances=tuple(fields["instance"] for _, fields in _read(redisinstances.redis_instances, plan)),
        valkey_instances=tuple(fields["instance"] for _, fields in _read(redisinstances.valkey_instances, plan)),
        sql_instances=tuple(fields["instance"] for _, fields in _read(sqlinstances.instances, plan)),
        sql_databases=tuple(fields["database"] for _, fields in _read(sqlinstances.databases, plan)),
        sql_users=tuple(
            fields["user"]
            for build in (sqlinstances.users, gateway.users, operator.users)
            for _, fields in _read(build, plan)
        ),
        grants=tuple(grants),
        jobs=tuple(jobs),
        log_metrics=tuple(fields["metric"] for _, fields in _read(cloudmonitoring.log_metrics, plan)),
        alert_policies=tuple(fields["policy"] for _, fields in _read(cloudmonitoring.alert_policies, plan)),
        dashboards=tuple(fields["board"] for _, fields in _read(cloudmonitoring.dashboards, plan)),
    )


def _read(build: Callable[[Plan], Iterator[Object]], plan: Plan) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((item.name, item.fields) for item in build(plan))


def _grant(name: str, fields: Mapping[str, Any], made: Mapping[On, Mapping[str, Any]]) -> Grant:
    on, condition = _ON[fields["resource_kind"]], fields.get("condition")
    member = made["account"][fields["member_account"]] if fields["member_account"] else fields["member"]
    return Grant(name, fields["role"], on, _resource(on, fields, made), member, condition and Condition(**condition))


def _resource(
    on: On, fields: Mapping[str, Any], made: Mapping[On, Mapping[str, Any]]
) -> Topic | Subscription | Account | External | Project | Key:
    name, external = fields["resource_name"], fields.get("resource_external")
    if on == "project":
        return Project(name)
    if on == "key":
        return Key(name)
    if external:
        return External(external, name)
    resource: Topic | Subscription | Account = made[on][name]
    return resource


def _topic(name: str, fields: Mapping[str, Any]) -> Topic:
    settings = fields["settings"]
    return Topic(name, fields["topic_id"], settings.kms_key, settings.allowed_regions, settings.enforce_in_transit)


def _subscription(item: Object, topics: Mapping[str, Topic]) -> Subscription:
    fields: Mapping[str, Any] = item.fields
    policy = fields["dead_letter"]
    return Subscription(
        item.name,
        fields["subscription_id"],
        topics[fields["topic_name"]],
        fields["filter"],
        fields["ack_deadline_seconds"],
        fields["retention"],
        fields["retain_acked"],
        policy
        and DeadLetter(
            topics[policy["topic_name"]],
            policy["max_attempts"],
            policy["minimum_backoff"],
            policy["maximum_backoff"],
        ),
        fields["push"] and Push(**fields["push"]),
    )
