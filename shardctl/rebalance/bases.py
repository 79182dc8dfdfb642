"""Copies of slots that are made while their writes go on, brought up to date until the pause, and finished in it.

    source    active, logged ─────────────────────────────▶ left
                 │ snapshot      │ snapshot, log    …          │ snapshot, log
    destination  base ──────────▶ round ───────────▶ … ───────▶ last round and active, one transaction

Invariants kept here:
- a base is valid only while its source's lane has the log that the base names, and that log was on before the base's snapshot:
  its name is read in that snapshot. So what the base lacks is in the log;
- what an earlier lane left behind at the destination is a base without a copy, while the source's lane has the log that is named
  after the barrier of that lane: it began when the slot became active at the source, with these rows;
- base, round and activation hold the destination's lane from their beginning, and ask for the base in that transaction. So no two
  executors change the same copy at once, and none changes it once the slot is active;
- base and round ask at their end, under the fence, whether their rebalance is open in the destination's database. So an executor
  that wakes up late can't write over the base of the next rebalance, which has another lane;
- a round deletes from the log exactly what it has read, and only after its own commit. Killed in between, it is done again, and
  changes nothing;
- the last round is of a snapshot from after the lane has left, and commits with the activation and the end of the base.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, SQLAlchemyError

from shardctl.errors import ShardctlError
from shardctl.fleet.keyspace import lane_of
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec import Fleet
from shardctl.rebalance import journal
from shardctl.rebalance.handover import HandOver, Place, kinds_of
from shardctl.rebalance.rows.delta import apply_delta, read_log
from shardctl.rebalance.rows.removal import delete_leftovers
from shardctl.rebalance.rows.rowcopy import CopyCancelledError, copy_slots, has_same_rows
from shardctl.rebalance.rows.tables import row_count_up_to, slot_tables
from shardctl.rebalance.rows.tracking import shared_values, untracked
from shardctl.rebalance.rows.transfer import ROWS_AT_ONCE
from shardctl.rebalance.stopwatch import Stopwatch
from shardctl.shard import lanes
from shardctl.shard.database import DatabaseError, is_transient, snapshot, writing
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import LaneState, bases, changes

FEW_ROWS = 4_000  # fewer are copied in the pause as soon as the rest of a last round would take
ROUND_SECONDS, LONGEST_BETWEEN_ROUNDS_SECONDS, CHANGES_A_ROUND = 0.25, 1.0, 50
CHANGES_AT_ONCE = 50_000  # a round; of each its key is in memory
_DROPPED = ""  # in place of a log's name: the rows are there, and are no base


@dataclass(frozen=True, slots=True)
class Base:
    """`rows` is None where an earlier run made it. `left_behind`: by an earlier lane, so none were copied."""

    rows: int | None
    left_behind: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """How many changes it brought over; `more`: the log had more than one round takes."""

    changes: int
    more: bool = False

    @property
    def seconds_to_next(self) -> float:
        """Rounds that bring next to nothing over cost the databases more than they spare the pause."""
        return min(ROUND_SECONDS * max(1.0, CHANGES_A_ROUND / (self.changes + 1)), LONGEST_BETWEEN_ROUNDS_SECONDS)


class BaseError(ShardctlError):
    """A base can't be brought up to date. The caller's transaction is to be rolled back; the base is of no more use."""


@contextmanager
def trouble_of_base() -> Iterator[None]:
    """Raises BaseError for what trying again wouldn't help; the rest passes through."""
    try:
        yield
    except (CopyCancelledError, OperationalError, InterfaceError, InternalError):
        raise
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise BaseError(str(cause).strip().partition("\n")[0]) from error
    except ShardctlError as error:
        if isinstance(error, DatabaseError) and is_transient(error):
            raise
        raise BaseError(str(error)) from error


class Bases:
    """What one executor does about the bases of its rebalance. `kinds_of` gives the message types that a shard holds.

    `copying` runs while slots are copied.
    """

    def __init__(
        self,
        fleet: Fleet,
        databases: Mapping[str, Engine],
        rebalance: str,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        few_rows: int = FEW_ROWS,
    ) -> None:
        self._fleet, self._databases, self._rebalance = fleet, databases, rebalance
        self._cancelled, self._few_rows = cancelled, few_rows
        self.copying = Stopwatch(time.monotonic)
        self._under_way: dict[HandOver, int] = {}
        self._fit_for_logs: dict[str, bool] = {}  # by shard
        self._small: set[HandOver] = set()
        self._made: set[HandOver] = set()  # or found

    def make(self, hand_over: HandOver, source: Place) -> Base | None:
        """Begin the log and copy the slot, unless a base is there; None where it is to be copied in its pause: it is small, its
        log is incomplete, or its base was dropped.

        Nothing is done where the slot isn't arriving any more. Raises JournalError where no more slots may begin, DatabaseError,
        BaseError, and what `copy_slots` raises.
        """
        if self._is_for_the_pause(hand_over, source):
            return None
        with writing(self._databases[source.shard]) as connection:
            lanes.begin_logs(connection, (hand_over.slot,), source.generation)
            journal.check_going(connection, self._rebalance)
        with writing(self._databases[hand_over.to.shard]) as into:
            lane = lanes.hold(into, hand_over.slot, hand_over.to.generation)
            if lane is None or lane.state != LaneState.ARRIVING:
                return None
            with snapshot(self._databases[source.shard]) as out:
                source_lane = _lane(out, hand_over, source)
                if source_lane is None or source_lane.state != LaneState.ACTIVE or source_lane.log is None:
                    return None
                if _is_dropped(into, hand_over):
                    return None
                if _is_valid(into, hand_over, source, source_lane):
                    self._made.add(hand_over)
                    return Base(None)
                is_here = _left_behind(into, hand_over, source_lane) and self._is_intact(out, into, hand_over)
                rows = 0 if is_here else self._copy(out, into, hand_over)
            end(into, (hand_over.slot,), hand_over.to.generation)
            its = {"slot": hand_over.slot, "generation": hand_over.to.generation, "log": source_lane.log, "rows": rows}
            place = {"source_shard": source.shard, "source_generation": source.generation}
            into.execute(insert(bases).values(**its, **place))
            lanes.share_fence(into)
            journal.check_going(into, self._rebalance)
        self._made.add(hand_over)
        return Base(rows, left_behind=is_here)

    def _copy(self, out: Connection, into: Connection, hand_over: HandOver) -> int:
        def counted() -> bool:
            self._under_way[hand_over] = (
                self._under_way.get(hand_over, 0) + ROWS_AT_ONCE // 2
            )  # each is read, and read back
            return self._cancelled()

        try:
            with self.copying.running():
                return copy_slots(out, into, self._kinds(hand_over), (hand_over.slot,), counted, active=True).total_rows
        finally:
            self._under_way.pop(hand_over, None)

    def _is_intact(self, out: Connection, into: Connection, hand_over: HandOver) -> bool:
        """Bring what was left behind up to date, and compare it with the source: it may have been changed by hand since.

        No pause waits for it.
        """
        with trouble_of_base():
            self._apply_log(out, into, hand_over)
            return has_same_rows(out, into, self._kinds(hand_over), hand_over.slot, self._cancelled)

    def is_quick(self, hand_over: HandOver) -> bool:
        """Whether little is left for the slot's pause, as far as is known: it is small, or it has a base."""
        return hand_over in self._small or hand_over in self._made

    def is_small(self, hand_over: HandOver) -> bool:
        """Whether it was found to be, so that it is copied in its pause."""
        return hand_over in self._small

    def rows_under_way(self) -> int:
        """About so many rows are copied of those slots that aren't done."""
        return sum(list(self._under_way.values()))

    def _is_for_the_pause(self, hand_over: HandOver, source: Place) -> bool:
        with snapshot(self._databases[source.shard]) as out:
            tables = slot_tables(out, self._kinds(hand_over))
            few = row_count_up_to(out, tables, hand_over.slot, self._few_rows) < self._few_rows
            if few:
                self._small.add(hand_over)
            if few or next(untracked(out, tables), None) is not None:
                return True
        with snapshot(self._databases[hand_over.to.shard]) as into:
            self.logs_from_now_on(into, hand_over)
            return next(shared_values(slot_tables(into, self._kinds(hand_over))), None) is not None

    def catch_up(self, hand_over: HandOver, source: Place) -> Round | None:
        """One round, while the slot's writes go on; None where there is no base.

        Raises BaseError, DatabaseError, and JournalError where the rebalance has been closed meanwhile.
        """
        with writing(self._databases[hand_over.to.shard]) as into:
            lane = lanes.hold(into, hand_over.slot, hand_over.to.generation)
            if lane is None or lane.state not in {LaneState.ARRIVING, LaneState.DUE}:
                return None
            with snapshot(self._databases[source.shard]) as out:
                source_lane = _lane(out, hand_over, source)
                if source_lane is None or not _is_valid(into, hand_over, source, source_lane):
                    return None
                log = read_log(out, hand_over.slot, 0, CHANGES_AT_ONCE)
                if log.positions:
                    with trouble_of_base():
                        apply_delta(out, into, self._kinds(hand_over), hand_over.slot, log, self._cancelled)
            lanes.share_fence(into)
            journal.check_open(into, self._rebalance)
        self._forget(source, log.positions)
        return Round(len(log.positions), len(log.positions) == CHANGES_AT_ONCE)

    def _forget(self, source: Place, positions: tuple[int, ...]) -> None:
        if positions:
            with writing(self._databases[source.shard]) as connection:
                for at in range(0, len(positions), 1_000):
                    some = positions[at : at + 1_000]
                    connection.execute(delete(changes).where(changes.c.position.in_(some)))

    def finish(self, out: Connection, into: Connection, hand_over: HandOver, source: Place, left: Lane) -> int | None:
        """The last round, in the transaction that activates the slot; how many rows it compared. None where there is no base.

        `into` holds the slot's lane, `out` shows `left`, the lane that has left.
        """
        if not _is_valid(into, hand_over, source, left):
            return None
        return self._apply_log(out, into, hand_over)

    def _apply_log(self, out: Connection, into: Connection, hand_over: HandOver) -> int:
        """Bring over all that is logged; how many rows were compared."""
        rows, after, more = 0, 0, True
        while more:
            log = read_log(out, hand_over.slot, after, CHANGES_AT_ONCE)
            if log.positions:
                rows += apply_delta(out, into, self._kinds(hand_over), hand_over.slot, log, self._cancelled)
                after = log.positions[-1]
            more = len(log.positions) == CHANGES_AT_ONCE
        return rows

    def logs_from_now_on(self, into: Connection, hand_over: HandOver) -> bool:
        """Whether all changes of the slot are logged at its destination once it is active: then it can go back without a copy.

        Asked of the tables once a run, so that no pause waits for it.
        """
        shard = hand_over.to.shard
        if shard not in self._fit_for_logs:
            tables = slot_tables(into, self._kinds(hand_over))
            self._fit_for_logs[shard] = next(untracked(into, tables), None) is None
        return self._fit_for_logs[shard]

    def drop(self, hand_over: HandOver) -> None:
        """It can't be brought up to date: the slot is copied in its pause. What was copied stays until then, and is known."""
        self._made.discard(hand_over)
        its = (bases.c.slot == hand_over.slot) & (bases.c.generation == hand_over.to.generation)
        with writing(self._databases[hand_over.to.shard]) as into:
            lanes.hold(into, hand_over.slot, hand_over.to.generation)
            into.execute(update(bases).where(its).values(log=_DROPPED))

    def _kinds(self, hand_over: HandOver) -> dict[str, MessageType]:
        return kinds_of(self._fleet, hand_over.to.shard)


def end(into: Connection, slots: Collection[int], generation: int) -> None:
    """These slots have come, or are copied again, in this transaction: there is no base of them any more."""
    into.execute(delete(bases).where(bases.c.slot.in_(slots), bases.c.generation == generation))


def discard(engine: Engine, kinds: Mapping[str, MessageType], slot: int, generation: int) -> None:
    """Delete what was copied of a slot that isn't to come now. Once no base can be made any more: see `journal.stop`.

    Rows and the mark of the base go in one transaction. Where the mark is gone, the rows may be another's. Where an earlier lane
    of the slot has left rows here, they stay for `finish`: the next way back may need them.
    """
    its = (bases.c.slot == slot) & (bases.c.generation == generation)
    with writing(engine) as into:
        lane = lanes.hold(into, slot, generation)
        marked = into.execute(delete(bases).where(its)).rowcount
        if marked and lane is not None and lane.state == LaneState.ARRIVING and not lanes.left_here(into, slot):
            delete_leftovers(into, slot_tables(into, kinds), (slot,))


def there(engine: Engine) -> list[tuple[int, int]]:
    """Slot and generation of each base of a database."""
    with snapshot(engine) as connection:
        return [(slot, generation) for slot, generation in connection.execute(select(bases.c.slot, bases.c.generation))]


def _lane(connection: Connection, hand_over: HandOver, place: Place) -> Lane | None:
    return lanes.read(connection, (hand_over.slot,)).get(lane_of(hand_over.slot, place.generation))


def _is_valid(into: Connection, hand_over: HandOver, source: Place, source_lane: Lane) -> bool:
    """Whether `into`, which holds the slot's lane, has a base that was made under the log that the source's lane has now."""
    if source_lane.log is None:
        return False
    its = (bases.c.slot == hand_over.slot) & (bases.c.generation == hand_over.to.generation)
    made_from = (bases.c.source_shard == source.shard) & (bases.c.source_generation == source.generation)
    return into.scalar(select(bases.c.slot).where(its, made_from, bases.c.log == source_lane.log)) is not None


def _is_dropped(into: Connection, hand_over: HandOver) -> bool:
    its = (bases.c.slot == hand_over.slot) & (bases.c.generation == hand_over.to.generation)
    return into.scalar(select(bases.c.slot).where(its, bases.c.log == _DROPPED)) is not None


def _left_behind(into: Connection, hand_over: HandOver, source_lane: Lane) -> bool:
    """Whether an earlier lane's rows are here, and the source has logged every change since that lane left.

    The source's lane has a barrier's time of its own, but leaving replaces it: the log's name doesn't change.
    """
    left = lanes.left_here(into, hand_over.slot)
    return any(source_lane.log == lanes.log_since(lane.barrier_time_us or 0) for lane in left)
