"""Clients that leave, close their side or ask for too much: the broker serves the others, and its log stays clean."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import time

import grpc
import pytest
from patience import PATIENCE_SECONDS
from pubsub_harness import PubSub
from test_broker_streams import Stream

from shardctl.broker import Broker, stats
from shardctl.broker.protos import of
from shardctl.broker.server import MAX_CALLS, MAX_RECEIVED_BYTES

pytestmark = pytest.mark.slow
STREAMS, BACKLOG = 10, 30


@pytest.fixture
def pubsub(embedded):
    clients = PubSub("embedded", embedded.host)
    yield clients
    clients.close()


def leave_while_responses_are_sent(host):
    """Streams that read nothing, so that what they are sent waits, and then go."""
    pubsub = PubSub("embedded", host)
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic)
    for _ in range(BACKLOG):
        pubsub.publish(topic, "x" * 2_000_000)
    streams = [Stream(pubsub, subscription) for _ in range(STREAMS)]

    def wait_until(outstanding, attached):
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            figures = stats(host)["subscriptions"][subscription]
            if figures["outstanding"] >= outstanding and figures["streams"] == attached:
                return
            time.sleep(0.01)
        pytest.fail(f"never {outstanding} outstanding with {attached} streams: {figures}")

    wait_until(STREAMS, STREAMS)
    for stream in streams:
        stream.responses.cancel()
    wait_until(0, 0)
    pubsub.close()


def test_clients_that_leave_in_the_middle_of_a_response_are_no_errors(caplog):
    caplog.set_level(logging.INFO)

    async def run():
        async with Broker() as broker:
            await asyncio.to_thread(leave_while_responses_are_sent, broker.host)

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_client_that_closes_its_side_gets_its_confirmations_and_ok(pubsub):
    topic = pubsub.topic()
    stream = Stream(pubsub, pubsub.subscribe(topic, enable_exactly_once_delivery=True))
    pubsub.publish(topic, "x")
    ack_id = next(stream.responses).received_messages[0].ack_id
    stream.send(ack_ids=[ack_id])
    stream.close()
    confirmed = [acked for response in stream.responses for acked in response.acknowledge_confirmation.ack_ids]
    assert confirmed == [ack_id]
    assert stream.responses.code() == grpc.StatusCode.OK


def test_a_request_that_no_method_takes_is_not_read(pubsub):
    request = of("PublishRequest")(topic=pubsub.topic(), messages=[{"data": b"x" * MAX_RECEIVED_BYTES}])
    with grpc.insecure_channel(pubsub.host) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/google.pubsub.v1.Publisher/Publish")(
            request.SerializeToString(), timeout=PATIENCE_SECONDS
        )
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_no_call_is_dropped_when_a_client_makes_many_at_once(pubsub):
    """Neither its own nor another client's: gRPC cancels any client's calls when too many wait."""
    topic = pubsub.topic()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(pubsub.host, options) as flooding, grpc.insecure_channel(pubsub.host, options) as other:
        request = of("GetTopicRequest")(topic=topic).SerializeToString()
        path = "/google.pubsub.v1.Publisher/GetTopic"
        flooding.unary_unary(path)(request, timeout=PATIENCE_SECONDS)  # so that it knows the server's limits
        flood = [flooding.unary_unary(path).future(request, timeout=PATIENCE_SECONDS) for _ in range(5 * MAX_CALLS)]
        for _ in range(20):
            other.unary_unary(path)(request, timeout=PATIENCE_SECONDS)
        assert {call.code() for call in flood} == {grpc.StatusCode.OK}


def test_a_broker_that_stops_under_streams_leaves_a_clean_log():
    command = [sys.executable, "-m", "shardctl.broker", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        pubsub = PubSub(
            "embedded", process.stderr.readline().strip().removeprefix("broker ready: PUBSUB_EMULATOR_HOST=")
        )
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        streams = [Stream(pubsub, subscription) for _ in range(60)]
        for _ in range(60):
            pubsub.publish(topic, *["x"] * 1000)
        next(streams[0].responses)
        process.send_signal(signal.SIGTERM)
        log = process.stderr.read()
        assert process.wait(PATIENCE_SECONDS) == 0
        pubsub.close()
    assert log == ""
