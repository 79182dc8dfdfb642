"""Handing every slot of a transitional file over to the lane that is to have it, step by step.

One step looks at where each slot stands and does whatever can be done next:
0. slots that move are copied while their writes go on, and brought up to date until little is left (`preparing`);
1. waiting slots become due, a few ahead of their turn: from then on the new side holds what comes;
2. the database of the old side is told to await each one's barrier, and by which token to know it;
3. a second after 1 the barrier is published, and again while it isn't met;
4. the old side meets it and lets go of the slot. One that stays in its database is the new generation's in the same transaction;
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
from shardctl.rebalance import journal
from shardctl.rebalance.bases import BaseError, Bases
from shardctl.rebalance.copying import Copy, Inline, Pool, hand_over
from shardctl.rebalance.handover import HandOver, Place, Stage, Standing
from shardctl.rebalance.preparing import ROUND_SECONDS, Preparing
from shardctl.rebalance.stats import Stats
from shardctl.rebalance.tracker import InHand, Tracker, stays
from shardctl.rebalance.window import AimdWindow
from shardctl.shard import lanes
from shardctl.shard.database import DatabaseError, is_transient, writing
from shardctl.wire import barrier
from shardctl.wire.barrier import Barrier
from shardctl.wire.message import Encoded

SETTLE_SECONDS = 1.0  # between due and its barrier, so that no service's clock can put the barrier first
AGAIN_SECONDS = 30.0  # a barrier that isn't met is published once more
RETRY_SECONDS = 1.0
PARALLEL = 4  # more would share one interpreter, and each slot would be closed for longer
# Nothing is copied for these: they go in large waves.
STAYING_AT_FIRST, STAYING_AT_LEAST, STAYING_AT_MOST = 256, 16, 512
AHEAD_AT_MOST = 512

# Gives a barrier to Pub/Sub; the future tells whether it took it.
Publish = Callable[[Encoded], "Future[Any]"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How many slots stand where. `failed` names slots that need a person, `trouble` what is tried again."""

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

    `rebalance` is its id, as `journal.find` tells it.

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
        self._publish_message, self._copy_slot, self._clock = publish, copy, clock
        self._pool: Pool = pool or Inline()
        self._onward, self._hold = onward, hold
        self._survey = Tracker(fleet, databases)
        staying = AimdWindow(STAYING_AT_FIRST, STAYING_AT_MOST, STAYING_AT_LEAST)
        self._windows = {
            True: staying,
            False: AimdWindow(parallel, parallel),
        }  # by whether the slot stays in its database
        self._trouble: dict[str, str] = {}
        self._begin_after = float("-inf")
        self.rebalance = rebalance
        self.tally = Stats(under_way=bases.rows_under_way) if bases else Stats()
        self._bases, self._parallel = bases, parallel
        self._preparing = Preparing(bases, copies or self._pool, clock, self.tally) if bases else None

    def step(self, now: float) -> Progress:
        """Look, and do whatever can be done next. Waits for nothing but the databases' answers.

        Raises JournalError where somebody has closed the rebalance, and DatabaseError where trying again can't help.
        """
        self._look(now)
        self._copy_what_has_left(now)
        self._collect_copies()
        self._catch_up(now)
        self._await_barriers(now)
        self._publish_barriers(now)
        self._prepare(now)
        self._begin_more(now)
        return self._progress()

    def _look(self, now: float) -> None:
        for each in self._survey.look(now, begin=self._onward):
            if each.published is not None and each.left_since is None:
                self._windows[each.stays].met(each.published, now)
                self.tally.latencies.append(now - each.published)
            each.left_since = now if each.left_since is None else each.left_since
            if each.of in self._survey.arrived:
                self.tally.arrived(now, stayed=each.stays)

    def _copy_what_has_left(self, now: float) -> None:
        for each in self._in_hand(Stage.LEFT):
            if each.work is None and each.round is None and now >= each.not_before and each.standing.source:
                each.work = self._pool.submit(
                    hand_over, self._databases, each.of, each.standing.source, self._copy_slot, self._bases
                )

    def _collect_copies(self) -> None:
        for each in [each for each in self._in_hand(Stage.LEFT) if each.work is not None and each.work.done()]:
            work, each.work, now = each.work, None, self._clock()
            error = work.exception() if work else None
            if isinstance(error, DatabaseError) and is_transient(error):
                self._trouble[each.of.to.shard] = str(error)
                each.not_before = now + RETRY_SECONDS
            elif isinstance(error, ShardctlError):
                self._survey.give_up(each.of, f"slot {each.of.slot}, {each.standing.source} → {each.of.to}: {error}")
            elif error is not None:
                raise error
            elif work and (rows := work.result().rows) is None:
                self._survey.doubt(each.of)
            elif work:
                self._trouble.pop(each.of.to.shard, None)
                self._survey.done(each.of)
                self.tally.arrived(now, stayed=False)
                self.tally.rows += rows
                if why := work.result().fell_back:
                    self.tally.fell_back.append(f"slot {each.of.slot}: {why}")
                self.tally.pauses.append(now - (each.left_since or now))

    def _catch_up(self, now: float) -> None:
        """Rounds of slots whose barriers aren't met, so that little is left for their pauses."""
        for each in self._in_hand():
            if each.round is not None and each.round.done():
                done, each.round = each.round, None
                error = done.exception()
                if isinstance(error, BaseError) and self._bases:
                    self._bases.drop(each.of)
                    self.tally.fell_back.append(f"slot {each.of.slot}: {error}")
                    each.based = False
                elif isinstance(error, ShardctlError):  # the hand-over meets it again, and reports it
                    each.next_round = now + RETRY_SECONDS
                elif error is not None:
                    raise error
                else:
                    each.based = done.result() is not None
                    if not each.based:
                        self._survey.doubt(each.of)  # there may be no base because the slot has come
                    self.tally.changes += done.result().changes if each.based else 0
                    each.next_round = now + ROUND_SECONDS
        if self._bases:
            for each in self._in_hand(Stage.DUE):
                if each.based and not each.stays and each.round is None and now >= each.next_round:
                    each.round = self._pool.submit(self._bases.catch_up, each.of, each.standing.source)

    def _prepare(self, now: float) -> None:
        """Copy ahead, as many slots at once as may be; those that stay in their databases go first."""
        if self._preparing is None:
            return
        waiting = self._survey.waiting
        if self._onward and not waiting[True] and not self._held_back():
            self._preparing.take(waiting[False], 2 * self._parallel)
        self._preparing.step(now)
        for of, why in self._preparing.failed.items():
            self._survey.give_up(of, why)
        self._preparing.failed.clear()
        self._survey.preparing = self._preparing.slots

    def _await_barriers(self, now: float) -> None:
        """Of slots that are due and whose source has yet to be asked, and once more of those whose barriers aren't met."""
        by_source: dict[Place, list[InHand]] = {}
        for each in self._in_hand(Stage.DUE):
            asked = each.token is not None and not self._is_late(each, now)
            if each.standing.source and not asked and now >= each.not_before:
                by_source.setdefault(each.standing.source, []).append(each)
        for source, these in by_source.items():
            try:
                with writing(self._databases[source.shard]) as connection:
                    journal.hold_open(connection, self.rebalance)
                    slots = [each.of.slot for each in these]
                    tokens = lanes.await_barriers(connection, slots, source.generation, self.rebalance)
            except DatabaseError as error:
                self._not_now(source.shard, error)
                for each in these:
                    each.not_before = self._clock() + RETRY_SECONDS
            else:
                self._trouble.pop(source.shard, None)
                for each in these:  # one without a token has left, as the next look will tell
                    each.token = tokens.get(each.of.slot)

    def _publish_barriers(self, now: float) -> None:
        out = {kind: sum(e.stays == kind and not e.settling for e in self._in_hand()) for kind in (True, False)}
        if all(each.settling or each.sent is not None for each in self._in_hand(Stage.DUE)):
            self._trouble.pop("barriers", None)
        for each in self._in_hand(Stage.DUE):
            if each.token is None:
                continue
            if each.published is not None:
                self._windows[each.stays].late(each.published, now)
                if self._refused(each):
                    each.sent, each.repeated = None, now + RETRY_SECONDS - AGAIN_SECONDS
                if self._is_late(each, now):
                    self._publish(each, now)
            elif now >= each.due_since + SETTLE_SECONDS and out[each.stays] < self._windows[each.stays].size:
                out[each.stays] += 1
                each.published = now
                self._publish(each, now)

    @staticmethod
    def _is_late(each: InHand, now: float) -> bool:
        return each.published is not None and now >= each.repeated + AGAIN_SECONDS

    def _publish(self, each: InHand, now: float) -> None:
        source = each.standing.source
        assert source is not None  # of a slot that is due
        assert each.token is not None  # nobody may know it before it is awaited
        marker = Barrier(self.rebalance, source.shard, source.generation, each.token)
        message = barrier.encode(self._fleet, self._fleet.shard(source.shard), each.of.slot, marker)
        each.sent, each.repeated = self._publish_message(message), now
        self.tally.barriers += 1

    def _refused(self, each: InHand) -> bool:
        error = each.sent.exception() if each.sent is not None and each.sent.done() else None
        if error is not None:
            self._trouble["barriers"] = f"Pub/Sub didn't take a barrier: {error}"
        return error is not None

    def _begin_more(self, now: float) -> None:
        """Those that stay first; those that move once every one of them has begun."""
        if not self._onward or now < self._begin_after or self._held_back():
            return
        for kind in (True, False):
            waiting = self._survey.waiting[kind]
            settling = sum(each.stays == kind and each.settling for each in self._in_hand())
            soon = int(
                self.tally.rate(now, stayed=kind) * 2 * SETTLE_SECONDS
            )  # as many as will have their turn by then
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

    def _begin(self, of: list[tuple[HandOver, Standing]]) -> None:
        by_place: dict[Place, list[tuple[HandOver, Standing]]] = {}
        for each in of:
            by_place.setdefault(each[0].to, []).append(each)
        for place, these in by_place.items():
            tokens: dict[tuple[Place, int], str] = {}
            try:
                with writing(self._databases[place.shard]) as connection:
                    lanes.make_due(connection, [each.slot for each, _ in these], place.generation)
                    journal.check_going(connection, self.rebalance)
                    for source, slots in _staying(these).items():
                        awaited = lanes.await_barriers(connection, slots, source.generation, self.rebalance)
                        tokens |= {(source, slot): token for slot, token in awaited.items()}
            except DatabaseError as error:
                # If it was done all the same, doing it again changes nothing.
                if self._preparing is not None and not stays(*these[0]):
                    self._preparing.put_back(these)
                else:
                    self._survey.put_back(these)
                self._not_now(place.shard, error)
            else:
                self._trouble.pop(place.shard, None)
                self._survey.take(these, self._clock(), tokens)

    def _not_now(self, what: str, error: DatabaseError) -> None:
        """Leave it for a while, where trying again may help."""
        if not is_transient(error):
            raise error
        self._trouble[what] = str(error)
        self._begin_after = self._clock() + RETRY_SECONDS

    def _in_hand(self, stage: Stage | None = None) -> list[InHand]:
        return [each for each in self._survey.hand.values() if stage in (None, each.standing.stage)]

    def _progress(self) -> Progress:
        survey, hand = self._survey, self._in_hand()
        preparing = self._preparing
        waiting = sum(map(len, survey.waiting.values())) + (len(preparing) if preparing else 0)
        copying = sum(each.standing.stage == Stage.LEFT for each in hand)
        settling = sum(each.settling for each in hand)
        return Progress(
            total=len(survey.all),
            arrived=len(survey.arrived),
            waiting=waiting,
            settling=settling,
            barriers=len(hand) - copying - settling,
            copying=copying,
            preparing=preparing.copying if preparing else 0,
            catching_up=len(preparing) - preparing.copying if preparing else 0,
            failed=(*survey.set_aside.values(), *survey.broken.values()),
            trouble=(
                *self._trouble.values(),
                *survey.unreachable.values(),
                *(preparing.trouble.values() if preparing else ()),
            ),
            ended=survey.complete and not hand and not (self._onward and waiting),
        )


def _staying(found: list[tuple[HandOver, Standing]]) -> dict[Place, list[int]]:
    """The slots that stay in their database, by where they are there."""
    slots: dict[Place, list[int]] = {}
    for of, standing in found:
        if standing.source and stays(of, standing):
            slots.setdefault(standing.source, []).append(of.slot)
    return slots
