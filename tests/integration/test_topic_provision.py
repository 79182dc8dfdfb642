"""`provision` and `diff` of topics with a key and regions, through the real client, on the embedded broker."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
from google.api_core.exceptions import InvalidArgument, MethodNotImplemented
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import JavaScriptUDF, MessageStoragePolicy, MessageTransform, SchemaSettings, Topic
from patience import PATIENCE_SECONDS

from shardctl.broker import Broker
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.provision import ProvisionError, provision_pubsub
from shardctl.rebalance import preflight
from shardctl.render.drift import pubsub_drift, step_text

pytestmark = pytest.mark.slow
KEY = "projects/key-project/locations/europe-west3/keyRings/ring/cryptoKeys/writes"
TOPICS = [f"projects/test-project/topics/{name}" for name in ("writes-0", "writes-1", "writes-dead")]


def fleet_with(topic):
    return fleet_from(
        parse(f"""
fleet: shop
project: test-project
project_number: "123456789012"
image: consumer:1
topic: {topic}
routing: {{slot_bits: 4, topic_bits: 1}}
message_types:
  order: {{table: orders, key: order_id, columns: {{order_id: text}}}}
shards: [{{name: s0, slots: 0-15}}]
""")
    )


PLAIN = fleet_with("writes")
KEPT = fleet_with(f"{{name: writes, kms_key: {KEY}, allowed_regions: [europe-west3, europe-west1]}}")


@pytest.fixture(scope="module")
def broker():
    loop, broker = asyncio.new_event_loop(), Broker()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(broker.start(), loop).result(PATIENCE_SECONDS)
    yield broker
    asyncio.run_coroutine_threadsafe(broker.stop(0), loop).result(PATIENCE_SECONDS)
    loop.call_soon_threadsafe(loop.stop)


@pytest.fixture
def clients(broker):
    """Clients of a project without topics and subscriptions."""
    with grpc.insecure_channel(broker.host) as channel:
        publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        yield publisher, subscriber
        for subscription in subscriber.list_subscriptions(project="projects/test-project"):
            subscriber.delete_subscription(subscription=subscription.name)
        for topic in publisher.list_topics(project="projects/test-project"):
            publisher.delete_topic(topic=topic.name)


def changes(fleet, clients):
    return {
        step.name: step.fields for step in provision_pubsub(fleet, *clients) if step.kind == "topic" and step.fields
    }


def test_every_topic_has_the_key_and_the_regions(clients):
    provision_pubsub(KEPT, *clients)
    for name in TOPICS:
        topic = clients[0].get_topic(topic=name)
        assert topic.kms_key_name == KEY
        assert list(topic.message_storage_policy.allowed_persistence_regions) == ["europe-west3", "europe-west1"]
    assert not pubsub_drift(KEPT, *clients)


def test_a_fleet_that_runs_gets_them_in_place(clients):
    provision_pubsub(PLAIN, *clients)
    drift = pubsub_drift(KEPT, *clients)
    assert "kms_key_name: unset → " + KEY in step_text(drift.steps[0])
    assert "message_storage_policy: unset → allowed_persistence_regions ['europe-west3', 'europe-west1']" in step_text(
        drift.steps[0]
    )
    assert changes(KEPT, clients) == dict.fromkeys(TOPICS, ("kms_key_name", "message_storage_policy"))
    assert not pubsub_drift(KEPT, *clients)
    stricter = fleet_with(
        f"{{name: writes, kms_key: {KEY}2, allowed_regions: [europe-west1, europe-west3], enforce_in_transit: true}}"
    )
    assert changes(stricter, clients) == dict.fromkeys(TOPICS, ("kms_key_name", "message_storage_policy"))
    assert clients[0].get_topic(topic=TOPICS[0]).message_storage_policy.enforce_in_transit


def test_the_order_of_the_regions_is_no_drift(clients):
    provision_pubsub(KEPT, *clients)
    turned = fleet_with(f"{{name: writes, kms_key: {KEY}, allowed_regions: [europe-west1, europe-west3]}}")
    assert not pubsub_drift(turned, *clients)


def test_what_the_file_leaves_out_stays(clients):
    """An organisation's policy sets the regions of a topic that names none."""
    provision_pubsub(KEPT, *clients)
    assert not pubsub_drift(PLAIN, *clients)
    assert changes(PLAIN, clients) == {}
    assert clients[0].get_topic(topic=TOPICS[0]).kms_key_name == KEY


def test_another_name_is_refused_with_what_to_do_instead(clients):
    provision_pubsub(PLAIN, *clients)
    with pytest.raises(ProvisionError) as refused:
        provision_pubsub(fleet_with("others"), *clients)
    assert "its topic is 'projects/test-project/topics/writes-0'" in str(refused.value)
    assert "undo the edit of `topic`, or begin a new fleet" in str(refused.value)
    assert "give the shard a new generation" not in str(refused.value)


def test_a_subscription_whose_topic_was_deleted_is_drained_first(clients):
    provision_pubsub(PLAIN, *clients)
    clients[0].delete_topic(topic=TOPICS[0])
    with pytest.raises(
        ProvisionError, match=r"its topic was deleted.* then delete the subscription and run this again"
    ):
        provision_pubsub(PLAIN, *clients)


def test_a_key_that_differs_keeps_no_slot_from_moving(clients):
    provision_pubsub(PLAIN, *clients)
    assert list(preflight.lacking_subscriptions(KEPT, *clients, every=True)) == []


@pytest.mark.parametrize(
    ("fields", "error", "named"),
    [
        ({"kms_key_name": "writes"}, InvalidArgument, "kms_key_name"),
        ({"message_storage_policy": MessageStoragePolicy()}, InvalidArgument, "message_storage_policy"),
        ({"schema_settings": SchemaSettings(schema="projects/p/schemas/s")}, InvalidArgument, "schema_settings"),
        (
            {"message_transforms": [MessageTransform(javascript_udf=JavaScriptUDF(function_name="f", code="x"))]},
            MethodNotImplemented,
            "message_transforms",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_broker_refuses_by_name(clients, fields, error, named):
    name = "projects/test-project/topics/refused"
    with pytest.raises(error, match=named):
        clients[0].create_topic(request=Topic(name=name, **fields))
    provision_pubsub(PLAIN, *clients)
    with pytest.raises(error, match=named):
        clients[0].update_topic(
            request={"topic": Topic(name=TOPICS[0], **fields), "update_mask": {"paths": list(fields)}}
        )


def test_a_detached_subscription_is_refused_everywhere(clients):
    """It looks as the file says, and gets no message any more."""
    provision_pubsub(PLAIN, *clients)
    clients[0].detach_subscription(
        request={"subscription": "projects/test-project/subscriptions/shop-s0-g1-t0"}, timeout=PATIENCE_SECONDS
    )
    with pytest.raises(ProvisionError, match=r"shop-s0-g1-t0: it is detached.* Delete the subscription"):
        provision_pubsub(PLAIN, *clients)
    assert pubsub_drift(PLAIN, *clients).unchangeable
    assert any("it is detached" in reason for reason in preflight.lacking_subscriptions(PLAIN, *clients, every=True))
