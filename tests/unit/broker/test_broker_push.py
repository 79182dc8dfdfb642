"""The embedded broker as one that pushes: to a real HTTP server, in order, within the deadline, signed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from google.pubsub_v1 import (
    PublisherAsyncClient,
    PubsubMessage,
    PushConfig,
    RetryPolicy,
    SubscriberAsyncClient,
    Subscription,
)
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
from grpc.aio import insecure_channel
from patience import PATIENCE_SECONDS

from shardctl.broker import Broker
from shardctl.broker.config import check_push
from shardctl.broker.errors import InvalidArgumentError
from shardctl.broker.protos import of
from shardctl.broker.tokens import ISSUER, KeysServer, Signer
from shardctl.local.servers.process import wait_until
from shardctl.oidc import TokenError, Verifier

TOPIC, NAME = "projects/test-project/topics/writes", "projects/test-project/subscriptions/s-g1"
ACCOUNT = "push@p.iam.gserviceaccount.com"
slow = pytest.mark.slow


class Receiver:
    """Answers as `answer(number, data)` says: a status, or seconds to be silent for and then one."""

    def __init__(self):
        self.requests, self.answer, self.together = [], lambda _number, _data: 204, 0
        receiver, under_way, lock = self, set(), threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    number = len(receiver.requests)
                    receiver.requests.append((self.path, dict(self.headers.items()), body))
                    under_way.add(number)
                    receiver.together = max(receiver.together, len(under_way))
                status = receiver.answer(number, body)
                if isinstance(status, tuple):
                    time.sleep(status[0])
                    status = status[1]
                with lock:
                    under_way.discard(number)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/s0/s-g1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def data(self):
        """The messages' data, in the order in which they came."""
        return [base64.b64decode(json.loads(body)["message"]["data"]).decode() for _, _, body in self.requests]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


class Bench:
    def __init__(self, broker):
        self.broker = broker
        channel = insecure_channel(broker.host)
        self.publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
        self.subscriber = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))

    async def subscribe(self, url, retry=(0.05, 0.1), push=(), **others):
        await self.publisher.create_topic(name=TOPIC)
        policy = retry and RetryPolicy(minimum_backoff={"seconds": 0, "nanos": int(retry[0] * 1e9)}, maximum_backoff={"seconds": 1})  # fmt: skip  # noqa: E501
        wanted = PushConfig(push_endpoint=url, **dict(push))
        await self.subscriber.create_subscription(
            request=Subscription(
                name=NAME,
                topic=TOPIC,
                push_config=wanted,
                retry_policy=policy or None,
                **{"enable_message_ordering": True} | others,
            )
        )

    async def publish(self, *data, key="k", **attributes):
        messages = [PubsubMessage(data=body.encode(), ordering_key=key, attributes=attributes) for body in data]
        await self.publisher.publish(topic=TOPIC, messages=messages)

    def standing(self):
        return self.broker.registry.stats(time.time())["subscriptions"][NAME]

    async def drained(self):
        for _ in range(1_000):
            if self.standing()["undelivered"] == 0:
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"still there: {self.standing()}")


def play(scenario, keys_port=None):
    async def run():
        async with Broker(keys_port=keys_port) as broker:
            await scenario(Bench(broker))

    asyncio.run(run())


@slow
def test_messages_of_a_key_are_pushed_one_at_a_time_and_in_order(receiver):
    receiver.answer = lambda _number, _data: (0.005, 204)
    numbers = [str(number) for number in range(30)]

    async def scenario(bench):
        await bench.subscribe(receiver.url)
        await bench.publish(*numbers)
        await bench.drained()

    play(scenario)
    assert receiver.data() == numbers
    assert receiver.together == 1
    path, headers, body = receiver.requests[0]
    assert (path, headers["content-type"]) == ("/s0/s-g1", "application/json")
    envelope = json.loads(body)
    assert (envelope["subscription"], envelope["message"]["orderingKey"]) == (NAME, "k")
    assert envelope["message"]["messageId"] == envelope["message"]["message_id"]


@slow
def test_keys_dont_wait_for_each_other(receiver):
    def answer(_number, _data):
        wait_until(lambda: receiver.together > 1, PATIENCE_SECONDS)  # the first is answered when a second has come
        return 204

    receiver.answer = answer

    async def scenario(bench):
        await bench.subscribe(receiver.url)
        for key in "abcdefgh":
            await bench.publish(key, key=key)
        await bench.drained()

    play(scenario)
    assert sorted(receiver.data()) == list("abcdefgh")
    assert receiver.together > 1


@slow
@pytest.mark.parametrize("retry", [(0.05, 0.1), ()], ids=["back-off", "none"])
@pytest.mark.parametrize("status", [400, 404, 500, 503, 302])
def test_a_refused_message_comes_again_before_those_behind_it(receiver, retry, status):
    receiver.answer = lambda number, _data: status if number in (1, 2) else 204

    async def scenario(bench):
        await bench.subscribe(receiver.url, retry)
        await bench.publish("a", "b", "c")
        await bench.drained()

    play(scenario)
    assert receiver.data() == ["a", "b", "b", "b", "c"]


@slow
def test_an_answer_after_the_ack_deadline_counts_as_none(receiver):
    receiver.answer = lambda number, _data: (1.0, 204) if number == 0 else 204

    async def scenario(bench):
        await bench.subscribe(receiver.url)
        subscription = bench.broker.registry.subscription(NAME)
        subscription.core.settings = type(subscription.core.settings)(
            **{name: getattr(subscription.core.settings, name) for name in subscription.core.settings.__slots__}
            | {"ack_deadline_seconds": 0.2}
        )
        await bench.publish("a")
        await bench.drained()
        assert bench.standing()["counts"]["pushed"] > 1  # a slow machine answers the second late, too

    play(scenario)
    assert receiver.data()[:2] == ["a", "a"]


@slow
def test_each_refusal_counts_as_an_attempt_and_the_last_one_buries_the_message(receiver):
    receiver.answer = lambda _number, _data: 500

    async def scenario(bench):
        await bench.publisher.create_topic(name="projects/test-project/topics/dead")
        policy = {"dead_letter_topic": "projects/test-project/topics/dead", "max_delivery_attempts": 5}
        await bench.subscribe(receiver.url, dead_letter_policy=policy)
        await bench.publish("a")
        await bench.drained()

    play(scenario)
    assert [json.loads(body)["deliveryAttempt"] for _, _, body in receiver.requests] == [1, 2, 3, 4, 5]


@slow
def test_nobody_listening_is_outlasted(receiver):
    async def scenario(bench):
        await bench.subscribe("http://127.0.0.1:1/s-g1")
        await bench.publish("a")
        await asyncio.sleep(0.3)
        assert bench.standing()["undelivered"] == 1
        await bench.subscriber.modify_push_config(subscription=NAME, push_config=PushConfig(push_endpoint=receiver.url))
        await bench.drained()

    play(scenario)
    assert receiver.data() == ["a"]


@slow
def test_an_unwrapped_message_is_the_body_with_its_attributes_as_headers(receiver):
    async def scenario(bench):
        await bench.subscribe(receiver.url, push={"no_wrapper": {"write_metadata": True}})
        await bench.publish("a", slot="0101", Kind="order")
        await bench.drained()

    play(scenario)
    _, headers, body = receiver.requests[0]
    assert body == b"a"
    sent = {name.lower(): value for name, value in headers.items()}
    assert (sent["slot"], sent["kind"], sent["x-goog-pubsub-ordering-key"]) == ("0101", "order", "k")
    assert sent["x-goog-pubsub-subscription-name"] == NAME


@slow
def test_a_push_carries_a_token_that_the_published_key_verifies(receiver):
    async def scenario(bench):
        await bench.subscribe(
            receiver.url,
            push={"oidc_token": {"service_account_email": ACCOUNT, "audience": "https://push.example.com"}},
        )
        await bench.publish("a")
        await bench.drained()
        token = receiver.requests[0][1]["authorization"].removeprefix("Bearer ")
        claims = await Verifier([ISSUER], "https://push.example.com", bench.broker.keys_url).claims(token)
        assert (claims["email"], claims["email_verified"]) == (ACCOUNT, True)

    play(scenario, keys_port=0)


@slow
def test_a_subscription_may_push_and_then_be_pulled_again(receiver):
    async def scenario(bench):
        await bench.subscribe(receiver.url)
        await bench.publish("a")
        await bench.drained()
        await bench.subscriber.modify_push_config(subscription=NAME, push_config=PushConfig())
        await asyncio.sleep(0.2)
        await bench.publish("b")
        pulled = await bench.subscriber.pull(subscription=NAME, max_messages=1, timeout=PATIENCE_SECONDS)
        assert [received.message.data for received in pulled.received_messages] == [b"b"]

    play(scenario)
    assert receiver.data() == ["a"]


def test_a_token_is_made_once_and_again_before_it_ends():
    signer = Signer()
    first = signer.token(ACCOUNT, "a", 1_000)
    assert signer.token(ACCOUNT, "a", 2_000) == first
    assert signer.token(ACCOUNT, "b", 2_000) != first
    assert signer.token(ACCOUNT, "a", 3_000) != first


@pytest.mark.slow
def test_a_token_of_another_broker_isnt_taken():
    signer, other = Signer(), Signer()
    keys = KeysServer(signer, "127.0.0.1", 0)
    try:
        verifier = Verifier([ISSUER], "a", keys.url)
        now = time.time()
        assert asyncio.run(verifier.claims(signer.token(ACCOUNT, "a", now)))["email"] == ACCOUNT
        with pytest.raises(TokenError):
            asyncio.run(Verifier([ISSUER], "a", keys.url).claims(other.token(ACCOUNT, "a", now)))
    finally:
        keys.close()


@pytest.mark.parametrize(
    ("push", "fits"),
    [
        pytest.param({}, True, id="pull"),
        pytest.param({"push_endpoint": "https://push.example.com/a"}, True, id="URL"),
        pytest.param({"push_endpoint": "push.example.com"}, False, id="no scheme"),
        pytest.param({"push_endpoint": "ftp://push.example.com"}, False, id="another scheme"),
        pytest.param({"push_endpoint": "https://push.example.com/a b"}, False, id="blank"),
        pytest.param({"push_endpoint": "https://a.com", "oidc_token": {"audience": "a"}}, False, id="nobody signs"),
    ],
)
def test_a_push_config_is_checked(push, fits):
    with contextlib.nullcontext() if fits else pytest.raises(InvalidArgumentError):
        check_push(of("PushConfig")(**push))
