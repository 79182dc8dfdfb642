"""Clients of the REST API: the generated one, gcloud-aio-pubsub and gcloud. What they do, gRPC sees, and the other way round."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from google.api_core.exceptions import BadRequest, Conflict, GoogleAPICallError, NotFound
from google.auth.credentials import AnonymousCredentials
from google.pubsub_v1 import PublisherClient, SubscriberClient, types
from google.pubsub_v1.services.publisher.transports.rest import PublisherRestTransport
from google.pubsub_v1.services.subscriber.transports.rest import SubscriberRestTransport
from pubsub_harness import official_differs

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The return_immediately flag")]


@pytest.fixture
def rest(server):
    """The generated clients, by REST."""
    options = {"host": f"http://{server.rest_host}", "credentials": AnonymousCredentials()}
    publisher = PublisherClient(transport=PublisherRestTransport(**options))
    subscriber = SubscriberClient(transport=SubscriberRestTransport(**options))
    with publisher, subscriber:
        yield publisher, subscriber


def test_the_generated_client_publishes_and_pulls_by_rest(pubsub, rest):
    publisher, subscriber = rest
    topic = publisher.create_topic(name=pubsub.topic_name()).name
    name = pubsub.subscription_name()
    request = types.Subscription(
        name=name,
        topic=topic,
        ack_deadline_seconds=60,
        enable_message_ordering=True,
        labels={"team": "a"},
    )
    made = subscriber.create_subscription(request=request)
    assert made == pubsub.subscriber.get_subscription(subscription=name)
    message = types.PubsubMessage(data=b"\x00\xff", attributes={"key": "wärt"}, ordering_key="k")
    (message_id,) = publisher.publish(topic=topic, messages=[message]).message_ids

    (received,) = subscriber.pull(subscription=name, max_messages=5).received_messages
    assert (received.message.data, received.message.attributes["key"]) == (b"\x00\xff", "wärt")
    assert (received.message.message_id, received.message.ordering_key) == (message_id, "k")
    subscriber.modify_ack_deadline(subscription=name, ack_ids=[received.ack_id], ack_deadline_seconds=0)
    (again,) = pubsub.pull(name, 1)
    subscriber.acknowledge(subscription=name, ack_ids=[again.ack_id])

    assert list(publisher.list_topic_subscriptions(topic=topic)) == [name]
    subscriber.delete_subscription(subscription=name)
    publisher.delete_topic(topic=topic)
    assert not list(publisher.list_topics(project=f"projects/{pubsub.project}"))


def test_the_generated_client_travels_in_time_by_rest(pubsub, rest):
    official_differs(pubsub, "can't seek by REST")
    _, subscriber = rest
    topic = pubsub.topic()
    name = pubsub.subscribe(topic, retain_acked_messages=True)
    ids = pubsub.publish(topic, "a", "b")
    pubsub.ack(name, pubsub.pull(name, 2))
    snapshot = subscriber.create_snapshot(name=pubsub.snapshot_name(), subscription=name).name
    subscriber.seek(request={"subscription": name, "time": datetime(2020, 1, 1, tzinfo=UTC)})
    assert [item.message.message_id for item in pubsub.pull(name, 2)] == ids
    subscriber.seek(request={"subscription": name, "snapshot": snapshot})
    assert pubsub.pull(name, 1, seconds=0) == []
    assert [item.name for item in subscriber.list_snapshots(project=f"projects/{pubsub.project}")] == [snapshot]
    subscriber.delete_snapshot(snapshot=snapshot)
    assert not list(pubsub.subscriber.list_snapshots(project=f"projects/{pubsub.project}"))


def test_a_field_mask_changes_what_it_names_alone(pubsub, rest):
    _, subscriber = rest
    name = pubsub.subscribe(pubsub.topic(), ack_deadline_seconds=30, labels={"team": "a"})
    wanted = {"name": name, "ack_deadline_seconds": 40, "labels": {"team": "b"}}
    subscriber.update_subscription(subscription=wanted, update_mask={"paths": ["ack_deadline_seconds"]})
    changed = pubsub.subscriber.get_subscription(subscription=name)
    assert (changed.ack_deadline_seconds, dict(changed.labels)) == (40, {"team": "a"})


def test_errors_are_those_of_grpc(pubsub, rest):
    publisher, subscriber = rest
    topic = pubsub.topic()
    with pytest.raises(Conflict):
        publisher.create_topic(name=topic)
    with pytest.raises(NotFound):
        subscriber.get_subscription(subscription=pubsub.subscription_name("none"))
    with pytest.raises(BadRequest):
        publisher.publish(topic=topic, messages=[{}])
    official_differs(pubsub, "implements IAM")
    with pytest.raises(GoogleAPICallError, match="no IAM") as caught:
        publisher.get_iam_policy(request={"resource": topic})
    assert caught.value.code == 501


def test_gcloud_aio_pubsub_publishes_and_pulls(pubsub, server):
    aio = pytest.importorskip("gcloud.aio.pubsub")
    topic, name = pubsub.topic(), pubsub.subscription_name()

    async def run():
        root = f"http://{server.rest_host}/v1"
        async with aio.PublisherClient(api_root=root) as publisher, aio.SubscriberClient(api_root=root) as subscriber:
            await subscriber.create_subscription(name, topic)
            sent = await publisher.publish(topic, [aio.PubsubMessage(b"hello", ordering_key="k", colour="red")])
            (message,) = await subscriber.pull(name, max_messages=10)
            assert (message.data, message.attributes, message.message_id) == (
                b"hello",
                {"colour": "red"},
                sent["messageIds"][0],
            )
            await subscriber.modify_ack_deadline(name, [message.ack_id], 30)
            await subscriber.acknowledge(name, [message.ack_id])
            listed = await publisher.list_topics(f"projects/{pubsub.project}")
            assert [item["name"] for item in listed["topics"]] == [topic]
            await subscriber.delete_subscription(name)

    asyncio.run(run())
    assert not list(pubsub.publisher.list_topic_subscriptions(topic=topic))
