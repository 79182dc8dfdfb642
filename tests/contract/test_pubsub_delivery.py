"""Publishing, pulling, streams, order, redelivery and seeks through the real client."""

from __future__ import annotations

import asyncio
import datetime as dt
import queue
import threading
import time
from collections import defaultdict

import grpc
import pytest
from google.api_core.exceptions import GoogleAPICallError, InvalidArgument, NotFound
from google.cloud import pubsub_v1
from google.cloud.pubsub_v1.subscriber.exceptions import AcknowledgeStatus
from google.pubsub_v1 import types as raw
from google.pubsub_v1.services.subscriber import SubscriberAsyncClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
from patience import PATIENCE_SECONDS
from pubsub_harness import Collector, official_differs

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The return_immediately flag")]


def bodies(received):
    return [message.message.data.decode() for message in received]


class Stream:
    """The generated client's streaming_pull, read by a thread; closed by cancelling."""

    def __init__(self, pubsub, subscription, **options):
        self._requests = queue.SimpleQueue()
        self.received = queue.SimpleQueue()
        self.error = None
        self.send(subscription=subscription, **{"stream_ack_deadline_seconds": 10, **options})
        self._call = pubsub.subscriber.streaming_pull(requests=iter(self._requests.get, None))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, **fields):
        self._requests.put(raw.StreamingPullRequest(**fields))

    def _read(self):
        try:
            for response in self._call:
                for message in response.received_messages:
                    self.received.put(message)
        except GoogleAPICallError as error:
            self.error = error

    def take(self, count, seconds=PATIENCE_SECONDS):
        messages, end = [], time.monotonic() + seconds
        while len(messages) < count and time.monotonic() < end:
            try:
                messages.append(self.received.get(timeout=max(0.01, end - time.monotonic())))
            except queue.Empty:
                break
        return messages

    def ack(self, received):
        self.send(ack_ids=[message.ack_id for message in received])

    def close(self):
        self._requests.put(None)
        self._call.cancel()
        self._thread.join(PATIENCE_SECONDS)

    def ended(self):
        self._thread.join(PATIENCE_SECONDS)
        return self.error


@pytest.fixture
def stream(pubsub):
    opened = []

    def connect(subscription, **options):
        opened.append(Stream(pubsub, subscription, **options))
        return opened[-1]

    yield connect
    for reader in opened:
        reader.close()


class TestPublish:
    def test_a_message_arrives_as_it_was_sent(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
        [message_id] = pubsub.publish(topic, "héllo", key="0101", slot="0101", empty="")
        [received] = pubsub.pull(subscription, 1)
        message = received.message
        assert message.data.decode() == "héllo"
        assert (message.message_id, message.ordering_key) == (message_id, "0101")
        assert dict(message.attributes) == {"slot": "0101", "empty": ""}
        assert before < message.publish_time < dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
        assert received.delivery_attempt == 0

    def test_the_high_level_publisher_batches_and_keeps_the_order_of_a_key(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic, enable_message_ordering=True)
        futures = [pubsub.publisher.publish(topic, str(n).encode(), ordering_key="k") for n in range(50)]
        ids = [future.result(PATIENCE_SECONDS) for future in futures]
        assert len(set(ids)) == 50
        texts = []
        while len(texts) < 50:
            received = pubsub.pull(subscription, 50 - len(texts))
            assert received
            texts += bodies(received)
            pubsub.ack(subscription, received)
        assert texts == [str(n) for n in range(50)]

    def test_what_breaks_the_limits_is_refused(self, pubsub):
        topic = pubsub.topic()
        for messages in ([{"data": b""}], [{"data": b"x"}] * 1001):
            with pytest.raises(InvalidArgument):
                pubsub.raw_publisher.publish(topic=topic, messages=messages)
        official_differs(pubsub, "accepts attributes and ordering keys of any length and number")
        for messages in (
            [{"data": b"x", "attributes": {"k": "v" * 1025}}],
            [{"data": b"x", "attributes": {"k" * 257: "v"}}],
            [{"data": b"x", "attributes": {f"k{n}": "" for n in range(101)}}],
            [{"data": b"x", "ordering_key": "k" * 1025}],
        ):
            with pytest.raises(InvalidArgument):
                pubsub.raw_publisher.publish(topic=topic, messages=messages)

    def test_nine_megabytes_pass(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        pubsub.publish(topic, "x" * 9_000_000)
        [received] = pubsub.pull(subscription, 1)
        assert len(received.message.data) == 9_000_000

    def test_a_missing_topic_is_not_found(self, pubsub):
        with pytest.raises(NotFound):
            pubsub.publish(pubsub.topic_name(), "x")

    def test_every_subscription_gets_every_message_from_its_creation_on(self, pubsub):
        topic = pubsub.topic()
        pubsub.publish(topic, "too early")
        first, two = pubsub.subscribe(topic, "one"), pubsub.subscribe(topic, "two")
        ids = pubsub.publish(topic, "a", "b")
        for subscription in (first, two):
            assert {message.message.message_id for message in pubsub.pull(subscription, 2)} == set(ids)


class TestLeases:
    def test_an_acked_message_stays_away_and_an_unacked_one_returns(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        pubsub.publish(topic, "acked", "left")
        received = pubsub.pull(subscription, 2)
        pubsub.deadline(subscription, received, 1)
        pubsub.ack(subscription, [message for message in received if message.message.data == b"acked"])
        assert bodies(pubsub.pull(subscription, 1)) == ["left"]
        assert not pubsub.pull(subscription, 1, seconds=0.2)

    def test_a_nacked_message_returns_at_once(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        pubsub.publish(topic, "x")
        first = pubsub.pull(subscription, 1)
        pubsub.deadline(subscription, first, 0)
        second = pubsub.pull(subscription, 1)
        assert second[0].message.message_id == first[0].message.message_id

    def test_a_deadline_out_of_range_is_refused(self, pubsub):
        official_differs(pubsub, "accepts any deadline")
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        pubsub.publish(topic, "x")
        with pytest.raises(InvalidArgument):
            pubsub.deadline(subscription, pubsub.pull(subscription, 1), 601)

    def test_back_off_delays_a_nacked_message(self, pubsub):
        official_differs(pubsub, "stores the retry policy and ignores it")
        topic = pubsub.topic()
        second = {"seconds": 1}
        subscription = pubsub.subscribe(topic, retry_policy={"minimum_backoff": second, "maximum_backoff": second})
        pubsub.publish(topic, "x")
        start = time.monotonic()
        pubsub.deadline(subscription, pubsub.pull(subscription, 1), 0)
        assert pubsub.pull(subscription, 1)
        assert time.monotonic() - start > 0.8

    def test_a_dead_letter_is_published_after_the_last_attempt(self, pubsub):
        topic, dead = pubsub.topic(), pubsub.topic("dead")
        letters = pubsub.subscribe(dead, "letters")
        subscription = pubsub.subscribe(
            topic, dead_letter_policy={"dead_letter_topic": dead, "max_delivery_attempts": 5}
        )
        pubsub.publish(topic, "bad", slot="01")
        for attempt in range(1, 6):
            received = pubsub.pull(subscription, 1)
            assert received[0].delivery_attempt == attempt
            pubsub.deadline(subscription, received, 0)
        assert not pubsub.pull(subscription, 1, seconds=0.2)
        [letter] = pubsub.pull(letters, 1)
        assert letter.message.data == b"bad"
        assert letter.message.attributes["CloudPubSubDeadLetterSourceSubscription"] == "shard"
        assert letter.message.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"
        assert letter.message.attributes["slot"] == "01"

    def test_exactly_once_refuses_stale_acks(self, pubsub, needs):
        needs("exactly-once")
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic, enable_exactly_once_delivery=True)
        pubsub.publish(topic, "x")
        received = pubsub.pull(subscription, 1)
        pubsub.ack(subscription, received)
        with pytest.raises(GoogleAPICallError) as caught:
            pubsub.ack(subscription, received)
        assert caught.value.reason == "EXACTLY_ONCE_ACKID_FAILURE"
        assert caught.value.metadata == {received[0].ack_id: "PERMANENT_FAILURE_INVALID_ACK_ID"}

    def test_exactly_once_confirms_acks_to_the_callback(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic, enable_exactly_once_delivery=True)
        answers = queue.SimpleQueue()

        def answer(message):
            answers.put(message.ack_with_response())

        future = pubsub.subscriber.subscribe(subscription, callback=answer)
        try:
            pubsub.publish(topic, "x")
            first = answers.get(timeout=PATIENCE_SECONDS)
            assert first.result(PATIENCE_SECONDS) is AcknowledgeStatus.SUCCESS
        finally:
            future.cancel()
            future.result(PATIENCE_SECONDS)
        assert not pubsub.pull(subscription, 1, seconds=0.1)

    def test_elsewhere_a_stale_ack_is_no_error(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        pubsub.publish(topic, "x")
        received = pubsub.pull(subscription, 1)
        pubsub.ack(subscription, received)
        pubsub.ack(subscription, received)
        with pytest.raises(InvalidArgument):
            pubsub.subscriber.acknowledge(subscription=subscription, ack_ids=["made up"])

    def test_a_filter_drops_what_does_not_match(self, pubsub, needs):
        needs("filters")
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic, filter='hasPrefix(attributes.slot, "01") OR NOT attributes:slot')
        pubsub.publish(topic, "no", slot="10")
        pubsub.publish(topic, "yes", slot="0110")
        pubsub.publish(topic, "none")
        assert sorted(bodies(pubsub.pull(subscription, 2))) == ["none", "yes"]
        assert not pubsub.pull(subscription, 1, seconds=0.2)


class TestStreams:
    def test_the_callback_subscriber_gets_everything(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        collector = Collector(200)
        future = pubsub.subscriber.subscribe(subscription, callback=collector)
        try:
            for start in range(0, 200, 50):
                pubsub.publish(topic, *(str(n) for n in range(start, start + 50)))
            collector.done.result(PATIENCE_SECONDS)
        finally:
            future.cancel()
            future.result(PATIENCE_SECONDS)
        assert sorted(set(collector.bodies), key=int) == [str(n) for n in range(200)]

    def test_the_callback_subscriber_keeps_the_order_of_a_key(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic, enable_message_ordering=True)
        collector = Collector(300)
        future = pubsub.subscriber.subscribe(subscription, callback=collector)
        try:
            for start in range(0, 100, 10):
                for key in "abc":
                    pubsub.publish(topic, *(f"{key}{n}" for n in range(start, start + 10)), key=key)
            collector.done.result(PATIENCE_SECONDS)
        finally:
            future.cancel()
            future.result(PATIENCE_SECONDS)
        numbers = defaultdict(list)
        for body in collector.bodies:
            numbers[body[0]].append(int(body[1:]))
        assert numbers == {key: list(range(100)) for key in "abc"}

    def test_acks_on_the_stream_count(self, pubsub, stream):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        pubsub.publish(topic, "a", "b")
        reader = stream(subscription)
        received = reader.take(2)
        reader.send(modify_deadline_ack_ids=[message.ack_id for message in received], modify_deadline_seconds=[1, 1])
        reader.ack([message for message in received if message.message.data == b"a"])
        assert bodies(reader.take(1)) == ["b"]
        assert not reader.take(1, 0.2)

    def test_flow_control_bounds_what_is_outstanding(self, pubsub, stream):
        official_differs(pubsub, "overshoots max_outstanding_messages")
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        pubsub.publish(topic, *"abcde")
        reader = stream(subscription, max_outstanding_messages=2)
        first = reader.take(2)
        assert not reader.take(1, 0.3)
        reader.ack(first)
        assert len(reader.take(2)) == 2
        assert not reader.take(1, 0.3)

    def test_a_stream_to_nowhere_ends_with_not_found(self, pubsub, stream):
        assert isinstance(stream(pubsub.subscription_name()).ended(), NotFound)

    def test_a_nonsense_deadline_ends_the_stream(self, pubsub, stream):
        subscription = pubsub.subscribe(pubsub.topic())
        assert isinstance(stream(subscription, stream_ack_deadline_seconds=5).ended(), InvalidArgument)

    def test_deleting_the_subscription_ends_the_stream(self, pubsub, stream):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        pubsub.publish(topic, "x")
        reader = stream(subscription)
        reader.take(1)
        pubsub.subscriber.delete_subscription(subscription=subscription)
        assert isinstance(reader.ended(), NotFound)

    def test_a_nack_brings_the_later_messages_of_the_key_back_in_order(self, pubsub, stream):
        official_differs(pubsub, "redelivers the nacked message alone")
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic, enable_message_ordering=True)
        pubsub.publish(topic, *"abcd", key="k")
        reader = stream(subscription)
        received = reader.take(4)
        assert bodies(received) == list("abcd")
        reader.send(modify_deadline_ack_ids=[received[1].ack_id], modify_deadline_seconds=[0])
        again = []
        while len(again) < 3 and (received := reader.take(1)):
            again += bodies(received)
            reader.ack(received)
        assert again == list("bcd")

    def test_while_a_key_is_out_no_other_stream_gets_it(self, pubsub, stream):
        official_differs(pubsub, "doesn't go on with a key at the stream that holds it")
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic, enable_message_ordering=True)
        first_reader, two = stream(subscription), stream(subscription)
        pubsub.publish(topic, "k0", key="k")
        deadline = time.monotonic() + PATIENCE_SECONDS
        first, owner = [], None
        while owner is None and time.monotonic() < deadline:
            for reader in (first_reader, two):
                if first := reader.take(1, 0.05):
                    owner = reader
                    break
        other = two if owner is first_reader else first_reader
        pubsub.publish(topic, "k1", "k2", key="k")
        assert bodies(owner.take(2)) == ["k1", "k2"]
        assert not other.take(1, 0.2)
        owner.close()
        assert not other.take(1, 0.3), "a closed stream's messages stay leased"
        pubsub.deadline(subscription, first, 0)
        assert bodies(other.take(3)) == ["k0", "k1", "k2"]

    def test_two_streams_share_the_keys(self, pubsub, stream):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic, enable_message_ordering=True)
        first_reader, two = stream(subscription), stream(subscription)
        time.sleep(0.3)
        for n in range(3):
            for key in range(20):
                pubsub.publish(topic, f"{key}:{n}", key=str(key))
        first, second = [], []
        end = time.monotonic() + PATIENCE_SECONDS
        while len(first) + len(second) < 60 and time.monotonic() < end:
            first += first_reader.take(60, 0.1)
            second += two.take(60, 0.1)
        assert len(first) + len(second) == 60
        for messages in (first, second):
            for key in {message.message.ordering_key for message in messages}:
                assert [body for body in bodies(messages) if body.startswith(f"{key}:")] == [
                    f"{key}:{n}" for n in range(3)
                ]
        if pubsub.kind == "embedded":
            assert min(len(first), len(second)) >= 20

    def test_the_generated_async_client_reads_in_batches(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        pubsub.publish(topic, *map(str, range(500)))

        async def read():
            channel = grpc.aio.insecure_channel(pubsub.host)
            client = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))
            requests = asyncio.Queue()
            requests.put_nowait(raw.StreamingPullRequest(subscription=subscription, stream_ack_deadline_seconds=10))

            async def sent():
                while True:
                    yield await requests.get()

            texts = []
            async for response in await client.streaming_pull(requests=sent()):
                texts += bodies(response.received_messages)
                ack_ids = [message.ack_id for message in response.received_messages]
                requests.put_nowait(raw.StreamingPullRequest(ack_ids=ack_ids))
                if len(texts) >= 500:
                    break
            await channel.close()
            return texts

        texts = asyncio.run(asyncio.wait_for(read(), PATIENCE_SECONDS))
        assert sorted(set(texts), key=int) == [str(n) for n in range(500)]


class TestTimeTravel:
    def test_seek_to_the_future_purges(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        pubsub.publish(topic, "a", "b")
        pubsub.subscriber.seek(
            request={"subscription": subscription, "time": dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)}
        )
        assert not pubsub.pull(subscription, 1, seconds=0.3)

    def test_seek_to_the_past_replays_what_was_acked(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic, retain_acked_messages=True)
        start = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)
        pubsub.publish(topic, "a", "b")
        pubsub.ack(subscription, pubsub.pull(subscription, 2))
        pubsub.subscriber.seek(request={"subscription": subscription, "time": start})
        assert sorted(bodies(pubsub.pull(subscription, 2))) == ["a", "b"]

    def test_a_snapshot_brings_back_what_was_unacked_then(self, pubsub):
        topic = pubsub.topic()
        subscription = pubsub.subscribe(topic)
        pubsub.publish(topic, "acked", "unacked")
        received = pubsub.pull(subscription, 2)
        pubsub.ack(subscription, [message for message in received if message.message.data == b"acked"])
        snapshot = pubsub.subscriber.create_snapshot(name=pubsub.snapshot_name(), subscription=subscription)
        pubsub.ack(subscription, [message for message in received if message.message.data == b"unacked"])
        pubsub.publish(topic, "later")
        pubsub.ack(subscription, pubsub.pull(subscription, 1))
        pubsub.subscriber.seek(request={"subscription": subscription, "snapshot": snapshot.name})
        assert sorted(bodies(pubsub.pull(subscription, 2))) == ["later", "unacked"]


def test_the_emulator_variable_is_all_a_program_needs(pubsub, monkeypatch):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub.host)
    topic = pubsub.topic()
    subscription = pubsub.subscribe(topic)
    with pubsub_v1.SubscriberClient() as subscriber:
        pubsub_v1.PublisherClient().publish(topic, b"x").result(PATIENCE_SECONDS)
        received = subscriber.pull(subscription=subscription, max_messages=1).received_messages
    assert bodies(received) == ["x"]
