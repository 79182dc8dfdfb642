"""The batcher: order, bounds, pauses, and that nothing is lost, whatever the schedule."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from properties import examples

from consumer.delivery import Delivery
from consumer.replica.batch import Batcher
from shardctl.wire.barrier import Barrier


def delivery(number: int, slot: int, size: int = 10) -> Delivery:
    return Delivery(str(number), "", None, str(number), 0, size, 0.0, slot, lane=slot)


def numbers(batch):
    return [int(delivery.message_id) for delivery in batch.deliveries]


class AnySchedule(RuleBasedStateMachine):
    """Random calls against a model: per slot a list of what is neither done nor handed back."""

    batches = Bundle("batches")

    @initialize(max_rows=st.integers(1, 6), max_bytes=st.integers(1, 60), pause=st.sampled_from([0.0, 1.0, 5.0]))
    def start(self, max_rows, max_bytes, pause):
        self.batcher = Batcher(max_rows, max_bytes, pause)
        self.max_rows, self.max_bytes = max_rows, max_bytes
        self.now = 0.0
        self.count = 0
        self.waiting = defaultdict(list)  # slot -> deliveries not in flight, in order
        self.in_hand = {}  # slot -> deliveries of the batch that is out
        self.not_before = {}

    @rule(slots=st.lists(st.tuples(st.integers(-1, 4), st.integers(1, 25)), min_size=1, max_size=8))
    def add(self, slots):
        made = []
        for slot, size in slots:
            self.count += 1
            made.append(delivery(self.count, slot, size))
            self.waiting[slot].append(made[-1])
        self.batcher.add(made)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 7.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def wait_until_due(self):
        """A worker that sleeps until `due_at` gets a batch: no busy loop, no oversleeping."""
        due = self.batcher.due_at(self.now)
        if due is None:
            assert self.batcher._trying or not any(
                self.waiting[slot] for slot in self.waiting if slot not in self.in_hand
            )
            return
        assert due >= self.now
        self.now = due
        batch = self.batcher.take(self.now)
        assert batch is not None
        self._took(batch)
        self.batcher.back(batch, batch.deliveries, self.now)
        self._put_back(batch, batch.deliveries, self.now)

    @rule(target=batches)
    def take(self):
        batch = self.batcher.take(self.now)
        if batch is None:
            due = self.batcher.due_at(self.now)
            assert due is None or due > self.now
            return multiple()
        self._took(batch)
        return batch

    def _took(self, batch):
        assert batch.deliveries
        assert len(batch.deliveries) <= self.max_rows
        assert sum(delivery.size for delivery in batch.deliveries[:-1]) < self.max_bytes
        assert len(set(batch.lanes)) == len(batch.lanes)
        by_slot = defaultdict(list)
        for delivery in batch.deliveries:
            by_slot[delivery.slot].append(delivery)
        assert set(by_slot) == set(batch.lanes)
        for slot, taken in by_slot.items():
            assert slot not in self.in_hand
            assert self.not_before.get(slot, 0.0) <= self.now
            assert taken == self.waiting[slot][: len(taken)]
            del self.waiting[slot][: len(taken)]
            self.in_hand[slot] = taken
            self.not_before.pop(slot, None)

    @rule(batch=consumes(batches))
    def done(self, batch):
        self.batcher.done(batch)
        for slot in batch.lanes:
            del self.in_hand[slot]

    @rule(batch=consumes(batches), kept=st.sets(st.integers(-1, 4)), wait=st.sampled_from([0.0, 1.0, 3.0]))
    def back(self, batch, kept, wait):
        unsettled = [delivery for delivery in batch.deliveries if delivery.slot in kept]
        self.batcher.back(batch, unsettled, self.now + wait)
        self._put_back(batch, unsettled, self.now + wait)

    @rule(batch=consumes(batches), wait=st.sampled_from([0.0, 1.0, 3.0]))
    def split(self, batch, wait):
        self.batcher.split(batch, self.now + wait)
        self._put_back(batch, batch.deliveries, self.now + wait)

    def _put_back(self, batch, unsettled, not_before):
        for slot in batch.lanes:
            del self.in_hand[slot]
            mine = [delivery for delivery in unsettled if delivery.slot == slot]
            if mine:
                self.waiting[slot][:0] = mine
                self.not_before[slot] = not_before

    @rule()
    def drain(self):
        left = self.batcher.drain()
        assert sorted(map(id, left)) == sorted(id(delivery) for queue in self.waiting.values() for delivery in queue)
        by_slot = defaultdict(list)
        for delivery in left:
            by_slot[delivery.slot].append(delivery)
        assert all(queue == self.waiting[slot] for slot, queue in by_slot.items())
        self.waiting.clear()
        self.not_before.clear()

    @invariant()
    def counts_hold(self):
        if hasattr(self, "batcher"):
            free = self.batcher._free.values()
            assert self.batcher._free_rows == sum(len(queue.deliveries) for queue in free)
            assert self.batcher._free_bytes == sum(queue.bytes for queue in free)

    def teardown(self):
        """Everything that was added comes out once, in the end."""
        if not hasattr(self, "batcher"):
            return
        self.batcher._trying = False  # of a batch that nobody gives back any more
        for _ in range(1 + sum(map(len, self.waiting.values()))):
            self.now += 100.0
            if batch := self.batcher.take(self.now):
                self._took(batch)
                self.done(batch)
        assert not any(queue for slot, queue in self.waiting.items() if slot not in self.in_hand)


TestAnySchedule = AnySchedule.TestCase
TestAnySchedule.settings = examples(1.5, stateful_step_count=30)


def test_a_lone_write_waits_for_nothing_and_what_follows_shares_a_batch():
    batcher = Batcher(10, 1000, 5.0)
    batcher.add([delivery(1, 1)])
    assert numbers(batcher.take(0.0)) == [1]
    batcher.add([delivery(2, 2)])
    batcher.add([delivery(3, 3)])
    assert batcher.take(1.9) is None
    assert batcher.due_at(1.9) == 2.0
    assert numbers(batcher.take(2.0)) == [2, 3]
    batcher.add([delivery(4, 4)])
    assert batcher.due_at(60.0) == 60.0
    assert numbers(batcher.take(60.0)) == [4]


@pytest.mark.parametrize(("messages", "pause"), [pytest.param(1, 2.0, id="lone"), pytest.param(2, 5.0, id="several")])
def test_a_batch_waits_longer_behind_one_of_several_messages(messages, pause):
    batcher = Batcher(10, 1000, 5.0)
    batcher.add([delivery(number, number) for number in range(messages)])
    batcher.take(1.0)
    batcher.add([delivery(10, 10)])
    assert batcher.due_at(1.0) == 1.0 + pause
    assert [batcher.pause_left(moment) for moment in (1.0, 1.0 + pause, 60.0)] == [pause, 0.0, 0.0]
    batcher.add([delivery(number, number) for number in range(20, 30)])
    assert batcher.pause_left(1.0) == 0.0


@pytest.mark.parametrize(
    ("max_rows", "max_bytes"), [pytest.param(3, 1000, id="rows"), pytest.param(100, 25, id="bytes")]
)
def test_a_full_batch_leaves_at_once(max_rows, max_bytes):
    batcher = Batcher(max_rows, max_bytes, 60.0)
    batcher.add([delivery(number, number) for number in range(7)])
    assert numbers(batcher.take(0.0)) == [0, 1, 2]
    assert numbers(batcher.take(0.0)) == [3, 4, 5]
    assert batcher.take(0.0) is None


def test_a_message_over_the_byte_bound_still_leaves():
    batcher = Batcher(10, 5, 0.0)
    batcher.add([delivery(1, 1, size=1_000_000)])
    assert numbers(batcher.take(0.0)) == [1]


def test_slots_that_wait_to_be_tried_again_dont_make_others_leave_early():
    """One slot that is held for minutes must not cost every other slot its batching."""
    batcher = Batcher(2, 1000, 5.0)
    batcher.add([delivery(1, 1), delivery(2, 1)])
    waiting_batch = batcher.take(0.0)
    batcher.back(waiting_batch, waiting_batch.deliveries, 100.0)
    batcher.add([delivery(3, 2)])
    assert batcher.take(4.0) is None
    assert batcher.due_at(4.0) == 5.0


def test_a_hot_slot_starves_nobody():
    batcher = Batcher(2, 1000, 0.0)
    batcher.add([delivery(number, 1) for number in range(100)])
    batcher.add([delivery(100, 2), delivery(101, 3)])
    seen = []
    for _ in range(3):
        batch = batcher.take(0.0)
        seen += numbers(batch)
        batcher.done(batch)
    assert {100, 101} <= set(seen)


def split_of(batcher, count):
    """A batch of so many slots, a message each, that was blocked."""
    batcher.add([delivery(number, number) for number in range(count)])
    batcher.split(batcher.take(0.0), 0.0)


def test_a_blocked_batch_comes_back_in_parts_and_its_blocked_part_slot_by_slot():
    batcher = Batcher(1_000, 1_000_000, 0.0)
    split_of(batcher, 24)
    parts = [batcher.take(0.0)]
    assert numbers(parts[0]) == [0, 1, 2]
    batcher.split(parts[0], 0.0)
    while batch := batcher.take(0.0):
        parts.append(batch)
        batcher.done(batch)
    assert [numbers(part) for part in parts[1:8]] == [[first, first + 1, first + 2] for first in range(3, 24, 3)]
    assert [numbers(part) for part in parts[8:]] == [[0], [1], [2]]


def test_a_slot_that_waits_alone_takes_nobody_with_it():
    batcher = Batcher(1_000, 1_000_000, 0.0)
    split_of(batcher, 1)
    batcher.add([delivery(5, 5), delivery(6, 0)])
    assert [numbers(batcher.take(0.0)), numbers(batcher.take(0.0))] == [[0, 6], [5]]


def test_what_is_blocked_takes_one_worker_at_most():
    batcher = Batcher(1_000, 1_000_000, 0.0)
    split_of(batcher, 50)
    part = batcher.take(0.0)
    assert batcher.take(0.0) is None
    assert batcher.due_at(0.0) is None
    batcher.add([delivery(100, 100)])
    assert numbers(batcher.take(0.0)) == [100]
    batcher.split(part, 0.0)
    assert batcher.due_at(0.0) == 0.0


def test_with_one_worker_too_what_is_free_gets_every_other_turn():
    batcher = Batcher(1, 1_000_000, 0.0)
    split_of(batcher, 1)
    batcher.add([delivery(number, number) for number in range(10, 14)])
    turns = []
    for _ in range(6):
        batch = batcher.take(0.0)
        turns += numbers(batch)
        if batch.of_suspects:
            batcher.split(batch, 0.0)
        else:
            batcher.done(batch)
    assert turns == [0, 10, 0, 11, 0, 12]


def test_a_slot_that_got_through_is_like_any_other():
    batcher = Batcher(1_000, 1_000_000, 0.0)
    split_of(batcher, 2)
    for _ in range(2):
        batcher.done(batcher.take(0.0))
    batcher.add([delivery(number, number) for number in range(4)])
    batch = batcher.take(0.0)
    assert numbers(batch) == [0, 1, 2, 3]
    assert batch.lock_seconds is None


def test_a_slot_that_is_held_back_is_not_blocked():
    """Its messages may wait for minutes, until the slot has moved. Else no other batch would wait for a lock meanwhile."""
    batcher = Batcher(1_000, 1_000_000, 0.0)
    split_of(batcher, 1)
    batch = batcher.take(0.0)
    batcher.back(batch, batch.deliveries, 1.0)
    batcher.add([delivery(5, 5)])
    assert batcher.take(0.0).lock_seconds is None
    again = batcher.take(1.0)
    assert (numbers(again), again.of_suspects, again.lock_seconds) == ([0], False, None)


def test_a_slot_that_failed_with_everything_else_may_still_be_blocked():
    batcher = Batcher(1_000, 1_000_000, 0.0)
    split_of(batcher, 1)
    batcher.back_whole(batcher.take(0.0), 1.0)
    batcher.add([delivery(5, 5)])
    assert batcher.take(0.0).lock_seconds == 0.5
    assert batcher.take(1.0).of_suspects


def test_while_something_is_blocked_nobody_waits_long_for_a_lock():
    """Else the next rows of a forgotten transaction would take every worker, each for as long as a statement may last."""
    batcher = Batcher(1_000, 1_000_000, 0.0)
    split_of(batcher, 1)
    waits = []
    for _ in range(8):
        batch = batcher.take(0.0)
        waits.append(batch.lock_seconds)
        batcher.split(batch, 0.0)
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    batcher.take(0.0)
    batcher.add([delivery(5, 5)])
    assert batcher.take(0.0).lock_seconds == 0.5


def test_what_comes_for_a_slot_in_flight_waits_and_follows():
    batcher = Batcher(10, 1000, 0.0)
    batcher.add([delivery(1, 1)])
    first = batcher.take(0.0)
    batcher.add([delivery(2, 1)])
    assert batcher.take(9.0) is None
    assert batcher.due_at(9.0) is None
    batcher.back(first, first.deliveries, 9.0)
    assert numbers(batcher.take(9.0)) == [1, 2]


def test_a_barrier_ends_its_lanes_part_of_a_batch():
    """What comes behind it must not commit with what came before: another generation's lane may have begun by then."""
    batcher = Batcher(10, 1000, 0.0)
    barrier = delivery(2, 1)
    barrier.barrier = Barrier("r1", "s0", 1, "token")
    batcher.add([delivery(1, 1), barrier, delivery(3, 1), delivery(4, 2)])
    batch = batcher.take(0.0)
    assert numbers(batch) == [1, 2, 4]
    batcher.done(batch)
    assert numbers(batcher.take(0.0)) == [3]


def test_a_barrier_waits_for_no_pause():
    """Until it is met, nobody may write to its slot."""
    batcher = Batcher(10, 1000, 5.0)
    batcher.add([delivery(1, 1), delivery(2, 2)])
    batcher.take(0.0)
    barrier = delivery(4, 3)
    barrier.barrier = Barrier("r1", "s0", 1, "token")
    batcher.add([delivery(3, 3)])
    assert batcher.take(1.0) is None
    batcher.add([barrier])
    assert batcher.due_at(1.0) == 1.0
    assert numbers(batcher.take(1.0)) == [3, 4]


@pytest.mark.slow
def test_no_call_looks_at_every_slot():
    """65,536 slots wait; a thousand looks at the clock touch none of them."""
    batcher = Batcher(1_000_000, 1 << 40, 60.0)
    batcher.add([delivery(65_536, 65_536)])
    batcher.take(0.0)
    batcher.add([delivery(slot, slot) for slot in range(65_536)])
    for _ in range(1_000):
        assert batcher.take(1.0) is None
        assert batcher.due_at(1.0) == 24.0
    assert len(batcher.take(60.0).lanes) == 65_536
