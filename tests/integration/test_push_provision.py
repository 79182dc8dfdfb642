"""`provision` and `diff` of subscriptions that push, through the real client, on the embedded broker."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from patience import PATIENCE_SECONDS

from shardctl.broker import Broker
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.provision import provision_pubsub
from shardctl.render.drift import pubsub_drift, step_text

pytestmark = pytest.mark.slow
PULL = """
fleet: shop
project: test-project
image: consumer:1
routing: {slot_bits: 4}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text}}
shards: [{name: s0, slots: 0-15}]
"""
PUSH = f"""{PULL}
delivery:
  kind: push
  url: https://push.example.com/shop
  service_account: push@test-project.iam.gserviceaccount.com
"""
NAME = "projects/test-project/subscriptions/shop-s0-g1"


@pytest.fixture
def clients():
    loop, broker = asyncio.new_event_loop(), Broker()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(broker.start(), loop).result(PATIENCE_SECONDS)
    channel = grpc.insecure_channel(broker.host)
    yield (
        PublisherClient(transport=PublisherGrpcTransport(channel=channel)),
        SubscriberClient(transport=SubscriberGrpcTransport(channel=channel)),
    )
    asyncio.run_coroutine_threadsafe(broker.stop(0), loop).result(PATIENCE_SECONDS)
    loop.call_soon_threadsafe(loop.stop)


def test_a_fleet_goes_to_push_and_back_in_place(clients):
    changed = []
    for text in (PULL, PUSH, f"{PUSH}  wrapped: false\n", PUSH, PULL):
        fleet = fleet_from(parse(text))
        steps = provision_pubsub(fleet, *clients)
        changed += [(step.action, step.fields) for step in steps if step.name == NAME]
        assert not pubsub_drift(fleet, *clients)  # and is then as it should be
    assert changed == [("create", ()), *[("update", ("push_config",))] * 4]


def test_drift_names_both_sides(clients):
    provision_pubsub(fleet_from(parse(PULL)), *clients)
    [step] = pubsub_drift(fleet_from(parse(PUSH)), *clients).steps
    assert "push_config: empty → push_endpoint https://push.example.com/shop/s0/shop-s0-g1" in step_text(step)


def test_what_the_service_adds_is_no_drift(clients):
    fleet = fleet_from(parse(PUSH))
    provision_pubsub(fleet, *clients)
    subscription = clients[1].get_subscription(subscription=NAME)
    subscription.push_config.attributes["x-goog-version"] = "v1"
    clients[1].update_subscription(subscription=subscription, update_mask={"paths": ["push_config"]})
    assert not pubsub_drift(fleet, *clients)
