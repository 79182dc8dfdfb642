"""A fleet's part in Google Cloud as a POSIX shell script of `gcloud` commands that may be run again and again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import count
from shlex import quote

from shardctl.errors import UsageError
from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet
from shardctl.render.cloud import Account, Cloud, External, Grant, Job, Subscription, Topic, cloud
from shardctl.render.cloudmonitoring import dashboard_body, metric_body, policy_body
from shardctl.render.redisinstances import RedisInstance, ValkeyInstance
from shardctl.render.sqlinstances import Instance
from shardctl.render.templates import built_in


def text(fleet: Fleet) -> str:
    """The functions of `templates/gcloud.sh`, then one call of them a line. Raises UsageError for what gcloud can't take."""
    head = (built_in() / "gcloud.sh").read_text(encoding="utf-8")
    calls = (" ".join(quote(word) for word in words) for words in _calls(fleet, cloud(fleet)))
    return f"{head}\nproject={quote(fleet.project)}\n" + "".join(f"{call}\n" for call in calls)


def _calls(fleet: Fleet, resources: Cloud) -> Iterator[Sequence[str]]:
    labels = _mapping(sorted(topology.cloud_labels(fleet).items()))
    yield from (_grant(grant) for grant in resources.grants if grant.on == "key")  # no topic needs a key before that
    yield from (_topic(topic, labels) for topic in resources.topics)
    for sub in resources.subscriptions:
        yield "subscription", sub.id, _topic_path(fleet, sub.topic.id), sub.filter, labels, *_policies(fleet, sub)
    for account in resources.accounts:
        yield "account", account.email, account.id, account.display_name
    yield from _instances(resources, labels)
    for database in resources.sql_databases:
        yield "sql_database", database.project, database.instance, database.database
    for user in resources.sql_users:
        yield "sql_user", user.project, user.instance, user.user, user.login
    yield from (_grant(grant) for grant in resources.grants if grant.on != "key")
    yield from (_job(fleet, job) for job in resources.jobs)
    yield from _monitoring(fleet, resources)


def _topic(topic: Topic, labels: str) -> Sequence[str]:
    in_transit = "True" if topic.in_transit else ""
    return "topic", topic.id, labels, topic.kms_key or "", ",".join(sorted(topic.regions)), in_transit


def _instances(resources: Cloud, labels: str) -> Iterator[Sequence[str]]:
    for redis in resources.redis_instances:
        yield "redis_instance", redis.name, redis.region, labels, *_redis_instance(redis)
    for valkey in resources.valkey_instances:
        yield "valkey_instance", valkey.name, valkey.region, labels, *_valkey_instance(valkey)
    for instance in resources.sql_instances:
        yield "sql_instance", instance.project, instance.name, *_sql_instance(instance)


def _policies(fleet: Fleet, sub: Subscription) -> Iterator[str]:
    """What `describe` prints of a subscription with the right settings, then the flags that set them."""
    state = [str(sub.ack_deadline_seconds), sub.retention, "True" if sub.retain_acked else "", ""]
    flags = [
        f"--ack-deadline={sub.ack_deadline_seconds}",
        f"--message-retention-duration={sub.retention}",
        "--retain-acked-messages" if sub.retain_acked else "--no-retain-acked-messages",
        "--expiration-period=never",
    ]
    if sub.dead_letter is None:
        state += [""] * 4
    else:
        topic = _topic_path(fleet, sub.dead_letter.topic.id)
        attempts = str(sub.dead_letter.max_attempts)
        state += [sub.dead_letter.minimum_backoff, sub.dead_letter.maximum_backoff, topic, attempts]
        flags += [
            f"--min-retry-delay={sub.dead_letter.minimum_backoff}",
            f"--max-retry-delay={sub.dead_letter.maximum_backoff}",
            f"--dead-letter-topic={topic}",
            f"--max-delivery-attempts={attempts}",
        ]
    if sub.push is None:
        state += [""] * 4
    else:
        push = sub.push
        state += [push.endpoint, push.service_account, push.audience, "" if push.wrapped else "True"]
        flags += [
            f"--push-endpoint={push.endpoint}",
            f"--push-auth-service-account={push.service_account}",
            f"--push-auth-token-audience={push.audience}",
        ]
        if not push.wrapped:
            flags += ["--push-no-wrapper", "--push-no-wrapper-write-metadata"]
    yield from ("|".join(state), *flags)


def _redis_instance(instance: RedisInstance) -> Iterator[str]:
    """What `describe` prints of an instance as the file has it, then the flags that make it."""
    auth = "True" if instance.auth else ""
    yield f"{instance.tier}|{instance.memory_gb}|{instance.version}|{instance.encryption}|{auth}|{instance.connect}"
    yield from (
        f"--tier={instance.tier.removesuffix('_HA').lower()}",
        f"--size={instance.memory_gb}",
        f"--redis-version={instance.version.lower()}",
        f"--transit-encryption-mode={instance.encryption.lower().replace('_', '-')}",
        f"--connect-mode={instance.connect.lower().replace('_', '-')}",
    )
    if instance.auth:
        yield "--enable-auth"
    if instance.network:
        yield f"--network={instance.network}"


def _valkey_instance(instance: ValkeyInstance) -> Iterator[str]:
    """What `describe` prints of an instance as the file has it, then the flags that make it."""
    yield (
        f"CLUSTER_DISABLED|1|{instance.replicas or ''}|{instance.node_type}|{instance.version}|{instance.encryption}|"
        f"{instance.authorization}"
    )
    endpoint = {"network": instance.network, "projectId": instance.project}
    yield from (
        "--mode=cluster-disabled",
        "--shard-count=1",
        f"--replica-count={instance.replicas}",
        f"--node-type={instance.node_type.lower().replace('_', '-')}",
        f"--engine-version={instance.version}",
        f"--transit-encryption-mode={instance.encryption.lower().replace('_', '-')}",
        f"--authorization-mode={instance.authorization.lower().replace('_', '-')}",
        "--deletion-protection-enabled",
        f"--endpoints={json.dumps([{'connections': [{'pscAutoConnection': endpoint}]}])}",
    )


def _sql_instance(instance: Instance) -> Iterator[str]:
    """What `describe` prints of an instance as the file has it, then the flags that make it."""
    yield f"{instance.version}|{instance.region}|{instance.tier}|{instance.edition}|{instance.availability}"
    if instance.primary:
        yield f"--master-instance-name={instance.primary}"
    else:
        yield f"--database-version={instance.version}"
    yield from (
        f"--region={instance.region}",
        f"--tier={instance.tier}",
        f"--edition={instance.edition.lower().replace('_', '-')}",
        f"--availability-type={instance.availability.lower()}",
        "--deletion-protection",
        "--storage-auto-increase",
    )
    if instance.disk_gb:
        yield f"--storage-size={instance.disk_gb}GB"
    if instance.backups:
        yield f"--backup-start-time={instance.backups.start_time}"
        yield f"--retained-backups-count={instance.backups.retained}"
        if instance.backups.binary_log:
            yield "--enable-bin-log"
        if instance.backups.point_in_time:
            yield "--enable-point-in-time-recovery"
    if instance.flags:
        yield f"--database-flags={_mapping(instance.flags)}"
    yield "--assign-ip" if instance.public else "--no-assign-ip"
    if instance.network:
        yield f"--network={instance.network}"
    if instance.psc_projects:
        yield from ("--enable-private-service-connect", f"--allowed-psc-projects={','.join(instance.psc_projects)}")


def _grant(grant: Grant) -> Sequence[str]:
    on = grant.resource.email if isinstance(grant.resource, Account | External) else grant.resource.id
    member = grant.member if isinstance(grant.member, str) else f"serviceAccount:{grant.member.email}"
    condition = (grant.condition.title, grant.condition.expression) if grant.condition else ()
    return f"{grant.on}_grant", on, grant.role, member, *condition


def _job(fleet: Fleet, job: Job) -> Sequence[str]:
    attributes = _mapping(job.attributes)
    body = job.data.decode()
    checksum = sha256(f"{attributes}\n{body}".encode()).hexdigest()[:16]
    topic = _topic_path(fleet, job.topic.id)
    description = f"shardctl {checksum}"
    return "job", job.name, job.region, job.cron, job.time_zone, topic, body, attributes, description


def _monitoring(fleet: Fleet, resources: Cloud) -> Iterator[Sequence[str]]:
    """What is made from a file: its name, a checksum that `describe` prints of what was made from the same, and the file."""
    for metric in resources.log_metrics:
        body = metric_body(metric)
        checksum = _checksum(body)
        yield "log_metric", metric.name, checksum, _json(body | {"description": f"{metric.description} ({checksum})"})
    for policy in resources.alert_policies:
        body = policy_body(policy)
        labels = dict(topology.cloud_labels(fleet))
        checksum = _checksum(body | {"userLabels": labels})
        yield "alert_policy", policy.title, checksum, _json(body | {"userLabels": labels | {"checksum": checksum}})
    for board in resources.dashboards:
        body = dashboard_body(board)
        checksum = _checksum(body)
        path = f"projects/{fleet.project}/dashboards/{board.name}"
        yield "dashboard", board.name, checksum, _json(body | {"name": path, "labels": {"checksum": checksum}})


def _json(body: Mapping[str, object]) -> str:
    return json.dumps(body, sort_keys=True)


def _checksum(body: Mapping[str, object]) -> str:
    return sha256(_json(body).encode()).hexdigest()[:16]


def _mapping(pairs: Sequence[tuple[str, str]]) -> str:
    """Keys and values as gcloud reads them from one flag, parted by a sign that none of them holds: `gcloud topic escaping`."""
    for key, _ in pairs:
        if "=" in key or key.startswith("^"):
            raise UsageError(f"attribute {key!r}: gcloud accepts no name that contains '=' or begins with '^'")
    written = [f"{key}={value}" for key, value in pairs]
    if not any("," in pair for pair in written):
        return ",".join(written)
    delimiter = next(sign for number in count(1) if not any((sign := ":" * number + ";") in pair for pair in written))
    return f"^{delimiter}^" + delimiter.join(written)


def _topic_path(fleet: Fleet, topic_id: str) -> str:
    return f"projects/{fleet.project}/topics/{topic_id}"
