"""The intake behind the endpoint: when it accepts, when it answers, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest
from consumer_kit import config
from google.pubsub_v1 import ReceivedMessage

from consumer.intake.push.intake import ClosedError, FullError, PushIntake
from consumer.observability.metrics import Metrics

SUBSCRIPTION = "shop-s0-g1"


class Endpoint:
    is_open = True

    def __init__(self):
        self._closed = asyncio.Event()

    async def serve(self, intake):
        await self._closed.wait()

    def close(self):
        self._closed.set()


class Bench:
    def __init__(self, deadline=timedelta(seconds=60), **consumer):
        made = config(**consumer)
        made = made.model_copy(update={"subscription": made.subscription.model_copy(update={"ack_deadline": deadline})})
        self.metrics, self.got = Metrics(), []
        self.intake = PushIntake(made, Endpoint(), time.monotonic, self.metrics)
        self.inlet = self.intake.inlets[SUBSCRIPTION]

    def push(self, data=b"{}"):
        received = ReceivedMessage.pb()(ack_id=self.intake.ack_id(), message={"data": data, "message_id": "m"})
        return asyncio.create_task(self.intake.take(self.inlet, received))

    async def pushed(self, count=1):
        tasks = [self.push() for _ in range(count)]
        await asyncio.sleep(0)
        return tasks

    def sample(self, name):
        return self.metrics.registry.get_sample_value(f"shardctl_{name}")


def play(scenario, **settings):
    async def run():
        bench = Bench(**settings)
        bench.intake.start(bench.got.extend, lambda: 0.0)
        try:
            await scenario(bench)
        finally:
            await bench.intake.close(1)
        assert (bench.inlet.messages, bench.inlet.bytes) == (0, 0)

    asyncio.run(run())


def test_a_request_is_answered_when_its_message_is_done_with_and_not_before():
    async def scenario(bench):
        [task] = await bench.pushed()
        assert (len(bench.got), bench.sample("messages_outstanding")) == (1, 1)
        assert bench.got[0].subscription == "projects/test-project/subscriptions/shop-s0-g1"
        await asyncio.sleep(0.01)
        assert not task.done()
        await bench.intake.ack(bench.got)
        assert await task is True
        assert (bench.sample("messages_outstanding"), bench.sample("messages_acked_total")) == (0, 1)

    play(scenario)


def test_what_is_handed_back_is_refused():
    async def scenario(bench):
        [task] = await bench.pushed()
        await bench.intake.hand_back(bench.got)
        assert await task is False

    play(scenario)


def test_a_request_isnt_kept_past_the_ack_deadline_and_its_message_is_done_with_all_the_same():
    async def scenario(bench):
        [task] = await bench.pushed()
        assert await task is False
        assert bench.inlet.messages == 1  # still in flight
        await bench.intake.ack(bench.got)  # nobody waits any more

    play(scenario, deadline=timedelta(milliseconds=20))


def test_a_pause_refuses_what_comes_and_keeps_what_is_held():
    async def scenario(bench):
        [task] = await bench.pushed()
        bench.intake.pause()
        with pytest.raises(ClosedError):
            await bench.push()
        with pytest.raises(ClosedError), bench.intake.admitted(bench.inlet, 1):
            pass
        assert not task.done()
        bench.intake.resume()
        await bench.intake.ack(bench.got)
        assert await task is True

    play(scenario)


@pytest.mark.parametrize("bound", [{"max_outstanding_messages": 2}, {"max_outstanding_bytes": 1}])
def test_no_more_is_accepted_than_may_be_in_flight(bound):
    async def scenario(bench):
        tasks = await bench.pushed(2)
        with pytest.raises(FullError), bench.intake.admitted(bench.inlet, 1):
            pass
        await bench.intake.ack(bench.got)
        await asyncio.gather(*tasks)
        with bench.intake.admitted(bench.inlet, 1):
            assert bench.inlet.messages == 1

    play(scenario, **bound)


def test_once_it_stops_nothing_is_accepted_any_more():
    async def scenario(bench):
        assert bench.intake.connected
        await bench.intake.stop_reading()
        bench.intake.resume()  # a batch that works again doesn't open it
        with pytest.raises(ClosedError):
            await bench.push()
        assert not bench.intake.connected

    play(scenario)
