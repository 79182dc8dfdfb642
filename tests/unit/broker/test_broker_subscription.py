"""The core of a subscription: order, leases, shares, faults. Time is a number passed in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from properties import examples

from shardctl.broker.faults import Faults, Injector
from shardctl.broker.message import Message
from shardctl.broker.orderingqueue import Reader, State
from shardctl.broker.settings import Backoff, Settings
from shardctl.broker.subscription import Subscription

ORDERED = Settings(ordering=True)


def reader(**options):
    return Reader(**{"ack_deadline_seconds": 10.0, **options})


def filled(config, keys, now=0.0, faults=None, **options):
    """A subscription with one message for each letter of `keys`, numbered from 1."""
    core = Subscription(1, config, Injector(faults or Faults()), **options)
    for number, key in enumerate(keys, 1):
        core.add(Message(number, now, key.strip(), b"body"), now)
    return core


def attached(core, **options):
    subscriber = reader(**options)
    core.attach(subscriber)
    return subscriber


def numbers(batch):
    return [message.number for _, message, _ in batch]


def ids(batch):
    return [ack_id for ack_id, _, _ in batch]


class TestLeases:
    def test_a_lease_ends_at_its_deadline_and_not_before(self):
        core = filled(Settings(), " ")
        subscriber = attached(core)
        assert numbers(core.take(subscriber, 0.0)) == [1]
        assert not core.take(subscriber, 9.99)
        assert numbers(core.take(subscriber, 10.0)) == [1]
        assert not core.take(subscriber, 10.04)
        core.modify([core.entries[1].ack_id], 10, 10.04)
        assert not core.take(subscriber, 20.03)
        assert numbers(core.take(subscriber, 20.1)) == [1]

    def test_a_longer_deadline_holds_and_an_ack_of_the_old_id_after_redelivery_does_nothing(self):
        core = filled(Settings(), " ")
        subscriber = attached(core)
        [first] = ids(core.take(subscriber, 0.0))
        core.modify([first], 30, 5.0)
        assert not core.take(subscriber, 34.9)
        [second] = ids(core.take(subscriber, 35.0))
        assert core.ack([first], 36.0) == [first]
        assert len(core.entries) == 1
        assert core.ack([second], 36.0) == []
        assert not core.entries

    def test_everything_is_released_by_acks(self):
        core = filled(ORDERED, "aabb  ")
        subscriber = attached(core)
        core.ack(ids(core.take(subscriber, 0.0)), 1.0)
        assert (
            len(core.entries),
            core.outstanding,
            subscriber.outstanding,
            subscriber.outstanding_bytes,
            subscriber.held_lanes,
        ) == (0,) * 5
        assert not core._lanes
        assert not any(core._deadlines._buckets.values())

    def test_back_off_doubles_up_to_its_maximum(self):
        core = filled(Settings(backoff=Backoff(1.0, 3.0)), " ")
        subscriber = attached(core)
        now = 0.0
        for wait in (1.0, 2.0, 3.0, 3.0):
            core.modify(ids(core.take(subscriber, now)), 0, now)
            assert not core.take(subscriber, now + wait - 0.01)
            now += wait
        assert numbers(core.take(subscriber, now)) == [1]

    def test_retention_drops_unacked_messages(self):
        core = filled(ORDERED, "aa ")
        subscriber = attached(core, max_messages=2)
        core.take(subscriber, 0.0)
        core.tick(ORDERED.retention_seconds + 1)
        assert not core.entries
        assert not core._lanes
        assert subscriber.outstanding == 0

    def test_a_key_dropped_with_its_messages_comes_back_clean(self):
        core = filled(ORDERED, "a")
        later = ORDERED.retention_seconds + 1
        core.tick(later)
        assert not core._lanes
        core.add(Message(2, later, "a", b""), later)
        subscriber, other = attached(core), attached(core)
        assert numbers(core.take(subscriber, later)) == [2]
        core.add(Message(3, later, "a", b""), later)
        assert not core.take(other, later)
        assert numbers(core.take(subscriber, later)) == [3]

    def test_a_message_is_buried_after_its_last_attempt(self):
        buried = []
        core = filled(
            Settings(max_attempts=5),
            " ",
            bury=lambda message, attempts, _now: buried.append((message, attempts)) or True,
        )
        subscriber = attached(core)
        attempts = []
        for _ in range(5):
            batch = core.take(subscriber, 0.0)
            attempts += [attempt for _, _, attempt in batch]
            core.modify(ids(batch), 0, 0.0)
        assert attempts == [1, 2, 3, 4, 5]
        assert [(message.number, count) for message, count in buried] == [(1, 5)]
        assert not core.entries

    def test_where_the_dead_letter_topic_is_missing_the_message_stays(self):
        core = filled(Settings(max_attempts=5), " ")
        subscriber = attached(core)
        for _ in range(7):
            core.modify(ids(core.take(subscriber, 0.0)), 0, 0.0)
        assert numbers(core.take(subscriber, 0.0)) == [1]

    def test_a_buried_message_lets_its_key_go_on_without_waiting(self):
        core = filled(Settings(ordering=True, max_attempts=5, backoff=Backoff(1.0, 1.0)), "aa", bury=lambda *_: True)
        subscriber = attached(core)
        for now in range(5):
            batch = core.take(subscriber, float(now))
            assert numbers(batch) == [1, 2]
            core.modify(ids(batch)[:1], 0, float(now))
        assert numbers(core.take(subscriber, 4.0)) == [2]


class TestFlowControl:
    def test_messages(self):
        core = filled(Settings(), " " * 5)
        subscriber = attached(core, max_messages=2)
        first = core.take(subscriber, 0.0)
        assert len(first) == 2
        assert not core.take(subscriber, 0.0)
        core.ack(ids(first)[:1], 0.0)
        assert len(core.take(subscriber, 0.0)) == 1

    def test_bytes_let_one_message_cross(self):
        core = filled(Settings(), " " * 5)
        assert len(core.take(attached(core, max_bytes=5), 0.0)) == 2

    def test_a_batch_is_bounded(self):
        core = filled(ORDERED, "ab" * 10)
        assert len(core.take(attached(core), 0.0, max_messages=7)) == 7


class TestOrder:
    def test_a_key_is_pipelined_to_its_reader_without_waiting_for_acks(self):
        core = filled(ORDERED, "aaa")
        subscriber = attached(core)
        assert numbers(core.take(subscriber, 0.0, max_messages=2)) == [1, 2]
        assert numbers(core.take(subscriber, 0.0)) == [3]

    def test_while_a_key_is_out_nobody_else_gets_it(self):
        core = filled(ORDERED, "aaa")
        subscriber, other = attached(core), attached(core)
        core.take(subscriber, 0.0, max_messages=1)
        assert not core.take(other, 0.0)

    def test_a_nack_brings_later_ones_back_in_order_and_their_ids_are_stale(self):
        core = filled(ORDERED, "aaaa")
        subscriber = attached(core)
        batch = ids(core.take(subscriber, 0.0))
        core.modify(batch[1:2], 0, 0.0)
        assert core.ack(batch[2:], 0.0) == batch[2:]
        assert numbers(core.take(subscriber, 0.0)) == [2, 3, 4]
        assert core.ack(batch[:1], 0.0) == []

    def test_acked_later_ones_come_again_only_on_request(self):
        for replay, expected in ((False, [1, 3]), (True, [1, 2, 3])):
            core = filled(ORDERED, "aaa", faults=Faults(replay_acked=replay))
            subscriber = attached(core)
            batch = ids(core.take(subscriber, 0.0))
            core.ack(batch[1:2], 0.0)
            core.modify(batch[:1], 0, 0.0)
            assert numbers(core.take(subscriber, 0.0)) == expected

    def test_a_closed_readers_key_waits_for_the_lease_to_end(self):
        core = filled(ORDERED, "aaab")
        subscriber = attached(core, max_messages=2)
        assert numbers(core.take(subscriber, 0.0)) == [1, 2]
        core.detach(subscriber)
        other = attached(core)
        assert numbers(core.take(other, 9.0)) == [4]
        assert numbers(core.take(other, 10.0)) == [1, 2, 3]

    def test_a_closed_readers_acks_still_count_and_free_its_key(self):
        core = filled(ORDERED, "aa")
        subscriber = attached(core, max_messages=1)
        batch = core.take(subscriber, 0.0)
        core.detach(subscriber)
        other = attached(core)
        core.ack(ids(batch), 1.0)
        assert numbers(core.take(other, 1.0)) == [2]

    def test_a_pull_holds_its_keys_until_they_are_answered(self):
        core = filled(ORDERED, "aaa")
        first, second = reader(), reader()
        batch = core.take(first, 0.0, max_messages=1)
        core.detach(first)
        assert not core.take(second, 0.0)
        core.ack(ids(batch), 0.0)
        assert numbers(core.take(second, 0.0)) == [2, 3]

    def test_back_off_holds_the_whole_key_and_no_other(self):
        core = filled(Settings(ordering=True, backoff=Backoff(5.0, 5.0)), "aab")
        subscriber = attached(core)
        batch = core.take(subscriber, 0.0)
        assert sorted(numbers(batch)) == [1, 2, 3]
        core.modify([ack_id for ack_id, message, _ in batch if message.number == 1], 0, 0.0)
        assert not core.take(subscriber, 4.9)
        assert numbers(core.take(subscriber, 5.0)) == [1, 2]

    def test_without_ordering_keys_mean_nothing(self):
        core = filled(Settings(), "aa")
        subscriber, other = attached(core), attached(core)
        assert numbers(core.take(subscriber, 0.0)) == [1]
        assert numbers(core.take(other, 0.0)) == [2]


class TestShares:
    def test_keys_are_shared_between_readers(self):
        core = filled(ORDERED, "abcdefgh" * 3)
        subscriber, other = attached(core), attached(core)
        assert len(core.take(subscriber, 0.0)) == len(core.take(other, 0.0)) == 12

    def test_who_can_take_nothing_is_left_out_of_the_share(self):
        core = filled(ORDERED, "abcd")
        subscriber, busy = attached(core), attached(core)
        busy.busy = True
        assert len(core.take(subscriber, 0.0)) == 4

    def test_a_newcomer_gets_keys_as_they_drain(self):
        core = filled(ORDERED, "abcd")
        subscriber = attached(core)
        batch = core.take(subscriber, 0.0)
        other = attached(core)
        for number, key in enumerate("abcd" * 2, 5):
            core.add(Message(number, 0.0, key, b""), 0.0)
        kept = core.take(subscriber, 0.0)
        assert len(kept) == 4, "two keys go on at their reader, two wait to drain"
        core.ack(ids(batch), 0.0)
        assert not core.take(subscriber, 0.0)
        assert len(core.take(other, 0.0)) == 4
        for number, key in enumerate("abcd", 20):
            core.add(Message(number, 0.0, key, b""), 0.0)
        assert len(core.take(subscriber, 0.0)) == len(core.take(other, 0.0)) == 2, (
            "each goes on with its own without waiting"
        )

    def test_a_busy_key_leaves_room_for_others(self):
        core = filled(ORDERED, "a" * 2000 + "b")
        subscriber = attached(core)
        core.take(subscriber, 0.0, max_messages=1)
        assert 2001 in numbers(core.take(subscriber, 0.0))


class TestSeek:
    def test_reset_makes_old_ids_stale_and_keeps_order(self):
        core = filled(ORDERED, "aab")
        subscriber = attached(core)
        batch = core.take(subscriber, 0.0)
        core.reset(core.unacked()[1:], 1.0)
        assert core.ack(ids(batch), 1.0) == ids(batch)
        assert subscriber.outstanding == 0
        assert sorted(numbers(core.take(subscriber, 1.0))) == [2, 3]

    def test_acked_messages_are_kept_only_where_asked(self):
        for retain in (False, True):
            core = filled(Settings(retain_acked=retain), "  ")
            core.ack(ids(core.take(attached(core), 0.0)), 0.0)
            assert len(core.retained) == 2 * retain


class TestFaults:
    def test_duplicates_of_a_key_take_the_delivered_later_ones_along_in_order(self):
        core = filled(ORDERED, "aaa", faults=Faults(duplicate_rate=1.0))
        subscriber = attached(core)
        batch = core.take(subscriber, 0.0)
        core.ack(ids(batch)[:1], 0.0)
        assert numbers(core.take(subscriber, 0.0)) == [1, 2, 3]

    def test_the_same_seed_gives_the_same_duplicates(self):
        def run(seed):
            core = filled(Settings(), " " * 50, faults=Faults(seed=seed, duplicate_rate=0.3))
            subscriber = attached(core)
            seen = []
            while batch := core.take(subscriber, 0.0):
                seen += numbers(batch)
                core.ack(ids(batch), 0.0)
            return seen

        assert run(1) == run(1) != run(2)
        assert set(run(1)) == set(range(1, 51))

    def test_a_dropped_ack_lets_the_lease_end(self):
        core = filled(Settings(), " ", faults=Faults(drop_ack_rate=1.0))
        subscriber = attached(core)
        assert core.ack(ids(core.take(subscriber, 0.0)), 1.0) == []
        assert numbers(core.take(subscriber, 10.0)) == [1]

    def test_an_early_end_of_a_lease_brings_the_message_while_its_reader_works(self):
        core = filled(Settings(), " ", faults=Faults(early_expiry_rate=1.0))
        subscriber = attached(core)
        core.take(subscriber, 0.0)
        assert numbers(core.take(subscriber, 0.6)) == [1]

    def test_a_delay_keeps_the_keys_order(self):
        core = filled(ORDERED, "a" * 20, faults=Faults(delay_rate=0.5, delay_seconds=5.0))
        subscriber = attached(core)
        seen = []
        for now in range(8):
            seen += numbers(core.take(subscriber, float(now)))
        assert seen == list(range(1, 21))

    def test_exactly_once_subscriptions_get_no_injected_duplicates(self):
        faults = Faults(duplicate_rate=1.0, early_expiry_rate=1.0, replay_acked=True)
        core = filled(Settings(exactly_once=True), " ", faults=faults)
        subscriber = attached(core)
        batch = core.take(subscriber, 0.0)
        assert not core.take(subscriber, 5.0)
        core.ack(ids(batch), 5.0)
        assert not core.entries


class Schedules(RuleBasedStateMachine):
    """Any schedule of publishing, taking, acking, nacking, expiring, opening and closing readers keeps the order."""

    faults = Faults()

    @initialize(
        backoff=st.sampled_from([None, Backoff(0.5, 4.0)]), attempts=st.sampled_from([0, 5]), keyless=st.booleans()
    )
    def start(self, backoff, attempts, keyless):
        self.now = 1000.0
        self.buried = set()
        self.core = Subscription(
            1,
            Settings(ordering=True, backoff=backoff, max_attempts=attempts),
            Injector(self.faults),
            bury=lambda message, _attempts, _now: self.buried.add(message.number) or True,
        )
        self.keys = "abc " if keyless else "abc"
        self.readers = []
        self.published = {}
        self.seen = set()
        self.acked = set()
        self.last_reader = {}
        self.given = []
        self.open_reader(limit=0)

    @rule(key=st.integers(0, 3), count=st.integers(1, 4))
    def publish(self, key, count):
        for _ in range(count):
            number = len(self.published) + 1
            self.published[number] = self.keys[key % len(self.keys)].strip()
            self.core.add(Message(number, self.now, self.published[number], b"x"), self.now)

    @rule(limit=st.sampled_from([0, 1, 3]))
    @precondition(lambda self: len(self.readers) < 3)
    def open_reader(self, limit):
        self.readers.append(attached(self.core, max_messages=limit))

    @rule(pick=st.integers(0, 2))
    @precondition(lambda self: self.readers)
    def close_reader(self, pick):
        self.core.detach(self.readers.pop(pick % len(self.readers)))

    @rule(pick=st.integers(0, 2), size=st.integers(1, 6))
    @precondition(lambda self: self.readers)
    def take(self, pick, size):
        self.record(self.readers[pick % len(self.readers)], size)

    @rule(size=st.integers(1, 4))
    def pull(self, size):
        subscriber = reader()
        self.record(subscriber, size)
        self.core.detach(subscriber)

    def record(self, who, size):
        batch = self.core.take(who, self.now, max_messages=size)
        for ack_id, message, _ in batch:
            number, key = message.number, message.key
            if not self.faults.duplicate_rate and not self.faults.replay_acked:
                assert number not in self.acked, "an acked message came again"
            if key:
                self.check_order(number, key, who)
            self.seen.add(number)
            self.acked.discard(number)
            self.last_reader[number] = who
            self.given.append((ack_id, number))
        return batch

    def check_order(self, number, key, who):
        older = [n for n, k in self.published.items() if k == key and n < number and n not in self.buried]
        assert self.seen.issuperset(older), "a first delivery overtook an older one"
        for earlier in older:
            if earlier in self.core.entries:
                assert self.core.entries[earlier].state is State.LEASED, "delivered ahead of one that waits"
                assert self.last_reader[earlier] is who, "an older unacked message is out at another reader"

    @rule(picks=st.lists(st.integers(0, 50), max_size=5))
    def ack(self, picks):
        chosen = [self.given[-1 - pick] for pick in picks if pick < len(self.given)]
        stale = set(self.core.ack([ack_id for ack_id, _ in chosen], self.now))
        self.acked |= {number for ack_id, number in chosen if ack_id not in stale}

    @rule(picks=st.lists(st.integers(0, 50), max_size=3), seconds=st.sampled_from([0, 0, 1, 30]))
    def modify(self, picks, seconds):
        self.core.modify([self.given[-1 - pick][0] for pick in picks if pick < len(self.given)], seconds, self.now)

    @rule(seconds=st.sampled_from([0.1, 0.5, 3.0, 11.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    @precondition(lambda self: self.published)
    def seek(self):
        if not self.faults.replay_acked:
            self.core.reset(self.core.unacked(), self.now)

    @invariant()
    def counts_add_up(self):
        if not hasattr(self, "core"):
            return
        leased = [entry for entry in self.core.entries.values() if entry.state is State.LEASED]
        assert len(leased) == self.core.outstanding
        for present in self.readers:
            assert present.outstanding == sum(entry.reader is present for entry in leased)
            assert present.held_lanes == sum(lane.reader is present for lane in self.core._lanes.values())
        assert all(lane.queue or lane.out for lane in self.core._lanes.values())

    def teardown(self):
        """Whatever happened, nothing is stuck: two fresh readers in turn get all that is left."""
        if not hasattr(self, "core"):
            return
        while self.readers:
            self.core.detach(self.readers.pop())
        self.core.injector.set(Faults())
        other = [attached(self.core), attached(self.core)]
        for turn in range(400):
            if not self.core.entries:
                break
            self.now += 1.0
            batch = self.record(other[turn % 2], 1000)
            assert not self.core.ack(ids(batch), self.now)
        assert not self.core.entries
        assert not self.core._lanes
        assert self.seen | self.buried == set(self.published)


class FaultySchedules(Schedules):
    faults = Faults(
        seed=3, duplicate_rate=0.3, early_expiry_rate=0.2, replay_acked=True, delay_rate=0.2, reorder_rate=0.5
    )


class TestSchedules(Schedules.TestCase):
    settings = examples(1.2, stateful_step_count=40)


class TestFaultySchedules(FaultySchedules.TestCase):
    settings = examples(0.8, stateful_step_count=40)


@given(st.lists(st.sampled_from("abcdefgh "), max_size=60), st.integers(1, 4))
def test_whichever_reader_takes_everything_is_delivered_once(keys, count):
    core = filled(ORDERED, keys)
    readers = [attached(core) for _ in range(count)]
    seen = []
    for _ in range(3):
        for taker in readers:
            seen += numbers(core.take(taker, 0.0))
    assert sorted(seen) == list(range(1, len(keys) + 1))


def test_unknown_faults_and_rates_are_refused():
    with pytest.raises(Exception, match="No such fault: duplicates"):
        Faults.from_mapping({"duplicates": 1})
    with pytest.raises(Exception, match="between 0 and 1"):
        Faults(duplicate_rate=5)
