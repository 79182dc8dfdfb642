"""What the embedded broker answers on streams to clients of today's protocol, and to those that ask for too much."""

from __future__ import annotations

import queue

import grpc
import pytest
from google.api_core.exceptions import FailedPrecondition, InvalidArgument
from google.pubsub_v1 import types
from patience import PATIENCE_SECONDS
from pubsub_harness import PubSub

from shardctl.broker.protos import of

pytestmark = pytest.mark.slow


@pytest.fixture
def pubsub(embedded):
    clients = PubSub("embedded", embedded.host)
    yield clients
    clients.close()


class Stream:
    """A stream whose responses are read one by one."""

    def __init__(self, pubsub, subscription, **options):
        self._requests = queue.SimpleQueue()
        self.send(subscription=subscription, **{"stream_ack_deadline_seconds": 10, **options})
        call = pubsub.channel.stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            of("StreamingPullRequest").SerializeToString,
            of("StreamingPullResponse").FromString,
        )
        self.responses = call(iter(self._requests.get, None), timeout=PATIENCE_SECONDS)

    def send(self, **fields):
        self._requests.put(of("StreamingPullRequest")(**fields))

    def close(self):
        """The client's side; what it has been sent may still come."""
        self._requests.put(None)

    def fault(self):
        """The status that ends it, whatever comes before."""
        with pytest.raises(grpc.RpcError) as caught:
            for _ in self.responses:
                pass
        return caught.value.code(), caught.value.details()


def test_a_ping_is_answered_with_the_subscriptions_properties(pubsub):
    """Java's and Go's clients end a stream whose pings aren't answered within 15 s, and open another."""
    subscription = pubsub.subscribe(pubsub.topic(), enable_message_ordering=True)
    stream = Stream(pubsub, subscription, protocol_version=1)
    for _ in range(2):
        stream.send()
        answer = next(stream.responses)
        assert not answer.received_messages
        assert answer.subscription_properties.message_ordering_enabled
        assert not answer.subscription_properties.exactly_once_delivery_enabled
    stream.responses.cancel()


def test_a_client_of_version_0_gets_no_answer_to_a_ping(pubsub):
    """Its next response is a message."""
    topic = pubsub.topic()
    stream = Stream(pubsub, pubsub.subscribe(topic))
    stream.send()
    pubsub.publish(topic, "x")
    assert len(next(stream.responses).received_messages) == 1
    stream.responses.cancel()


def test_confirmations_carry_the_properties_too(pubsub):
    topic = pubsub.topic()
    stream = Stream(pubsub, pubsub.subscribe(topic, enable_exactly_once_delivery=True))
    pubsub.publish(topic, "x")
    ack_id = next(stream.responses).received_messages[0].ack_id
    stream.send(ack_ids=[ack_id])
    answer = next(stream.responses)
    assert list(answer.acknowledge_confirmation.ack_ids) == [ack_id]
    assert answer.subscription_properties.exactly_once_delivery_enabled
    stream.responses.cancel()


def test_a_stream_and_a_pull_end_when_their_subscription_becomes_push(pubsub):
    subscription = pubsub.subscribe(pubsub.topic())
    stream = Stream(pubsub, subscription, protocol_version=1)
    pulling = pubsub.subscriber.transport.pull.future(
        types.PullRequest(subscription=subscription, max_messages=1), timeout=PATIENCE_SECONDS
    )
    stream.send()
    next(stream.responses)  # it is open
    pubsub.subscriber.modify_push_config(
        subscription=subscription, push_config={"push_endpoint": "http://127.0.0.1:9/none"}
    )
    assert stream.fault()[0] == grpc.StatusCode.FAILED_PRECONDITION
    assert pulling.exception(PATIENCE_SECONDS).code() == grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(FailedPrecondition):
        pubsub.subscriber.pull(subscription=subscription, max_messages=1)


OTHERS_ID, LONG = "999999-1-".ljust(176, "_"), "x" * 600_000


@pytest.mark.parametrize(
    ("request_fields", "text"),
    [
        ({"stream_ack_deadline_seconds": -1}, "stream_ack_deadline_seconds is -1"),
        ({"stream_ack_deadline_seconds": 9}, "stream_ack_deadline_seconds is 9"),
        ({"stream_ack_deadline_seconds": 601}, "stream_ack_deadline_seconds is 601"),
        ({"subscription": "projects/p/subscriptions/other"}, "subscription"),
        ({"max_outstanding_messages": 5}, "max_outstanding_messages"),
        ({"protocol_version": 1}, "protocol_version"),
        ({"ack_ids": ["made up"]}, "Invalid ack id"),
        ({"ack_ids": [OTHERS_ID]}, "does not belong"),
        ({"modify_deadline_ack_ids": [OTHERS_ID], "modify_deadline_seconds": [10]}, "does not belong"),
        ({"ack_ids": [LONG]}, "exceeds the limit"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_later_request_is_checked_as_the_first(pubsub, request_fields, text):
    stream = Stream(pubsub, pubsub.subscribe(pubsub.topic()))
    stream.send(**request_fields)
    code, details = stream.fault()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text in details


@pytest.mark.parametrize(("ack_id", "text"), [(OTHERS_ID, "does not belong"), (LONG, "exceeds the limit")])
def test_unary_acks_and_deadlines_are_checked_too(pubsub, ack_id, text):
    subscription = pubsub.subscribe(pubsub.topic())
    with pytest.raises(InvalidArgument, match=text):
        pubsub.subscriber.acknowledge(subscription=subscription, ack_ids=[ack_id])
    with pytest.raises(InvalidArgument, match=text):
        pubsub.subscriber.modify_ack_deadline(subscription=subscription, ack_ids=[ack_id], ack_deadline_seconds=10)
