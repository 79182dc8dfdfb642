"""The client that publishes: no message waits for a timer, a key stays in order, and a failure holds up what is behind it.

Where requests are run by hand, `Calls` stands for the threads: what is submitted waits until a test runs it.
"""

import random
import threading
from concurrent import futures
from types import SimpleNamespace

import grpc
import pytest
from google.api_core import exceptions as api
from google.cloud.pubsub_v1.publisher.exceptions import PublishToPausedOrderingKeyException as PausedError
from google.pubsub_v1 import PublisherClient, PublishRequest, PublishResponse
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from patience import PATIENCE_SECONDS

from shardctl import topicclient
from shardctl.topicclient import TopicClient

TOPIC = "projects/p/topics/t"


class Calls:
    """Runs nothing by itself."""

    def __init__(self):
        self.waiting, self.ended = [], False

    def submit(self, call, *arguments):
        if self.ended:
            raise RuntimeError("stopped")
        self.waiting.append(lambda: call(*arguments))

    def shutdown(self):
        self.ended = True

    def run(self):
        """Run what waits, and what follows from it, in the order in which it was submitted."""
        while self.waiting:
            self.waiting.pop(0)()


class Service:
    """Answers as Pub/Sub does. `during` is called while a request is in flight; `errors` are raised, one a request."""

    def __init__(self):
        self.requests, self.errors, self.during, self.ids = [], [], lambda: None, 0

    def publish(self, request, *, retry, timeout):
        self.requests.append(PublishRequest.pb(request))
        during, self.during = self.during, lambda: None
        during()
        if self.errors:
            raise self.errors.pop(0)
        first, self.ids = self.ids, self.ids + len(request.messages)
        return SimpleNamespace(message_ids=[f"m{number}" for number in range(first, self.ids)])

    @property
    def bodies(self):
        return [[message.data for message in request.messages] for request in self.requests]


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def calls():
    return Calls()


@pytest.fixture
def client(service, calls):
    return TopicClient(service, threads=calls)


def put(client, *bodies, key="k"):
    return [client.publish(TOPIC, body, ordering_key=key) for body in bodies]


def test_a_lone_message_is_sent_at_once(client, service, calls):
    """By the call itself: neither a clock nor another message is needed."""
    future = client.publish(TOPIC, b"body", ordering_key="k", slot="7")
    assert len(calls.waiting) == 1
    calls.run()
    (request,) = service.requests
    (message,) = request.messages
    assert (request.topic, message.data, message.ordering_key, message.attributes) == (
        TOPIC,
        b"body",
        "k",
        {"slot": "7"},
    )
    assert future.result(0) == "m0"


def test_what_comes_while_a_request_is_in_flight_goes_with_the_next(client, service, calls):
    service.during = lambda: put(client, b"2", b"3", b"4", b"5")
    first = put(client, b"1")
    calls.run()
    assert first[0].result(0) == "m0"
    assert service.bodies == [[b"1"], [b"2", b"3", b"4", b"5"]]


def test_a_key_has_one_request_in_flight_and_others_have_theirs(client, service, calls):
    waiting = []
    service.during = lambda: (
        put(client, b"2", b"3"),
        put(client, b"x", key="other"),
        waiting.append(len(calls.waiting)),
    )
    put(client, b"1")
    calls.run()
    assert waiting == [1]  # the other key's
    assert service.bodies == [[b"1"], [b"x"], [b"2", b"3"]]


def test_each_topic_has_its_own_order_of_a_key(client, service, calls):
    client.publish("projects/p/topics/a", b"1", ordering_key="k")
    client.publish("projects/p/topics/b", b"2", ordering_key="k")
    calls.run()
    assert [request.topic for request in service.requests] == ["projects/p/topics/a", "projects/p/topics/b"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "requests"),
    [
        ([1] * 1_201, [500, 500, 201]),
        ([400_000] * 5, [2, 2, 1]),
        ([10, 3_000_000, 10, 10], [1, 1, 2]),
        ([999_930, 10, 10], [1, 2]),
    ],
    ids=["messages", "bytes", "one over the bound goes alone", "just under it"],
)
def test_no_request_is_larger_than_its_bounds(client, service, calls, sizes, requests):
    futures_ = [client.publish(TOPIC, bytes(size), ordering_key="k", slot="0" * 10) for size in sizes]
    calls.run()
    assert [len(request.messages) for request in service.requests] == requests
    for request in service.requests:
        assert len(request.messages) == 1 or request.ByteSize() - len(TOPIC) - 2 <= topicclient.MAX_REQUEST_BYTES
    assert [future.result(0) for future in futures_] == [f"m{number}" for number in range(len(sizes))]


def test_order_is_kept_whatever_comes_when(client, service, calls):
    draw, sent = random.Random(7), {"a": [], "b": [], "c": []}

    def some(left=40):
        for _ in range(draw.randrange(4)):
            key = draw.choice("abc")
            body = b"%d" % len(sent[key])
            sent[key].append(body)
            client.publish(TOPIC, body, ordering_key=key)
        if left:
            service.during = lambda: some(left - 1)

    while sum(map(len, sent.values())) < 200:
        some()
        calls.run()
    for key, bodies in sent.items():
        received = [
            message.data for request in service.requests for message in request.messages if message.ordering_key == key
        ]
        assert received == bodies


def test_a_failure_holds_up_its_key_alone(client, service, calls):
    service.errors = [api.InvalidArgument("no")]
    behind = []
    service.during = lambda: behind.extend(put(client, b"3", b"4"))
    failed = put(client, b"1", b"2")
    other = put(client, b"x", key="other")
    calls.run()
    assert [type(future.exception(0)) for future in failed] == [api.InvalidArgument] * 2
    assert [type(future.exception(0)) for future in behind] == [PausedError] * 2
    assert other[0].result(0) == "m0"
    assert isinstance(put(client, b"5")[0].exception(0), PausedError)
    client.resume_publish(TOPIC, "k")
    again = put(client, b"1", b"2")
    calls.run()
    assert [future.result(0) for future in again] == ["m1", "m2"]
    assert service.bodies == [[b"1", b"2"], [b"x"], [b"1", b"2"]]


def test_only_a_paused_key_can_be_resumed(client, calls):
    client.resume_publish(TOPIC, "never used")
    put(client, b"1")
    calls.run()
    with pytest.raises(RuntimeError, match="isn't paused"):
        client.resume_publish(TOPIC, "k")


def test_an_answer_without_an_id_for_each_message_is_a_failure(client, service, calls):
    service.publish = lambda *_, **__: SimpleNamespace(message_ids=["m1"])
    sent = put(client, b"1", b"2")
    calls.run()
    assert [type(future.exception(0)) for future in sent] == [api.Unknown] * 2


def test_publishing_waits_while_too_much_is_in_flight(client, calls):
    put(client, *[b""] * topicclient.MAX_OUTSTANDING_WRITES)
    late, done = [], threading.Event()

    def publish():
        late.extend(put(client, b"late", key="other"))
        done.set()

    thread = threading.Thread(target=publish)
    thread.start()
    assert not done.wait(0.05)
    calls.run()
    assert done.wait(PATIENCE_SECONDS)
    thread.join()
    calls.run()
    assert late[0].result(0)


@pytest.mark.slow
def test_a_message_larger_than_all_that_may_be_in_flight_is_sent(client, service, calls):
    put(client, bytes(topicclient.MAX_OUTSTANDING_BYTES))
    calls.run()
    assert len(service.requests) == 1


def test_stopping_ends_what_is_in_flight_and_fails_the_rest(client, service, calls):
    behind = []
    service.during = lambda: (behind.extend(put(client, b"2")), client.stop())
    first = put(client, b"1")
    calls.run()
    assert first[0].result(0) == "m0"
    assert isinstance(behind[0].exception(0), PausedError)
    with pytest.raises(RuntimeError, match="stopped"):
        put(client, b"3")


@pytest.fixture
def server():
    """A gRPC server on loopback: `codes` are what it answers, one a request, before it takes any."""
    codes, ids = [], iter(range(1_000))

    def publish(request, context):
        if codes:
            context.abort(codes.pop(0), "as the test asks")
        return PublishResponse.pb()(message_ids=[f"m{next(ids)}" for _ in request.messages])

    handler = grpc.unary_unary_rpc_method_handler(
        publish, PublishRequest.pb().FromString, PublishResponse.pb().SerializeToString
    )
    with futures.ThreadPoolExecutor(2) as threads:
        grpc_server = grpc.server(threads)
        grpc_server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", {"Publish": handler})]
        )
        port = grpc_server.add_insecure_port("127.0.0.1:0")
        grpc_server.start()
        yield f"127.0.0.1:{port}", codes
        grpc_server.stop(None).wait()


def test_what_may_succeed_later_is_retried_and_a_refusal_is_not(server):
    address, codes = server
    codes += [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED]
    with grpc.insecure_channel(address) as channel:
        client = TopicClient(PublisherClient(transport=PublisherGrpcTransport(channel=channel)))
        assert put(client, b"1")[0].result(PATIENCE_SECONDS) == "m0"
        assert codes == []
        codes += [grpc.StatusCode.INVALID_ARGUMENT]
        assert isinstance(put(client, b"2")[0].exception(PATIENCE_SECONDS), api.InvalidArgument)
        client.stop()
