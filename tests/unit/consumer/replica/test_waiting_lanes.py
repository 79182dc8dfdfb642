"""Lanes that wait for something of their own: the rest of their batch, and of the shard, goes on."""

from __future__ import annotations

import asyncio

import pytest
from consumer_kit import FakeIntake, InThisThread, config, raw
from virtualtime import run

from consumer.errors import SlotsWaitError
from consumer.observability.metrics import Metrics
from consumer.replica.batch import Batch
from consumer.replica.handle import Handled, Handler
from consumer.replica.lifecycle import Replica
from consumer.store.transaction import Outcome, Passed
from shardctl.fleet.keyspace import lane_of
from shardctl.wire.barrier import Barrier


class Seams:
    """Locks, a shard whose slots in `waiting` wait, dead letters and acks, with a diary."""

    def __init__(self, *waiting: int, one_by_one: bool = False) -> None:
        self.waiting, self.one_by_one, self.diary = set(waiting), one_by_one, []

    async def take(self, lanes):
        return frozenset(lanes)

    async def release(self, lanes):
        self.diary.append(("release",))

    def apply(self, deliveries):
        self.diary.append(("try", *(delivery.idempotency_key for delivery in deliveries)))
        waits = sorted({delivery.lane for delivery in deliveries if delivery.slot in self.waiting})
        if waits:
            raise SlotsWaitError("the backend is down", waits[:1] if self.one_by_one else waits)
        return Outcome(applied=len(deliveries))

    def pass_barriers(self, barriers):
        self.diary.append(("pass", *(delivery.slot for delivery in barriers)))
        return Passed(len(barriers))

    async def publish(self, deliveries):
        raise AssertionError

    async def ack(self, deliveries):
        self.diary.append(("ack", *(delivery.idempotency_key for delivery in deliveries)))


def message(slot, ident, barrier=None):
    made = raw("customer", b"{}", "k", slot=slot, ident=ident)
    made.barrier, made.ends_lane = barrier, barrier is not None
    return made


def handle(seams, deliveries, metrics):
    handler = Handler(seams, seams, seams, seams, seams, InThisThread(), metrics, lambda: 1_700_000_001.0)
    return asyncio.run(
        handler.handle(Batch(deliveries, tuple(dict.fromkeys(delivery.lane for delivery in deliveries))))
    )


@pytest.mark.parametrize("one_by_one", [False, True], ids=["at once", "one by one"])
def test_the_rest_of_a_batch_commits_and_the_waiting_lanes_are_kept_whole_and_in_order(one_by_one):
    seams, metrics = Seams(1, 3, one_by_one=one_by_one), Metrics()
    batch = [message(1, "1a"), message(2, "2a"), message(3, "3a"), message(1, "1b"), message(2, "2b")]
    handled = handle(seams, batch, metrics)
    assert [delivery.idempotency_key for delivery in handled.kept if delivery.slot == 1] == ["1a", "1b"]
    assert {delivery.idempotency_key for delivery in handled.kept} == {"1a", "1b", "3a"}
    assert handled.later.lanes == {lane_of(1, 1), lane_of(3, 1)}
    assert seams.diary[-3:] == [("try", "2a", "2b"), ("ack", "2a", "2b"), ("release",)]
    assert metrics.registry.get_sample_value("shardctl_messages_held_total") == 0
    assert metrics.registry.get_sample_value("shardctl_database_up") == 1


def test_a_barrier_behind_a_waiting_write_is_not_passed():
    seams = Seams(1)
    marker = Barrier("r", "s0", 1, "token")
    batch = [message(1, "1a"), message(1, "barrier 1", marker), message(2, "2a"), message(2, "barrier 2", marker)]
    handled = handle(seams, batch, Metrics())
    assert [delivery.idempotency_key for delivery in handled.kept] == ["1a", "barrier 1"]
    assert ("pass", 2) in seams.diary


def test_where_all_of_a_batch_waits_nothing_of_it_is_settled():
    seams, metrics = Seams(1, 2, one_by_one=True), Metrics()
    with pytest.raises(SlotsWaitError):
        handle(seams, [message(1, "1a"), message(2, "2a")], metrics)
    assert not any(what == "ack" for what, *_ in seams.diary)
    assert metrics.registry.get_sample_value("shardctl_database_up") == 1


class Waits:
    """A handler for which slot 1 waits until `well`; `whole` raises for a batch as a whole."""

    def __init__(self, *, whole):
        self.whole, self.well, self.settled, self.tries = whole, False, [], 0

    async def handle(self, batch):
        waits = [delivery for delivery in batch.deliveries if delivery.slot == 1] if not self.well else []
        self.tries += bool(waits)
        later = SlotsWaitError("the backend is down", {delivery.lane for delivery in waits}) if waits else None
        if later and (self.whole or len(waits) == len(batch.deliveries)):
            raise later
        self.settled += [delivery.idempotency_key for delivery in batch.deliveries if delivery not in waits]
        return Handled(waits, later)


@pytest.mark.parametrize("whole", [True, False], ids=["whole batches", "lanes of batches"])
def test_what_waits_alone_pauses_nothing_and_leaves_the_replica_ready(whole):
    async def scenario():
        intake, handler, metrics, stop = FakeIntake(), Waits(whole=whole), Metrics(), asyncio.Event()
        made = config(batch_max_age_ms=0, concurrency=1)
        replica = Replica(
            made, type("S", (), {"check": lambda *_: None})(), intake, handler, metrics, asyncio.get_running_loop().time
        )
        running = asyncio.create_task(replica.run(stop))
        await asyncio.sleep(0)

        async def until(condition):
            for _ in range(5_000):
                if condition():
                    return
                await asyncio.sleep(0.001)
            pytest.fail("it never came true")

        intake.deliver([message(1, "1a"), message(1, "1b")])
        await until(lambda: handler.tries)
        for number in range(20):  # one worker alone: it mustn't sleep meanwhile
            intake.deliver([message(2 + number, f"other {number}")])
            await until(lambda: len(handler.settled) == number + 1)  # noqa: B023
        assert intake.open
        assert replica.why_not_ready is None
        assert metrics.registry.get_sample_value("shardctl_slot_failing_seconds") > 0
        assert metrics.registry.get_sample_value("shardctl_slot_held_seconds") == 0
        assert handler.tries < 10, "it backs off"
        handler.well = True
        await until(lambda: handler.settled[-2:] == ["1a", "1b"])
        assert metrics.registry.get_sample_value("shardctl_slot_failing_seconds") == 0
        stop.set()
        await running

    run(scenario())
