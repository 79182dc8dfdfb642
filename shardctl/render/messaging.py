"""Topics, subscriptions, who may use them, and schedules: what lies in Google Cloud, as Config Connector's objects."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any

from shardctl.fleet import schedules, topology
from shardctl.fleet.serviceaccounts import account_id
from shardctl.fleet.spec import Fleet
from shardctl.render.objects import Object, Plan, Writer, object_name, seconds, seconds_text

ENCRYPTER = "roles/cloudkms.cryptoKeyEncrypterDecrypter"


def topics(plan: Plan) -> Iterator[Object]:
    if not plan.whole:
        return
    fleet = plan.fleet
    for topic_id in (*(topic.id for topic in topology.topics(fleet)), topology.dead_letter_topic(fleet)):
        yield plan.object(
            "PubSubTopic", object_name(topic_id), None, project=fleet.project, topic_id=topic_id, settings=fleet.topic
        )


def subscriptions(plan: Plan) -> Iterator[Object]:
    fleet, settings = plan.fleet, plan.fleet.subscription
    dead_letter = {
        "topic_name": plan.dead_letter_topic,
        "max_attempts": settings.max_delivery_attempts,
        "minimum_backoff": seconds_text(topology.retry_minimum(fleet)),
        "maximum_backoff": seconds_text(settings.retry_maximum),
    }

    def subscription(owner: Writer | None, name: str, topic: str, filter_text: str, **others: Any) -> Object:
        return plan.object(
            "PubSubSubscription",
            name,
            owner,
            subscription_id=name,
            project=fleet.project,
            topic_name=object_name(topic),
            filter=filter_text,
            ack_deadline_seconds=seconds(settings.ack_deadline),
            **others,
        )

    for writer in plan.writers:
        for sub in writer.subscriptions:
            yield subscription(
                writer,
                sub.id,
                sub.topic.id,
                sub.filter,
                retention=seconds_text(settings.retention),
                retain_acked=settings.retain_acked,
                dead_letter=dead_letter,
                push=_push(plan, writer, sub),
            )
    if plan.whole:
        kept = {
            "retention": seconds_text(topology.KEPT_FOR_PEOPLE),
            "retain_acked": False,
            "dead_letter": None,
            "push": None,
        }
        for stray in topology.strays(fleet):
            yield subscription(None, stray.id, stray.topic.id, stray.filter, **kept)
        yield subscription(
            None, topology.dead_letter_subscription(fleet), topology.dead_letter_topic(fleet), "", **kept
        )


def _push(plan: Plan, writer: Writer, sub: topology.Subscription) -> Mapping[str, object] | None:
    endpoint, delivery = topology.push_endpoint(plan.fleet, writer.shard, sub), plan.fleet.delivery
    if endpoint is None:
        return None
    return {
        "endpoint": endpoint,
        "service_account": delivery.service_account,
        "audience": delivery.token_audience,
        "wrapped": delivery.wrapped,
    }


def accounts(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        yield plan.object(
            "IAMServiceAccount",
            writer.id,
            writer,
            project=plan.fleet.project,
            account_id=account_id(writer.id),
            display_name=f"Consumer of shard {writer.id}",
        )


def grants(plan: Plan) -> Iterator[Object]:
    fleet, agent = plan.fleet, plan.service_agent
    subscriber, publisher = "roles/pubsub.subscriber", "roles/pubsub.publisher"

    def grant(owner: Writer | None, name: str, role: str, on: tuple[str, str], **member: str) -> Object:
        who = {"member": None, "member_account": None, **member}
        return plan.object("IAMPolicyMember", name, owner, role=role, resource_kind=on[0], resource_name=on[1], **who)

    dead_letters = ("PubSubTopic", plan.dead_letter_topic)
    if plan.whole and agent and (key := fleet.topic.kms_key):
        on_key = ("KMSCryptoKey", key)
        yield grant(None, f"{fleet.fleet}-topic-key-agent", ENCRYPTER, on_key, member=agent, resource_external=key)
    if plan.whole and agent:
        yield grant(None, f"{fleet.fleet}-dead-letter-agent", publisher, dead_letters, member=agent)
        if fleet.delivery.kind == "push" and fleet.delivery.service_account:  # the agent signs pushes as this account
            yield grant(
                None,
                f"{fleet.fleet}-push-agent",
                "roles/iam.serviceAccountTokenCreator",
                ("IAMServiceAccount", fleet.delivery.service_account),
                member=agent,
                resource_external=_account_path(fleet, fleet.delivery.service_account),
            )
    for writer in plan.writers:
        yield grant(
            writer,
            f"{writer.id}-workload-identity",
            "roles/iam.workloadIdentityUser",
            ("IAMServiceAccount", writer.id),
            member=f"serviceAccount:{fleet.project}.svc.id.goog[{fleet.namespace}/{writer.id}]",
        )
        for sub in writer.subscriptions:
            own = ("PubSubSubscription", sub.id)
            yield grant(writer, f"{sub.id}-subscriber", subscriber, own, member_account=writer.id)
            if agent:
                yield grant(writer, f"{sub.id}-agent", subscriber, own, member=agent)
        yield grant(writer, f"{writer.id}-dead-letter-publisher", publisher, dead_letters, member_account=writer.id)
        # A slot's former owner republishes what it hasn't applied, and consumers relay what their sinks emit.
        if writer.shard.previous or fleet.emitted_by(writer.shard):
            for topic in topology.topics(fleet):
                on = ("PubSubTopic", object_name(topic.id))
                yield grant(writer, f"{writer.id}-{topic.id}-publisher", publisher, on, member_account=writer.id)


def _account_path(fleet: Fleet, email: str) -> str:
    """The full name of a service account that is yours: of the project that its address names, or else the fleet's."""
    named = re.fullmatch(r"[^@]+@([-a-z0-9]+)\.iam\.gserviceaccount\.com", email)
    return f"projects/{named[1] if named else fleet.project}/serviceAccounts/{email}"


def scheduler_jobs(plan: Plan) -> Iterator[Object]:
    if not plan.whole:
        return
    for job in schedules.jobs(plan.fleet):
        yield plan.object(
            "CloudSchedulerJob",
            job.name,
            None,
            project=plan.fleet.project,
            region=job.schedule.region,
            cron=job.schedule.cron,
            time_zone=job.schedule.time_zone,
            topic_name=object_name(job.topic.id),
            attributes=job.attributes,
            data=b64encode(job.data).decode(),
        )
