"""Intake on the embedded broker: bounds, leases, acks, hand-back, and streams that break."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from consumer_kit import SLOT_BITS, config
from google.pubsub_v1 import DeadLetterPolicy, PublisherAsyncClient, SubscriberAsyncClient, Subscription
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
from patience import PATIENCE_SECONDS

from consumer.intake.pull import Intake
from consumer.observability.metrics import Metrics
from consumer.pubsub import calls
from consumer.pubsub.protos import PubsubMessage
from shardctl.broker import Broker, Faults
from shardctl.fleet.keyspace import digits_of

pytestmark = pytest.mark.slow
TOPIC = "projects/test-project/topics/data-writes"
SUBSCRIPTION = "shop-s0-g1"
PATH = f"projects/test-project/subscriptions/{SUBSCRIPTION}"


def reading(subscriptions, **consumer):
    made = config(**consumer)
    return made.model_copy(
        update={"generations": (made.generations[0].model_copy(update={"subscriptions": tuple(subscriptions)}),)}
    )


class Bench:
    def __init__(self, broker):
        self.broker, self.metrics = broker, Metrics()
        self.publisher, self.subscriber = calls.publisher(broker.host), calls.subscriber(broker.host)
        channel = grpc.aio.insecure_channel(broker.host)
        self.topics = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
        self.subscriptions = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))

    async def provision(self):
        await self.topics.create_topic(name=TOPIC)
        await self.subscriptions.create_subscription(
            request=Subscription(name=PATH, topic=TOPIC, enable_message_ordering=True, ack_deadline_seconds=10)
        )

    async def retry_counted(self):
        """From here on the subscription reports how often it has tried to deliver a message."""
        await self.topics.create_topic(name=f"{TOPIC}-dead")
        policy = DeadLetterPolicy(dead_letter_topic=f"{TOPIC}-dead", max_delivery_attempts=5)
        changed = Subscription(name=PATH, topic=TOPIC, dead_letter_policy=policy)
        await self.subscriptions.update_subscription(
            subscription=changed, update_mask={"paths": ["dead_letter_policy"]}
        )

    async def publish(self, count, slot=0, size=0):
        key = digits_of(slot, SLOT_BITS)
        messages = [
            PubsubMessage(data=b"x" * size, attributes={"slot": key, "n": str(n)}, ordering_key=key)
            for n in range(count)
        ]
        for start in range(0, count, 500):
            await self.publisher.publish(topic=TOPIC, messages=messages[start : start + 500], timeout_seconds=10)

    def intake(self, subscriptions=(SUBSCRIPTION,), clock=time.monotonic, *, slow_start=False, pause=0.0, **consumer):
        got = []
        made = Intake(self.subscriber, reading(subscriptions, **consumer), clock, self.metrics, slow_start=slow_start)
        made.start(got.extend, lambda: pause)
        return made, got

    @property
    def core(self):
        return self.broker.registry.subscription(PATH).core


@asynccontextmanager
async def bench():
    async with Broker() as broker:
        made = Bench(broker)
        await made.provision()
        yield made


async def until(condition, seconds=PATIENCE_SECONDS):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.005)


async def close(*intakes):
    for intake in intakes:
        await intake.stop_reading()
        await intake.close(1)


def numbers(deliveries):
    return [int(delivery.message.attributes["n"]) for delivery in deliveries]


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


def test_what_is_acked_is_gone_and_nothing_of_it_is_kept():
    async def scenario():
        async with bench() as made:
            await made.publish(1_200)
            intake, got = made.intake()
            await until(lambda: len(got) == 1_200)
            assert numbers(got) == list(range(1_200))
            await intake.ack(got)
            await until(lambda: not made.core.entries)
            assert not intake._leases.held
            assert (intake._streams[0].messages, intake._streams[0].bytes) == (0, 0)
            await until(lambda: not intake._leases._acking)
            assert made.metrics.registry.get_sample_value("shardctl_messages_acked_total") == 1_200
            assert made.metrics.registry.get_sample_value("shardctl_messages_outstanding") == 0
            await close(intake)

    run(scenario)


def test_an_error_in_a_read_that_was_put_off_ends_the_reader():
    async def scenario():
        async with bench() as made:
            intake, got = made.intake(pause=10.0)
            await made.publish(1)
            await until(lambda: len(got) == 1)
            intake._deliver = None
            await made.publish(1)
            await until(intake.tasks[0].done)
            with pytest.raises(TypeError):
                intake.tasks[0].result()
            await intake.close(1)

    run(scenario)


@pytest.mark.parametrize(
    "bound", [{"max_outstanding_messages": 50}, {"max_outstanding_bytes": 50_000}], ids=["messages", "bytes"]
)
def test_bounds_hold_and_open_again(bound):
    async def scenario():
        async with bench() as made:
            await made.publish(200, size=1_000)
            intake, got = made.intake(**bound)
            await until(lambda: len(got) >= 40)
            await asyncio.sleep(0.1)
            assert len(got) <= 51
            while len(got) < 200 or intake._leases.held:
                await intake.ack(list(intake._leases.held.values()))
                await asyncio.sleep(0.01)
            assert numbers(got) == list(range(200))
            await close(intake)

    run(scenario)


def test_leases_of_what_is_held_are_extended_in_time():
    """The clock runs; the broker is asked for the deadlines it was given."""

    async def scenario():
        async with bench() as made:
            await made.publish(3)
            now = [0.0]
            intake, got = made.intake(clock=lambda: now[0])
            await until(lambda: len(got) == 3)
            extended = []
            modify = intake._leases._client.modify_ack_deadline

            class Client:
                async def modify_ack_deadline(self, **request):
                    extended.append((now[0], len(request["ack_ids"]), request["ack_deadline_seconds"]))
                    return await modify(**request)

            intake._leases._client = Client()
            now[0] = 8.0  # over a third of 10 seconds
            await until(lambda: extended)
            assert extended == [(8.0, 3, 10)]
            now[0] = 11.0
            await asyncio.sleep(1.3)
            assert len(extended) == 1
            now[0] = 16.0
            await until(lambda: len(extended) == 2)
            await close(intake)

    run(scenario)


def test_a_hand_back_lets_another_reader_have_them_at_once_and_in_order():
    async def scenario():
        async with bench() as made:
            await made.publish(100)
            first, got = made.intake()
            await until(lambda: len(got) == 100)
            await first.ack(got[:10])
            await until(lambda: len(made.core.entries) == 90)
            second, got_too = made.intake()
            await asyncio.sleep(0.3)
            assert not got_too
            await first.stop_reading()
            await first.hand_back(got[10:])
            await until(lambda: len(got_too) == 90, PATIENCE_SECONDS)
            assert numbers(got_too) == list(range(10, 100))
            assert not first._leases.held
            await close(first, second)

    run(scenario)


def test_a_cut_stream_is_opened_again_and_nothing_is_missed():
    async def scenario():
        async with bench() as made:
            made.broker.set_faults(Faults(seed=5, cut_stream_rate=0.5))
            intake, got = made.intake()
            for slot in range(20):
                await made.publish(50, slot)
            await until(lambda: len(got) == 1_000)
            made.broker.set_faults(Faults())
            by_slot = {}
            for delivery in got:
                by_slot.setdefault(delivery.slot, []).append(delivery)
            assert all(numbers(mine) == list(range(50)) for mine in by_slot.values())
            await intake.ack(got)
            await until(lambda: not made.core.entries)
            await close(intake)

    run(scenario)


@pytest.mark.parametrize("fault", ["unavailable_rate", "lost_reply_rate"])
def test_acks_that_fail_are_sent_again(fault):
    async def scenario():
        async with bench() as made:
            await made.publish(10)
            intake, got = made.intake()
            await until(lambda: len(got) == 10)
            made.broker.set_faults(Faults(**{fault: 1.0}))
            await intake.ack(got)
            await asyncio.sleep(0.05)
            made.broker.set_faults(Faults())
            await until(lambda: not made.core.entries)
            await close(intake)

    run(scenario)


def test_a_missing_subscription_is_waited_for_and_never_counts_as_connected():
    async def scenario():
        async with bench() as made:
            intake, got = made.intake(subscriptions=("later",))
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                assert not intake.connected
                await asyncio.sleep(0.002)
            path = "projects/test-project/subscriptions/later"
            await made.subscriptions.create_subscription(request=Subscription(name=path, topic=TOPIC))
            await until(lambda: intake.connected)
            await made.publish(1)
            await until(lambda: got)
            await close(intake)

    run(scenario)


def test_an_idle_stream_counts_as_connected():
    async def scenario():
        async with bench() as made:
            intake, _ = made.intake()
            await until(lambda: intake.connected, PATIENCE_SECONDS)
            await close(intake)

    run(scenario)


def test_while_paused_nothing_is_received_and_stopping_ends_the_stream():
    async def scenario():
        async with bench() as made:
            intake, got = made.intake()
            await made.publish(1)
            await until(lambda: got)
            intake.pause()
            await made.publish(300, 1)
            await asyncio.sleep(0.1)
            before = len(got)
            await made.publish(300, 2)
            await asyncio.sleep(0.1)
            assert len(got) - before <= 300
            await intake.stop_reading()
            await until(lambda: not made.core.readers, PATIENCE_SECONDS)
            await intake.close(1)

    run(scenario)


def test_closing_is_over_in_time_with_the_broker_gone():
    """Acks and hand-backs that nobody takes must not outlast the grace period."""

    async def scenario():
        async with bench() as made:
            await made.publish(10)
            intake, got = made.intake()
            await until(lambda: len(got) == 10)
            await made.broker.stop(0)
            await intake.stop_reading()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await intake.ack(got[:5])
                await intake.hand_back(got[5:])
                await intake.close(0.3)

    run(scenario)


def test_a_slow_start_takes_few_at_first_and_then_as_much_as_may_be():
    async def scenario():
        async with bench() as made:
            await made.publish(1_000)
            intake, got = made.intake(slow_start=True)
            sizes, settled = [], 0
            while settled < 127:
                await until(lambda: len(got) > settled)  # noqa: B023 - awaited here
                sizes.append(len(got) - settled)
                await intake.ack(got[settled:])
                settled = len(got)
            assert sizes == [1, 2, 4, 8, 16, 32, 64]
            await until(lambda: len(got) == 1_000)
            assert numbers(got) == list(range(1_000))
            await close(intake)

    run(scenario)


def test_what_comes_again_on_a_stream_is_tried_after_all_else_and_then_the_stream_is_opened_anew():
    async def scenario():
        async with bench() as made:
            await made.retry_counted()
            await made.publish(127)
            intake, got = made.intake(slow_start=True)
            (stream,) = intake._streams
            while len(got) < 127 or intake._leases.held:
                await intake.ack(list(intake._leases.held.values()))
                await asyncio.sleep(0.005)
            await made.publish(1, slot=1)
            await made.publish(1, slot=2)
            await until(lambda: len(got) == 129)
            first, other = got[-2:]
            await made.subscriber.modify_ack_deadline(
                subscription=PATH, ack_ids=[first.ack_id], ack_deadline_seconds=0, timeout_seconds=2
            )
            await until(stream.leave.is_set)
            assert len(got) == 129  # not while the other one is outstanding
            await intake.ack([other])
            await until(lambda: len(got) == 130)
            assert (got[-1].message_id, got[-1].attempt) == (first.message_id, 2)
            await intake.ack(got[-1:])
            await until(lambda: not stream.leave.is_set())
            await made.publish(200)
            while len(got) < 330 or intake._leases.held:
                await intake.ack(list(intake._leases.held.values()))
                await asyncio.sleep(0.005)
            await until(lambda: not made.core.entries)  # acks are on their way
            await close(intake)

    run(scenario)
