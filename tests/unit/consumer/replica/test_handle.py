"""The path of one batch, with fakes at every seam: what happens in which order, and what is never acked."""

from __future__ import annotations

import asyncio

import pytest
from consumer_kit import InThisThread, raw

from consumer.delivery import NO_SLOT
from consumer.errors import PermanentError, TransientError
from consumer.observability.metrics import Metrics
from consumer.replica.batch import Batch
from consumer.replica.handle import Handler
from consumer.store.transaction import Outcome, Passed
from shardctl.fleet.keyspace import slot_of_lane
from shardctl.wire.barrier import Barrier


class Seams:
    """Locks, shard, dead letters and acks in one, with a diary."""

    def __init__(self, *, locked_elsewhere=(), held_slots=(), poison=(), failures=(), again=(), awaits=True):
        self.diary, self.again, self.awaits = [], set(again), awaits
        self.locked_elsewhere, self.held = set(locked_elsewhere), set(held_slots)
        self.poison, self.failures = list(poison), set(failures)

    def _note(self, what, *about):
        self.diary.append((what, *about))
        if what in self.failures:
            raise TransientError(what)

    async def take(self, slots):
        self._note("lock", *map(slot_of_lane, slots))
        return frozenset(lane for lane in slots if slot_of_lane(lane) not in self.locked_elsewhere)

    async def release(self, slots):
        self._note("release", *sorted(map(slot_of_lane, slots)))

    def apply(self, deliveries):
        self._note("commit", *[delivery.idempotency_key for delivery in deliveries])
        if self.poison and (at_fault := tuple(delivery for delivery in deliveries if delivery in self.poison[0])):
            self.poison.pop(0)
            for delivery in at_fault:
                delivery.fault = PermanentError("constraint", "…")
            return Outcome(poison=at_fault)
        unset = [
            delivery for delivery in deliveries if delivery.fault and not (delivery.parks or delivery.dead_lettered)
        ]
        if at_fault := tuple(delivery for delivery in unset if delivery.slot not in self.held):
            return Outcome(poison=at_fault)
        if "late commit" in self.failures:
            raise TransientError("late commit")
        kept = tuple(delivery for delivery in deliveries if delivery.slot in self.held)
        again = tuple(delivery for delivery in deliveries if delivery.slot in self.again)
        return Outcome(applied=len(deliveries) - len(kept) - len(again), held=kept, again=again)

    def pass_barriers(self, barriers):
        self._note("pass", *[delivery.slot for delivery in barriers])
        if self.awaits:
            return Passed(len(barriers))
        return Passed(0, tuple(barriers))

    async def publish(self, deliveries):
        self._note("dead-letter", *[delivery.idempotency_key for delivery in deliveries])

    async def ack(self, deliveries):
        self._note("ack", *[delivery.idempotency_key for delivery in deliveries])


class Again:
    def __init__(self, seams):
        self.seams = seams

    async def publish(self, deliveries):
        self.seams._note("publish again", *[delivery.idempotency_key for delivery in deliveries])


def messages(*slots):
    return [raw("customer", b"{}", "k", slot=slot, ident=f"{slot}/{number}") for number, slot in enumerate(slots)]


def batch_of(deliveries):
    return Batch(list(deliveries), tuple(dict.fromkeys(delivery.lane for delivery in deliveries)))


def handle(seams, *batches, metrics=None):
    handler = Handler(
        seams, seams, seams, Again(seams), seams, InThisThread(), metrics or Metrics(), lambda: 1_700_000_001.0
    )

    async def all_of_them():
        return [await handler.handle(batch_of(batch)) for batch in batches]

    return asyncio.run(all_of_them())


def test_lock_commit_ack_release_in_that_order():
    seams = Seams()
    handle(seams, messages(1, 2, 1))
    assert seams.diary == [
        ("lock", 1, 2),
        ("commit", "1/0", "2/1", "1/2"),
        ("ack", "1/0", "2/1", "1/2"),
        ("release", 1, 2),
    ]


def test_nothing_is_acked_where_the_commit_fails_and_the_locks_are_given_up():
    seams = Seams(failures={"commit"})
    with pytest.raises(TransientError):
        handle(seams, messages(1))
    assert [what for what, *_ in seams.diary] == ["lock", "commit", "release"]


@pytest.mark.slow
def test_slots_locked_elsewhere_are_kept_and_never_acked():
    seams = Seams(locked_elsewhere={2})
    batch = messages(1, 2, 1, 2)
    [handled] = handle(seams, batch)
    assert list(handled.kept) == [batch[1], batch[3]]
    assert ("ack", "1/0", "1/2") in seams.diary
    assert ("release", 1) in seams.diary


def test_slots_not_active_here_are_kept_and_never_acked():
    seams = Seams(held_slots={2})
    batch = messages(1, 2)
    [handled] = handle(seams, batch)
    assert list(handled.kept) == [batch[1]]
    assert ("ack", "1/0") in seams.diary


def test_poison_is_dead_lettered_before_anything_behind_it_commits():
    batch = messages(1, 1, 1)
    seams = Seams(poison=[[batch[1]], [batch[2]]])
    handle(seams, batch)
    assert [what for what, *_ in seams.diary] == [
        "lock", "commit", "dead-letter", "commit", "dead-letter", "commit", "ack", "release",
    ]  # fmt: skip


def barrier(slot, *, ends_lane=True):
    [made] = messages(slot)
    made.barrier, made.ends_lane, made.idempotency_key = Barrier("r1", "s0", 1, "token"), ends_lane, f"barrier {slot}"
    return made


def test_a_barrier_is_passed_after_the_commit_of_what_came_before_and_then_acked():
    seams = Seams()
    handle(seams, [*messages(1, 2), barrier(1)])
    assert seams.diary[1:4] == [
        ("commit", "1/0", "2/1"), ("pass", 1), ("ack", "1/0", "2/1", "barrier 1"),
    ]  # fmt: skip


def test_a_barrier_behind_what_is_held_waits_with_it():
    seams = Seams(held_slots={1})
    batch = [*messages(1, 2), barrier(1)]
    [handled] = handle(seams, batch)
    assert list(handled.kept) == [batch[0], batch[2]]
    assert "pass" not in [what for what, *_ in seams.diary]


def test_a_barrier_isnt_acked_where_it_couldnt_be_passed():
    seams = Seams(failures={"pass"})
    with pytest.raises(TransientError):
        handle(seams, [barrier(1)])
    assert "ack" not in [what for what, *_ in seams.diary]


def test_a_barrier_that_isnt_meant_for_this_lane_is_acked_alone():
    seams = Seams()
    handle(seams, [barrier(1, ends_lane=False)])
    assert [what for what, *_ in seams.diary] == ["lock", "ack", "release"]


def test_barriers_that_nobody_awaits_are_acked_counted_and_reported_once_a_minute(caplog):
    seams, metrics, now = Seams(awaits=False), Metrics(), [1_000.0]
    handler = Handler(seams, seams, seams, Again(seams), seams, InThisThread(), metrics, lambda: now[0])

    def meet():
        asyncio.run(handler.handle(batch_of([barrier(1), barrier(2)])))
        return [record for record in caplog.records if record.__dict__.get("action") == "barrier_refused"]

    assert len(meet()) == 1
    now[0] += 59
    assert len(meet()) == 1
    now[0] += 1
    assert len(meet()) == 2
    assert ("ack", "barrier 1", "barrier 2") in seams.diary
    assert metrics.registry.get_sample_value("shardctl_barriers_refused_total") == 6
    assert metrics.registry.get_sample_value("shardctl_barriers_passed_total") == 0


def test_what_was_overtaken_by_its_barrier_is_published_again_before_it_is_acked():
    seams = Seams(again={2})
    handle(seams, messages(1, 2))
    assert [what for what, *_ in seams.diary] == ["lock", "commit", "publish again", "ack", "release"]


def test_what_cant_be_published_again_isnt_acked():
    seams = Seams(again={2}, failures={"publish again"})
    with pytest.raises(TransientError):
        handle(seams, messages(2))
    assert "ack" not in [what for what, *_ in seams.diary]


def test_poison_isnt_acked_where_it_couldnt_be_dead_lettered():
    batch = messages(1)
    seams = Seams(poison=[batch], failures={"dead-letter"})
    with pytest.raises(TransientError):
        handle(seams, batch)
    assert "ack" not in [what for what, *_ in seams.diary]


def test_a_message_without_a_slot_is_dead_lettered_and_acked_without_locks_or_database():
    [message] = messages(NO_SLOT)
    message.fault = PermanentError("bad_slot", "…")
    seams = Seams()
    handle(seams, [message])
    assert [what for what, *_ in seams.diary] == ["lock", "dead-letter", "ack", "release"]


@pytest.mark.parametrize(
    ("trouble", "times"),
    [
        pytest.param({"failures": {"late commit"}}, 1, id="database down"),
        pytest.param({"held_slots": {1}}, 0, id="not ours"),  # its owner sets it aside
    ],
)
def test_a_message_tried_again_and_again_is_dead_lettered_once(trouble, times):
    """The dead-letter topic must not fill up at the rate of the retries."""
    [message] = messages(1)
    message.fault = PermanentError("bad_json", "…")
    seams, metrics = Seams(**trouble), Metrics()
    for _ in range(5):
        try:
            handle(seams, [message], metrics=metrics)
        except TransientError:
            continue
    assert seams.diary.count(("dead-letter", "1/0")) == times
    counted = metrics.registry.get_sample_value("shardctl_messages_dead_lettered_total", {"reason": "bad_json"})
    assert (counted or 0) == times


class Pace:
    def __init__(self, *, stopped=False):
        self.stopped, self.taken = stopped, []

    async def take(self, writes):
        self.taken.append(writes)
        return not self.stopped

    async def give_back(self, writes):
        self.taken.append(-writes)


class Marks:
    """Every redelivered message is marked as done."""

    def __init__(self):
        self.marked = []

    async def probably_done(self, deliveries):
        return [delivery for delivery in deliveries if delivery.attempt > 1]

    async def mark(self, deliveries):
        self.marked += [delivery.idempotency_key for delivery in deliveries]


def paced(seams, batch, pace, recent=None):
    handler = Handler(seams, seams, seams, Again(seams), seams, InThisThread(), Metrics(), recent=recent, pace=pace)
    return asyncio.run(handler.handle(batch_of(batch)))


def test_the_turn_comes_before_the_locks_and_what_is_locked_elsewhere_gives_its_turn_back():
    pace = Pace()
    paced(Seams(locked_elsewhere={2}), messages(1, 2, 1), pace)
    assert pace.taken == [3, -1]


def test_stopped_before_its_turn_a_batch_is_kept_untouched_but_for_what_is_done():
    batch = messages(1, 2)
    batch[0].attempt = 2
    seams = Seams()
    seams.known = set
    assert list(paced(seams, batch, Pace(stopped=True), Marks()).kept) == [batch[1]]
    assert seams.diary == [("ack", "1/0")]


def test_a_batch_of_which_all_is_done_takes_no_turn_and_no_lock():
    batch = messages(1, 1)
    for delivery in batch:
        delivery.attempt = 2
    seams, pace, marks = Seams(), Pace(), Marks()
    seams.known = set
    paced(seams, batch, pace, marks)
    assert pace.taken == []
    assert ("ack", *sorted(delivery.idempotency_key for delivery in batch)) in [
        (what, *sorted(keys)) for what, *keys in seams.diary
    ]
    assert "commit" not in [what for what, *_ in seams.diary]


def test_what_is_settled_is_marked_once_the_locks_are_given_up():
    seams, marks = Seams(held_slots={2}), Marks()
    seams.known = set
    handler = Handler(seams, seams, seams, Again(seams), seams, InThisThread(), Metrics(), recent=marks)
    asyncio.run(handler.handle(batch_of(messages(1, 2))))
    assert marks.marked == ["1/0"]


def test_counts():
    batch = messages(1, 2)
    batch[0].fault = PermanentError("bad_json", "…")
    metrics = Metrics()
    handle(Seams(held_slots={2}), batch, metrics=metrics)
    value = metrics.registry.get_sample_value
    assert value("shardctl_messages_applied_total") == 1
    assert value("shardctl_messages_held_total") == 1
    assert value("shardctl_messages_dead_lettered_total", {"reason": "bad_json"}) == 1
    assert value("shardctl_publish_to_commit_seconds_sum") == pytest.approx(0.876544)
    assert value("shardctl_database_up") == 1


def test_the_database_is_reported_down_while_it_doesnt_answer():
    metrics = Metrics()
    with pytest.raises(TransientError):
        handle(Seams(failures={"commit"}), messages(1), metrics=metrics)
    assert metrics.registry.get_sample_value("shardctl_database_up") == 0
