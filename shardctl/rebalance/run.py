"""Handing every slot of a transitional file over to the lane that is to have it, step by step.

One step looks at where each slot stands and does whatever can be done next:
0. slots that move are copied while their writes go on, and brought up to date until little is left (`preparing`);
1. waiting slots become due, a few in advance: from then on the new side holds what comes;
2. the database of the old side records that it awaits each one's barrier, and by which token to recognize it;
3. a second after 1 the barrier is published, and again while it isn't met;
4. the old side meets it and gives up the slot. One that stays in its database is the new generation's in the same transaction;
5. of one that moves, what its copy lacks is brought over and checked, and the new side gets it, in one transaction.

Nothing is remembered but the times: a run that was killed anywhere, or several at once, find out by looking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from shardctl.errors import ShardctlError
from shardctl.fleet.spec import Fleet
from shardctl.outbox.queue import NotDrainedError
from shardctl.rebalance import journal
from shardctl.rebalance.bases import BaseError, Bases
from shardctl.rebalance.copying import Copy, Inline, Pool, hand_over
from shardctl.rebalance.handover import HandOver, Place, Stage, Standing
from shardctl.rebalance.preparing import Preparing
from shardctl.rebalance.stats import Stats
from shardctl.rebalance.tracker import InFlight, Tracker, stays
from shardctl.rebalance.window import AimdWindow
from shardctl.shard import lanes
from shardctl.shard.database import DatabaseError, is_transient, writing
from shardctl.wire import barrier
from shardctl.wire.barrier import Barrier
from shardctl.wire.message import Encoded

SETTLE_SECONDS = 1.0  # between due and its barrier, so that no service's clock can put the barrier first
AGAIN_SECONDS = 30.0  # a barrier that isn't met is published again
RETRY_SECONDS = 1.0
CLOSING_SECONDS = 1.0  # more than a slot is closed for, usually
PARALLEL = 4  # more would share one interpreter, and each slot would be closed for longer
# Nothing is copied for these: they go in large waves.
STAYING_AT_FIRST, STAYING_AT_LEAST, STAYING_AT_MOST = 256, 16, 512
AHEAD_AT_MOST = 512

# Gives a barrier to Pub/Sub; the future's result is whether Pub/Sub took it.
Publish = Callable[[Encoded], "Future[Any]"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How many slots stand where. `failed` names slots that need a person, `trouble` lists what is tried again."""

    total: int
    arrived: int
    waiting: int
    settling: int  # due, their barrier not out
    barriers: int  # out, not met
    copying: int
    preparing: int  # copied while their writes go on
    catching_up: int  # copied, their barrier not published
    failed: tuple[str, ...]
    trouble: tuple[str, ...]
    ended: bool  # nothing is left that the run could do

    @property
    def complete(self) -> bool:
        return self.arrived == self.total


class Run:
    """`step` until it has ended; safe to drop at any moment. `databases`: an engine for each participating shard.

    `rebalance` is its id, as `journal.find` returns it.

    `clock` gives the seconds that `step` is called with. With `onward` false no more slots are begun, and what has begun is
    brought to its end. While `hold` gives a reason, no more are begun either.

    With `bases`, slots are copied ahead of their pauses, in `copies`; without, in them.
    """

    def __init__(
        self,
        fleet: Fleet,
        databases: Mapping[str, Engine],
        *,
        rebalance: str,
        publish: Publish,
        copy: Copy,
        clock: Callable[[], float],
        pool: Pool | None = None,
        parallel: int = PARALLEL,
        onward: bool = True,
        hold: Callable[[], str] = str,
        bases: Bases | None = None,
        copies: Pool | None = None,
    ) -> None:
        self._fleet, self._databases = fleet, databases
        self._publish_message, self._copy_slots, self._clock = publish, copy, clock
        self._pool: Pool = pool or Inline()
        self._onward, self._hold = onward, hold
        self._tracker = Tracker(fleet, databases)
        staying = AimdWindow(STAYING_AT_FIRST, STAYING_AT_MOST, STAYING_AT_LEAST)
        self._windows = {
            True: staying,
            False: AimdWindow(parallel, parallel),
        }  # by whether the slot stays in its database
        self._trouble: dict[str, str] = {}
        self._begin_after = float("-inf")
        self.rebalance = rebalance
        self.tally = Stats(under_way=bases.rows_under_way, copying=bases.copying) if bases else Stats()
        self._bases, self._parallel = bases, parallel
        self._preparing = Preparing(bases, copies or self._pool, clock, self.tally) if bases else None

    def step(self, now: float) -> Progress:
        """Look, and do whatever can be done next. Waits for nothing but the databases' answers.

        Raises JournalError where the rebalance has been closed, and DatabaseError where trying again can't help.
        """
        self._look(now)
        self._copy_what_has_left(now)
        self._collect_copies()
        self._catch_up(now)
        if not self._is_any_closing(now):
            self._await_barriers(now)
            self._begin_more(now)
            self._publish_barriers(now)
        self._prepare(now)
        return self._progress()

    def _is_any_closing(self, now: float) -> bool:
        """Whether moving slots are closed, or will be in a moment: their writes wait, so nothing else waits for a database now.

        What takes longer is waited for by no other slot.
        """
        return any(not slot.stays and _is_closing(slot, now) for slot in self._in_flight())

    def _look(self, now: float) -> None:
        for slot in self._tracker.look(now, begin=self._onward):
            if slot.published is not None and slot.left_since is None:
                self._windows[slot.stays].met(slot.published, now)
                self.tally.latencies.append(now - slot.published)
            slot.left_since = now if slot.left_since is None else slot.left_since
            if slot.hand_over in self._tracker.arrived:
                self.tally.arrived(now, stayed=slot.stays)

    def _copy_what_has_left(self, now: float) -> None:
        """Those of one source and one destination that take little share a transaction, and the statements of their copy."""
        together: dict[tuple[Place, Place], list[InFlight]] = {}
        for slot in self._in_flight(Stage.LEFT):
            if slot.work is None and slot.round is None and now >= slot.not_before and slot.standing.source:
                if self._bases and self._bases.is_quick(slot.hand_over):
                    together.setdefault((slot.standing.source, slot.hand_over.to), []).append(slot)
                else:
                    self._hand_over([slot])
        for group in together.values():
            self._hand_over(group)

    def _hand_over(self, group: list[InFlight]) -> None:
        moves = {slot.hand_over: slot.standing.source for slot in group}
        work = self._pool.submit(hand_over, self._databases, moves, self._copy_slots, self._bases)
        for slot in group:
            slot.work = work

    def _collect_copies(self) -> None:
        for slot in [slot for slot in self._in_flight(Stage.LEFT) if slot.work is not None and slot.work.done()]:
            work, slot.work, now = slot.work, None, self._clock()
            result = work.result()[slot.hand_over] if work else None
            again = isinstance(result, NotDrainedError) or (isinstance(result, DatabaseError) and is_transient(result))
            if again:
                self._trouble[slot.hand_over.to.shard] = str(result)
                slot.not_before = now + RETRY_SECONDS
            elif isinstance(result, ShardctlError):
                way = f"{slot.standing.source} → {slot.hand_over.to}"
                self._tracker.give_up(slot.hand_over, f"slot {slot.hand_over.slot}, {way}: {result}")
            elif result and result.rows is None:
                self._tracker.doubt(slot.hand_over)
            elif result:
                self._trouble.pop(slot.hand_over.to.shard, None)
                self._tracker.done(slot.hand_over)
                self.tally.arrived(now, stayed=False)
                self.tally.rows += result.rows or 0
                if result.fell_back:
                    self.tally.fell_back.append(f"slot {slot.hand_over.slot}: {result.fell_back}")
                self.tally.pauses.append(now - (slot.left_since or now))

    def _catch_up(self, now: float) -> None:
        """Rounds of slots whose barriers aren't met, so that little is left for their pauses."""
        for slot in self._in_flight():
            if slot.round is not None and slot.round.done():
                done, slot.round = slot.round, None
                error = done.exception()
                if isinstance(error, BaseError) and self._bases:
                    self._bases.drop(slot.hand_over)
                    self.tally.fell_back.append(f"slot {slot.hand_over.slot}: {error}")
                    slot.based = False
                elif isinstance(error, ShardctlError):  # the hand-over meets it again, and reports it
                    slot.next_round = now + RETRY_SECONDS
                elif error is not None:
                    raise error
                else:
                    slot.based = done.result() is not None
                    if not slot.based:
                        self._tracker.doubt(slot.hand_over)  # there may be no base because the slot has come
                    self.tally.changes += done.result().changes if slot.based else 0
                    slot.next_round = now + (done.result().seconds_to_next if slot.based else 0.0)
        if self._bases:
            for slot in self._in_flight(Stage.DUE):
                may_have_base = slot.based and not slot.stays and not self._bases.is_small(slot.hand_over)
                if may_have_base and slot.round is None and now >= slot.next_round and not _is_closing(slot, now):
                    slot.round = self._pool.submit(self._bases.catch_up, slot.hand_over, slot.standing.source)

    def _prepare(self, now: float) -> None:
        """Copy ahead, as many slots at once as may be; those that stay in their databases go first."""
        if self._preparing is None:
            return
        waiting = self._tracker.waiting
        if self._onward and not waiting[True] and not self._held_back():
            self._preparing.take(waiting[False], 2 * self._parallel)
        self._preparing.step(now)
        for move, why in self._preparing.failed.items():
            self._tracker.give_up(move, why)
        self._preparing.failed.clear()
        self._tracker.preparing = self._preparing.slots

    def _await_barriers(self, now: float) -> None:
        """Of slots that are due and whose source has yet to be asked, and again of those whose barriers aren't met."""
        by_source: dict[Place, list[InFlight]] = {}
        for slot in self._in_flight(Stage.DUE):
            asked = slot.token is not None and not self._is_late(slot, now)
            if slot.standing.source and not asked and now >= slot.not_before:
                by_source.setdefault(slot.standing.source, []).append(slot)
        for source, group in by_source.items():
            try:
                with writing(self._databases[source.shard]) as connection:
                    journal.hold_open(connection, self.rebalance)
                    slots = [slot.hand_over.slot for slot in group]
                    tokens = lanes.await_barriers(connection, slots, source.generation, self.rebalance)
            except DatabaseError as error:
                self._not_now(source.shard, error)
                for slot in group:
                    slot.not_before = self._clock() + RETRY_SECONDS
            else:
                self._trouble.pop(source.shard, None)
                for slot in group:  # one without a token has left, as the next look will show
                    slot.token = tokens.get(slot.hand_over.slot)

    def _publish_barriers(self, now: float) -> None:
        out = {
            kind: sum(slot.stays == kind and not slot.settling for slot in self._in_flight()) for kind in (True, False)
        }
        if all(slot.settling or slot.sent is not None for slot in self._in_flight(Stage.DUE)):
            self._trouble.pop("barriers", None)
        for slot in _by_pair(self._in_flight(Stage.DUE)):
            if slot.token is None:
                continue
            if slot.published is not None:
                self._windows[slot.stays].late(slot.published, now)
                if self._refused(slot):
                    slot.sent, slot.repeated = None, now + RETRY_SECONDS - AGAIN_SECONDS
                if self._is_late(slot, now):
                    self._publish(slot, now)
            elif now >= slot.due_since + SETTLE_SECONDS and out[slot.stays] < self._windows[slot.stays].size:
                out[slot.stays] += 1
                slot.published = now
                self._publish(slot, now)

    @staticmethod
    def _is_late(slot: InFlight, now: float) -> bool:
        return slot.published is not None and now >= slot.repeated + AGAIN_SECONDS

    def _publish(self, slot: InFlight, now: float) -> None:
        source = slot.standing.source
        assert source is not None  # of a slot that is due
        assert slot.token is not None  # no barrier carries a token that isn't awaited yet
        marker = Barrier(self.rebalance, source.shard, source.generation, slot.token)
        message = barrier.encode(self._fleet, self._fleet.shard(source.shard), slot.hand_over.slot, marker)
        slot.sent, slot.repeated = self._publish_message(message), now
        self.tally.barriers += 1

    def _refused(self, slot: InFlight) -> bool:
        error = slot.sent.exception() if slot.sent is not None and slot.sent.done() else None
        if error is not None:
            self._trouble["barriers"] = f"Pub/Sub didn't take a barrier: {error}"
        return error is not None

    def _begin_more(self, now: float) -> None:
        """Those that stay first; those that move once every one of them has begun."""
        if not self._onward or now < self._begin_after or self._held_back():
            return
        for kind in (True, False):
            waiting = self._tracker.waiting[kind]
            settling = sum(slot.stays == kind and slot.settling for slot in self._in_flight())
            soon = int(self.tally.rate(now, stayed=kind) * 2 * SETTLE_SECONDS)  # as many as will begin by then
            ahead = min(AHEAD_AT_MOST, max(self._windows[kind].size, soon))
            if self._preparing is not None and not kind:
                if settling <= ahead // 2 and (ready := self._preparing.take_ready(ahead - settling)):
                    self._begin(ready)
            elif waiting and settling <= ahead // 2:
                self._begin([waiting.popleft() for _ in range(min(ahead - settling, len(waiting)))])
            if waiting:
                return

    def _held_back(self) -> bool:
        if why := self._hold():
            self._trouble["hold"] = why
        else:
            self._trouble.pop("hold", None)
        return bool(why)

    def _begin(self, ready: list[tuple[HandOver, Standing]]) -> None:
        by_place: dict[Place, list[tuple[HandOver, Standing]]] = {}
        for arrival, standing in ready:
            by_place.setdefault(arrival.to, []).append((arrival, standing))
        for place, group in by_place.items():
            tokens: dict[tuple[Place, int], str] = {}
            try:
                with writing(self._databases[place.shard]) as connection:
                    lanes.make_due(connection, [arrival.slot for arrival, _ in group], place.generation)
                    journal.check_going(connection, self.rebalance)
                    for source, slots in _staying(group).items():
                        awaited = lanes.await_barriers(connection, slots, source.generation, self.rebalance)
                        tokens |= {(source, slot): token for slot, token in awaited.items()}
            except DatabaseError as error:
                # If it was done all the same, doing it again changes nothing.
                if self._preparing is not None and not stays(*group[0]):
                    self._preparing.put_back(group)
                else:
                    self._tracker.put_back(group)
                self._not_now(place.shard, error)
            else:
                self._trouble.pop(place.shard, None)
                self._tracker.take(group, self._clock(), tokens)

    def _not_now(self, what: str, error: DatabaseError) -> None:
        """Leave it for a while, where trying again may help."""
        if not is_transient(error):
            raise error
        self._trouble[what] = str(error)
        self._begin_after = self._clock() + RETRY_SECONDS

    def _in_flight(self, stage: Stage | None = None) -> list[InFlight]:
        return [slot for slot in self._tracker.in_flight.values() if stage in (None, slot.standing.stage)]

    def _progress(self) -> Progress:
        tracker, in_flight = self._tracker, self._in_flight()
        preparing = self._preparing
        waiting = sum(map(len, tracker.waiting.values())) + (len(preparing) if preparing else 0)
        copying = sum(slot.standing.stage == Stage.LEFT for slot in in_flight)
        settling = sum(slot.settling for slot in in_flight)
        return Progress(
            total=len(tracker.all),
            arrived=len(tracker.arrived),
            waiting=waiting,
            settling=settling,
            barriers=len(in_flight) - copying - settling,
            copying=copying,
            preparing=preparing.copying if preparing else 0,
            catching_up=len(preparing) - preparing.copying if preparing else 0,
            failed=(*tracker.given_up.values(), *tracker.broken.values()),
            trouble=(
                *self._trouble.values(),
                *tracker.unreachable.values(),
                *(preparing.trouble.values() if preparing else ()),
            ),
            ended=tracker.complete and not in_flight and not (self._onward and waiting),
        )


def _is_closing(slot: InFlight, now: float) -> bool:
    """Whether its barrier went out a moment ago."""
    return slot.published is not None and now < slot.published + CLOSING_SECONDS


def _by_pair(slots: list[InFlight]) -> list[InFlight]:
    """Those of one source and one destination one after another, the pair of the first slot first: so that slots are closed at
    the same time that are handed over together.
    """
    pairs: dict[tuple[Place | None, Place], list[InFlight]] = {}
    for slot in slots:
        pairs.setdefault((slot.standing.source, slot.hand_over.to), []).append(slot)
    return [slot for group in pairs.values() for slot in group]


def _staying(waiting: list[tuple[HandOver, Standing]]) -> dict[Place, list[int]]:
    """The slots that stay in their database, by where they are there."""
    slots: dict[Place, list[int]] = {}
    for arrival, standing in waiting:
        if standing.source and stays(arrival, standing):
            slots.setdefault(standing.source, []).append(arrival.slot)
    return slots
