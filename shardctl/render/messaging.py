"""Topics, subscriptions, who may use them, and schedules: what lies in Google Cloud, as Config Connector's objects."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from shardctl import schedules, topology
from shardctl.render.objects import Object, Plan, Writer, account_id, object_name, seconds, seconds_text


def topics(plan: Plan) -> Iterator[Object]:
    if not plan.whole:
        return
    fleet = plan.fleet
    for topic_id in (*(topic.id for topic in topology.topics(fleet)), topology.dead_letter_topic(fleet)):
        yield plan.object("PubSubTopic", object_name(topic_id), None, project=fleet.project, topic_id=topic_id)


def subscriptions(plan: Plan) -> Iterator[Object]:
    fleet, settings = plan.fleet, plan.fleet.subscription
    dead_letter = {
        "topic_name": plan.dead_letter_topic,
        "max_attempts": settings.max_delivery_attempts,
        "minimum_backoff": seconds_text(settings.retry_minimum),
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
                dead_letter=dead_letter,
            )
    if plan.whole:
        kept = {"retention": seconds_text(topology.KEPT_FOR_PEOPLE), "dead_letter": None}
        for stray in topology.strays(fleet):
            yield subscription(None, stray.id, stray.topic.id, stray.filter, **kept)
        yield subscription(
            None, topology.dead_letter_subscription(fleet), topology.dead_letter_topic(fleet), "", **kept
        )


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
    if plan.whole and agent:
        yield grant(None, f"{fleet.fleet}-dead-letter-agent", publisher, dead_letters, member=agent)
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
        if writer.shard.previous:  # what a slot's former owner finds unapplied, it publishes again
            for topic in topology.topics(fleet):
                on = ("PubSubTopic", object_name(topic.id))
                yield grant(writer, f"{writer.id}-{topic.id}-publisher", publisher, on, member_account=writer.id)


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
