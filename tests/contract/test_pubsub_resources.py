"""Topics, subscriptions and snapshots through the real client."""

from __future__ import annotations

import pytest
from google.api_core.exceptions import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfRange

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The return_immediately flag")]


def test_a_topic_exists_once_and_is_gone_when_deleted(pubsub):
    topic = pubsub.topic(labels={"team": "a"})
    assert dict(pubsub.publisher.get_topic(topic=topic).labels) == {"team": "a"}
    with pytest.raises(AlreadyExists):
        pubsub.topic()
    pubsub.publisher.delete_topic(topic=topic)
    for call in (pubsub.publisher.get_topic, pubsub.publisher.delete_topic):
        with pytest.raises(NotFound):
            call(topic=topic)


@pytest.mark.parametrize("name", ["ab", "1abc", "goog-abc", "a b c"])
def test_ill_formed_names_are_refused(pubsub, name):
    with pytest.raises(InvalidArgument):
        pubsub.topic(name)


def test_lists_are_paged_and_complete(pubsub):
    names = [pubsub.topic(f"topic-{n}") for n in range(7)]
    pages = list(pubsub.publisher.list_topics(request={"project": f"projects/{pubsub.project}", "page_size": 3}).pages)
    assert [len(page.topics) for page in pages] == [3, 3, 1]
    assert sorted(topic.name for page in pages for topic in page.topics) == names


def test_a_subscription_shows_defaults_and_what_it_was_given(pubsub):
    topic = pubsub.topic()
    dead = pubsub.topic("dead")
    subscription = pubsub.subscribe(
        topic,
        enable_message_ordering=True,
        labels={"shard": "s0"},
        dead_letter_policy={"dead_letter_topic": dead, "max_delivery_attempts": 7},
        retry_policy={"minimum_backoff": {"seconds": 1}, "maximum_backoff": {"seconds": 20}},
    )
    shown = pubsub.subscriber.get_subscription(subscription=subscription)
    assert shown.topic == topic
    assert shown.ack_deadline_seconds == 10
    assert shown.message_retention_duration.days == 7
    assert shown.enable_message_ordering
    assert shown.dead_letter_policy.max_delivery_attempts == 7
    assert shown.retry_policy.maximum_backoff.seconds == 20
    assert list(pubsub.publisher.list_topic_subscriptions(topic=topic)) == [subscription]
    listed = pubsub.subscriber.list_subscriptions(project=f"projects/{pubsub.project}")
    assert [resource.name for resource in listed] == [subscription]


def test_a_subscription_exists_once_and_needs_a_topic(pubsub):
    with pytest.raises(NotFound):
        pubsub.subscribe(pubsub.topic_name())
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic)
    with pytest.raises(AlreadyExists):
        pubsub.subscribe(topic)
    pubsub.subscriber.delete_subscription(subscription=subscription)
    for call in (pubsub.subscriber.get_subscription, pubsub.subscriber.delete_subscription):
        with pytest.raises(NotFound):
            call(subscription=subscription)
    assert not list(pubsub.publisher.list_topic_subscriptions(topic=topic))


def test_a_deleted_topic_leaves_its_subscriptions(pubsub):
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic)
    pubsub.publisher.delete_topic(topic=topic)
    assert pubsub.subscriber.get_subscription(subscription=subscription).topic == "_deleted-topic_"


def test_what_can_change_changes(pubsub):
    subscription = pubsub.subscribe(pubsub.topic())
    shown = pubsub.subscriber.update_subscription(
        request={
            "subscription": {"name": subscription, "ack_deadline_seconds": 30, "labels": {"ignored": "yes"}},
            "update_mask": {"paths": ["ack_deadline_seconds"]},
        }
    )
    assert shown.ack_deadline_seconds == 30
    assert not shown.labels


@pytest.mark.parametrize("path", ["enable_message_ordering", "topic", "nonsense"])
def test_what_is_immutable_is_refused(pubsub, path):
    subscription = pubsub.subscribe(pubsub.topic())
    update = {"name": subscription, "enable_message_ordering": True, "topic": pubsub.topic_name("other")}
    with pytest.raises(InvalidArgument):
        pubsub.subscriber.update_subscription(request={"subscription": update, "update_mask": {"paths": [path]}})


@pytest.mark.parametrize(
    "options",
    [
        {"ack_deadline_seconds": 601},
        {"message_retention_duration": {"seconds": 30}},
        {"dead_letter_policy": {"max_delivery_attempts": 101}},
    ],
    ids=["ack deadline", "retention", "attempts"],
)
def test_values_out_of_range_are_refused(pubsub, options):
    topic = pubsub.topic()
    if "dead_letter_policy" in options:
        options = {"dead_letter_policy": {**options["dead_letter_policy"], "dead_letter_topic": pubsub.topic("dead")}}
    with pytest.raises((InvalidArgument, OutOfRange)):
        pubsub.subscribe(topic, **options)


def test_a_topic_can_be_updated(pubsub, needs):
    needs("update topic")
    topic = pubsub.topic()
    request = {"topic": {"name": topic, "labels": {"a": "b"}}, "update_mask": {"paths": ["labels"]}}
    assert dict(pubsub.publisher.update_topic(request=request).labels) == {"a": "b"}
    assert dict(pubsub.publisher.get_topic(topic=topic).labels) == {"a": "b"}


def test_a_detached_subscription_gives_no_messages(pubsub, needs):
    needs("detach")
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic)
    pubsub.publish(topic, "x")
    pubsub.publisher.detach_subscription(request={"subscription": subscription})
    with pytest.raises(FailedPrecondition):
        pubsub.pull(subscription, 1)


def test_a_filter_is_shown_checked_and_immutable(pubsub, needs):
    needs("filters")
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic, filter='hasPrefix(attributes.slot, "01")')
    assert pubsub.subscriber.get_subscription(subscription=subscription).filter == 'hasPrefix(attributes.slot, "01")'
    for bad in ("attributes:a AND attributes:b OR attributes:c", "attributes:" + "x" * 250):
        with pytest.raises(InvalidArgument):
            pubsub.subscribe(topic, "other", filter=bad)
    with pytest.raises(InvalidArgument):
        pubsub.subscriber.update_subscription(
            request={"subscription": {"name": subscription}, "update_mask": {"paths": ["filter"]}}
        )


def test_snapshots_exist_once_and_are_gone_when_deleted(pubsub):
    subscription = pubsub.subscribe(pubsub.topic())
    snapshot = pubsub.subscriber.create_snapshot(name=pubsub.snapshot_name(), subscription=subscription)
    assert snapshot.topic == pubsub.topic_name()
    listed = pubsub.subscriber.list_snapshots(project=f"projects/{pubsub.project}")
    assert [resource.name for resource in listed] == [snapshot.name]
    with pytest.raises(AlreadyExists):
        pubsub.subscriber.create_snapshot(name=snapshot.name, subscription=subscription)
    pubsub.subscriber.delete_snapshot(snapshot=snapshot.name)
    with pytest.raises(NotFound):
        pubsub.subscriber.delete_snapshot(snapshot=snapshot.name)
