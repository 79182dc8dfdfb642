"""What only the embedded broker has: faults, numbers about itself, a life inside a program."""

from __future__ import annotations

import asyncio
import queue
import signal
import socket
import subprocess
import sys

import grpc
import pytest
from google.api_core.exceptions import ServiceUnavailable
from patience import PATIENCE_SECONDS
from pubsub_harness import PubSub

from shardctl.broker import Broker, Faults, set_faults, stats
from shardctl.broker.protos import of
from shardctl.broker.server import AddressInUseError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The return_immediately flag")]


@pytest.fixture
def pubsub(embedded):
    server = PubSub("embedded", embedded.host)
    yield server
    set_faults(embedded.host)
    server.close()


def left_open(*requests):
    """Requests of a stream whose client side never closes."""
    waiting = queue.SimpleQueue()
    for request in requests:
        waiting.put(request)
    return iter(waiting.get, None)


def test_stats_have_the_backlog(pubsub):
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic)
    pubsub.publish(topic, "a", "b", "c")
    pubsub.ack(subscription, pubsub.pull(subscription, 2)[:1])
    subscription_stats = stats(pubsub.host)["subscriptions"][subscription]
    assert (subscription_stats["undelivered"], subscription_stats["outstanding"], subscription_stats["streams"]) == (
        2,
        1,
        0,
    )
    assert 0 <= subscription_stats["oldest_unacked_age_seconds"] < 5


def test_duplicates_come_and_end(pubsub):
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic)
    set_faults(pubsub.host, Faults(seed=1, duplicate_rate=0.5))
    pubsub.publish(topic, *(str(n) for n in range(50)))
    seen = []
    while received := pubsub.pull(subscription, 50, seconds=0.2):
        seen += [message.message.message_id for message in received]
        pubsub.ack(subscription, received)
    assert len(set(seen)) == 50
    assert 75 < len(seen) < 150


def test_a_lost_reply_publishes_twice_for_a_client_that_tries_again(pubsub):
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic)
    set_faults(pubsub.host, Faults(lost_reply_rate=1.0))
    call = pubsub.raw_publisher.transport.publish
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            call(of("PublishRequest")(topic=topic, messages=[{"data": b"x"}]))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    set_faults(pubsub.host)
    assert len(pubsub.pull(subscription, 2)) == 2


def test_refused_calls_have_no_effect(pubsub):
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic)
    set_faults(pubsub.host, Faults(unavailable_rate=1.0))
    with pytest.raises(ServiceUnavailable):
        pubsub.raw_publisher.publish(topic=topic, messages=[{"data": b"x"}], retry=None)
    set_faults(pubsub.host)
    assert not pubsub.pull(subscription, 1, seconds=0.1)


def test_a_cut_stream_ends_with_unavailable_after_a_delivery(pubsub):
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic)
    pubsub.publish(topic, "x")
    set_faults(pubsub.host, Faults(cut_stream_rate=1.0))
    request = of("StreamingPullRequest")(subscription=subscription, stream_ack_deadline_seconds=10)
    responses = pubsub.subscriber.streaming_pull(requests=left_open(request), retry=None)
    assert len(next(responses).received_messages) == 1
    with pytest.raises(ServiceUnavailable):
        next(responses)


def test_an_unknown_fault_is_refused(pubsub):
    with grpc.insecure_channel(pubsub.host) as channel, pytest.raises(grpc.RpcError, match="No such fault"):
        channel.unary_unary("/shardctl.local.Broker/Faults")(b'{"duplicates": 1}', timeout=PATIENCE_SECONDS)


def test_inside_a_program_it_lives_as_long_as_its_block():
    async def run():
        async with Broker(faults=Faults(seed=4)) as broker:
            assert broker.port > 0
            stats_read = await asyncio.to_thread(stats, broker.host)
            second = Broker(port=broker.port)
            with pytest.raises(AddressInUseError, match=str(broker.port)):
                await second.start()
            return broker.port, stats_read

    port, stats_read = asyncio.run(run())
    assert stats_read == {"subscriptions": {}, "topics": [], "messages_published": 0}
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_as_a_process_it_says_when_it_is_ready_and_ends_on_sigterm():
    command = [sys.executable, "-m", "shardctl.broker", "--port", "0", "--duplicate-rate", "0.5", "--seed", "7"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        host = process.stderr.readline().strip().removeprefix("broker ready: PUBSUB_EMULATOR_HOST=")
        assert stats(host)["subscriptions"] == {}
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize("option", [["--duplicate-rate", "5"], ["--no-such-fault"]])
def test_a_wrong_option_is_a_usage_error(option):
    done = subprocess.run(
        [sys.executable, "-m", "shardctl.broker", *option], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "rate" in done.stderr or "unrecognized" in done.stderr


def test_large_batches_are_served_whole(pubsub):
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic, enable_message_ordering=True)
    requests = [
        of("PublishRequest")(topic=topic, messages=[{"data": b"x" * 200, "ordering_key": key}] * 1000)
        for key in "abcdefghijklmnopqrst"
    ]
    with grpc.insecure_channel(pubsub.host, options=[("grpc.max_receive_message_length", -1)]) as channel:
        publish = channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",
            of("PublishRequest").SerializeToString,
            of("PublishResponse").FromString,
        )
        for request in requests:
            publish(request)
        open_pull = channel.stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            of("StreamingPullRequest").SerializeToString,
            of("StreamingPullResponse").FromString,
        )
        first = of("StreamingPullRequest")(subscription=subscription, stream_ack_deadline_seconds=60)
        responses = open_pull(left_open(first))
        got = 0
        while got < 20_000:
            got += len(next(responses).received_messages)
    assert got == 20_000
