"""A replica between a fake intake and a fake handler: retries, back-off, readiness and the drain."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta

import pytest
from consumer_kit import FakeIntake, config, raw
from patience import PATIENCE_SECONDS
from virtualtime import run

from consumer.errors import BlockedError, SlotsWaitError, TransientError
from consumer.observability.metrics import Metrics
from consumer.replica import lifecycle
from consumer.replica.handle import Handled
from consumer.replica.lifecycle import NotDrainedError, Replica
from consumer.replica.since import Since
from shardctl.fleet.keyspace import lane_of


class AnySink:
    def check(self, delivery):
        pass


class Bench:
    """`handle` decides what becomes of a batch; `settled` lists the messages in the order they got through."""

    def __init__(self, handle, **consumer):
        defaults = {"batch_max_age_ms": 0, "drain_timeout": timedelta(seconds=5), "concurrency": 2}
        self.intake, self.settled, self._handle = FakeIntake(), [], handle
        made, self.metrics = config(**{**defaults, **consumer}), Metrics()
        self.replica = Replica(made, AnySink(), self.intake, self, self.metrics, asyncio.get_running_loop().time)
        self.stop = asyncio.Event()

    async def handle(self, batch):
        kept = await self._handle(batch) or []
        self.settled += [delivery.idempotency_key for delivery in batch.deliveries if delivery not in kept]
        return Handled(kept)

    async def until(self, condition):
        for _ in range(10_000):
            if condition():
                return
            await asyncio.sleep(0.001)
        pytest.fail("it never came true")

    async def __aenter__(self):
        self.running = asyncio.create_task(self.replica.run(self.stop))
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_):
        self.stop.set()
        if not self.running.done():
            await asyncio.wait([self.running])


def message(slot, name):
    """Its made-up slot gets it a fault, at which nobody here looks."""
    return raw("customer", b"{}", "k", slot=slot, ident=name)


def test_messages_of_a_slot_get_through_in_order_however_often_they_are_tried():
    tries = iter(range(100))

    async def shaky(batch):
        await asyncio.sleep(0)
        if next(tries) % 3 == 0:
            raise TransientError("…")
        if next(tries) % 3 == 1:
            return batch.deliveries
        return None

    async def scenario():
        async with Bench(shaky) as bench:
            for number in range(6):
                bench.intake.deliver([message(1, str(number))])
                await asyncio.sleep(0.002)
            await bench.until(lambda: len(bench.settled) == 6)
            assert bench.settled == [str(number) for number in range(6)]

    run(scenario())


def test_a_failed_batch_pauses_intake_until_one_works():
    broken = True

    async def handle(_):
        if broken:
            raise TransientError("database down")

    async def scenario():
        nonlocal broken
        async with Bench(handle) as bench:
            bench.intake.deliver([message(1, "a")])
            await bench.until(lambda: bench.replica.failing)
            assert not bench.intake.open
            broken = False
            await bench.until(lambda: bench.settled == ["a"])
            assert bench.intake.open
            assert not bench.replica.failing

    run(scenario())


def test_readiness_doesnt_flap_while_one_batch_fails_and_others_work(monkeypatch):
    monkeypatch.setattr(lifecycle, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(lifecycle, "LAST_RETRY_SECONDS", 0.01)

    async def handle(batch):
        if lane_of(1, 1) in batch.lanes:
            raise TransientError("…")

    async def scenario():
        async with Bench(handle) as bench:
            bench.intake.deliver([message(1, "stuck")])
            await bench.until(lambda: bench.replica.failing)
            for number in range(20):
                bench.intake.deliver([message(2, str(number))])
                await bench.until(lambda: str(number) in bench.settled)  # noqa: B023
                assert bench.replica.failing
            await bench.until(lambda: bench.intake.open)  # what works goes on working

    run(scenario())


def test_idle_workers_share_what_comes_at_once():
    async def scenario():
        together = asyncio.Barrier(3)

        async def handle(_):
            await together.wait()

        async with Bench(handle, concurrency=3, batch_max_rows=1) as bench:
            await asyncio.sleep(1)
            bench.intake.deliver([message(slot, str(slot)) for slot in range(3)])
            await bench.until(lambda: len(bench.settled) == 3)

    run(scenario())


def test_an_outage_is_tried_by_one_worker():
    tries, all_busy = [], asyncio.Event()

    async def handle(batch):
        tries.append(batch.lanes)
        if len(tries) == 8:
            all_busy.set()
        await all_busy.wait()
        raise TransientError("database down")

    async def scenario():
        async with Bench(handle, concurrency=8, batch_max_rows=1) as bench:
            bench.intake.deliver([message(slot, str(slot)) for slot in range(50)])
            await bench.until(lambda: len(tries) > 8)  # one more than were under way
            assert len(tries) == 9
            assert bench.replica.failing
            assert not bench.intake.open

    run(scenario())


def test_a_batch_that_is_blocked_makes_only_the_slots_wait_that_are_the_cause():
    tried = []

    async def handle(batch):
        tried.append(batch.lanes)
        if lane_of(1, 1) in batch.lanes:
            raise BlockedError("lock timeout")

    async def scenario():
        async with Bench(handle) as bench:
            bench.intake.deliver([message(slot, str(slot)) for slot in range(50)])
            await bench.until(lambda: len(bench.settled) == 49)
            await bench.until(lambda: tried.count((lane_of(1, 1),)) > 1)
            assert bench.intake.open
            assert bench.replica.why_not_ready is None
            assert bench.metrics.registry.get_sample_value("shardctl_slot_failing_seconds") > 0

    run(scenario())


@pytest.mark.parametrize(
    "error", [BlockedError("lock timeout"), SlotsWaitError("backend down", [lane_of(1, 1)])], ids=repr
)
def test_an_outage_ends_where_only_some_slots_wait(error):
    """Else nothing would come in for the others, where only those were received."""
    failures = iter([TransientError("database down"), error])

    async def handle(batch):
        if lane_of(1, 1) in batch.lanes:
            raise next(failures, error)

    async def scenario():
        async with Bench(handle) as bench:
            bench.intake.deliver([message(1, "stuck")])
            await bench.until(lambda: not bench.intake.open)
            await bench.until(lambda: bench.intake.open)
            assert not bench.replica.failing

    run(scenario())


def test_a_slot_held_for_long_is_asked_for_ever_more_rarely():
    tries = []

    async def handle(batch):
        tries.append(asyncio.get_running_loop().time())
        return batch.deliveries

    async def scenario():
        async with Bench(handle) as bench:
            delivery = message(1, "held")
            original = delivery.message
            bench.intake.deliver([delivery])
            await bench.until(lambda: len(tries) == 5)
            gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
            assert gaps[-1] > gaps[0]
            assert delivery.message == original
            assert delivery.message is not original  # the response it came in can be freed

    run(scenario())


@pytest.mark.parametrize(("failing", "name"), [(True, "slot_failing_seconds"), (False, "slot_held_seconds")])
def test_a_stuck_slot_is_reported_for_as_long_as_it_is_stuck(failing, name):
    stuck = True

    async def handle(batch):
        if stuck and failing:
            raise TransientError("…")
        return batch.deliveries if stuck else None

    async def scenario():
        nonlocal stuck
        async with Bench(handle) as bench:

            def lag():
                return bench.metrics.registry.get_sample_value(f"shardctl_{name}")

            assert lag() == 0
            bench.intake.deliver([message(1, "a")])
            await bench.until(lambda: lag() > 0.01)
            before = lag()
            await bench.until(lambda: lag() > before)
            stuck = False
            await bench.until(lambda: bench.settled == ["a"])
            await bench.until(lambda: lag() == 0)

    run(scenario())


def test_the_slot_in_trouble_for_longest_is_reported():
    now = 100.0
    since = Since(lambda: now)
    assert since.longest_seconds() == 0
    since.begin([1, 2])
    now = 105.0
    since.begin([2, 3])
    assert since.longest_seconds() == 5
    since.end(1)
    since.end(9)  # never was in trouble
    assert since.longest_seconds() == 5
    since.end(2)
    now = 107.0
    assert since.longest_seconds() == 2


def test_a_held_slot_holds_nobody_else_up():
    async def handle(batch):
        return [delivery for delivery in batch.deliveries if delivery.slot == 1]

    async def scenario():
        async with Bench(handle) as bench:
            bench.intake.deliver([message(1, "held")])
            for number in range(10):
                bench.intake.deliver([message(2, str(number))])
            await bench.until(lambda: len(bench.settled) == 10)

    run(scenario())


def test_stopping_writes_what_was_received():
    """Handed back, it would wait for the subscription's back-off."""
    go_on = asyncio.Event()

    async def handle(_):
        await go_on.wait()

    async def scenario():
        async with Bench(handle, concurrency=1) as bench:
            bench.intake.deliver([message(1, "a")])
            await asyncio.sleep(0.01)
            bench.intake.deliver([message(1, "b"), message(2, "c"), message(1, "d")])
            bench.stop.set()
            await asyncio.sleep(0.01)
            go_on.set()
            await bench.running
            assert [key for key in bench.settled if key != "c"] == ["a", "b", "d"]
            assert "c" in bench.settled
            assert bench.intake.handed_back == []
            assert bench.intake.closed

    run(scenario())


def test_stopping_hands_back_in_order_what_may_not_be_written_here():
    go_on = asyncio.Event()

    async def handle(batch):
        await go_on.wait()
        return [delivery for delivery in batch.deliveries if delivery.slot == 1]

    async def scenario():
        async with Bench(handle, concurrency=1) as bench:
            deliveries = [message(1, "a"), message(1, "b")]
            bench.intake.deliver(deliveries[:1])
            await asyncio.sleep(0.01)
            bench.intake.deliver([deliveries[1], message(2, "c")])
            bench.stop.set()
            await asyncio.sleep(0.01)
            assert bench.intake.handed_back == []  # not while one of the slot is under way
            go_on.set()
            await bench.running
            assert bench.settled == ["c"]
            assert bench.intake.handed_back == deliveries

    run(scenario())


def test_what_comes_back_while_it_drains_is_handed_back_before_what_waited_behind_it():
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handle(batch):
        if lane_of(2, 1) in batch.lanes:
            raise TransientError("database down")  # so that nothing more is written
        begun.set()
        await go_on.wait()
        return batch.deliveries

    async def scenario():
        async with Bench(handle, drain_timeout=timedelta(seconds=PATIENCE_SECONDS)) as bench:
            first, second = message(1, "a"), message(1, "b")
            bench.intake.deliver([first])
            await begun.wait()
            bench.intake.deliver([message(2, "c"), second])
            await bench.until(lambda: bench.replica.failing)
            bench.stop.set()
            await bench.until(bench.replica._stopping.is_set)
            go_on.set()
            await bench.running
            assert [delivery for delivery in bench.intake.handed_back if delivery.slot == 1] == [first, second]

    run(scenario())


def test_stopping_doesnt_wait_for_a_back_off():
    async def handle(_):
        raise TransientError("database down")

    async def scenario():
        async with Bench(handle) as bench:
            mine = message(1, "a")
            bench.replica._failures[lane_of(1, 1)] = 9  # the next back-off lasts 5 s at least
            bench.intake.deliver([mine])
            await bench.until(lambda: bench.replica._failures[lane_of(1, 1)] == 10)
            started = asyncio.get_running_loop().time()
            bench.stop.set()
            await bench.running
            assert asyncio.get_running_loop().time() - started < 2
            assert bench.intake.handed_back == [mine]

    run(scenario())


def test_what_is_still_in_flight_when_time_is_over_isnt_handed_back():
    async def handle(_):
        await asyncio.sleep(60)

    async def scenario():
        async with Bench(handle, drain_timeout=timedelta(milliseconds=50), concurrency=1) as bench:
            bench.intake.deliver([message(1, "a")])
            await asyncio.sleep(0.01)
            bench.intake.deliver([message(1, "b")])
            bench.stop.set()
            with pytest.raises(NotDrainedError):
                await bench.running
            assert bench.intake.handed_back == []
            assert bench.intake.closed

    run(scenario())


@pytest.mark.parametrize("where", ["worker", "reader"])
def test_a_bug_ends_the_process_instead_of_leaving_it_idle(where):
    async def handle(_):
        raise ZeroDivisionError

    async def fails():
        raise ZeroDivisionError

    async def scenario():
        bench = Bench(handle)
        if where == "reader":
            bench.intake.tasks = (asyncio.create_task(fails()),)
        async with bench:
            if where == "worker":
                bench.intake.deliver([message(1, "a")])
            with pytest.raises(ZeroDivisionError):
                await bench.running

    run(scenario())


def test_a_bug_in_the_middle_of_a_drain_is_seen_too():
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handle(_):
        begun.set()
        await go_on.wait()
        raise ZeroDivisionError

    async def scenario():
        async with Bench(handle) as bench:
            bench.intake.deliver([message(1, "a")])
            await begun.wait()
            bench.stop.set()
            await asyncio.sleep(0.1)
            go_on.set()
            with pytest.raises(ZeroDivisionError):
                await bench.running

    run(scenario())
