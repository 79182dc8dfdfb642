"""Slots from one database to another: their rows and the right to write to them, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from shardctl.errors import ShardctlError
from shardctl.fleet.keyspace import lane_of
from shardctl.fleet.spec import Fleet
from shardctl.outbox import queue
from shardctl.outbox.queue import NotDrainedError
from shardctl.rebalance import bases
from shardctl.rebalance.bases import BaseError, Bases, trouble_of_base
from shardctl.rebalance.handover import HandOver, Place, hand_overs, kinds_of
from shardctl.rebalance.stopwatch import Stopwatch
from shardctl.shard import lanes
from shardctl.shard.database import snapshot, writing
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import LaneState

EVENTS_SECONDS = 1.0  # for what a moving slot's writes have emitted to leave; usually it takes some hundredths

# Copies the rows of slots from a view of their source into their destination, checks them, and returns how many there are. What
# the destination holds of the slots is deleted first. Raises a ShardctlError where they can't be the same.
Copy = Callable[[Connection, Connection, Sequence[HandOver]], int]


@dataclass(frozen=True, slots=True)
class Copied:
    """`rows` is None where there was nothing left to do: another run has handed the slot over. Of slots that were copied
    together, the first has the rows of all.

    `fell_back` says why a base could not be brought up to date, so that the slot was copied as a whole in its pause.
    """

    rows: int | None
    fell_back: str = ""


Moves = Mapping[HandOver, Place]
Results = Mapping[HandOver, Copied | ShardctlError]


class Pool(Protocol):
    """Where copies are made: `concurrent.futures.ThreadPoolExecutor`, or `Inline`."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]: ...


class Inline:
    """A pool without threads: the call is over when `submit` returns."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:  # noqa: BLE001 - the future's result raises it
            future.set_exception(error)
        return future


def hand_over(databases: Mapping[str, Engine], moves: Moves, copy: Copy, based: Bases | None = None) -> Results:
    """Bring over what each slot's source has left behind, and make the slots active, all in one transaction.

    `moves` has the source of each; they have one destination in common. Slots that can't be handed over together are
    handed over one by one. What there is a base of takes its last round; all else, and what that round can't bring about, is
    copied as a whole. What stops a slot is its result.
    """
    if len(moves) > 1:
        try:
            return dict(_hand_over(databases, moves, copy, based))
        except NotDrainedError as error:
            return dict.fromkeys(moves, error)
        except ShardctlError:
            pass  # the one that it is about meets it again, alone
    return {move: _alone(databases, move, source, copy, based) for move, source in moves.items()}


def _alone(
    databases: Mapping[str, Engine], move: HandOver, source: Place, copy: Copy, based: Bases | None
) -> Copied | ShardctlError:
    try:
        if based is not None:
            try:
                return _hand_over(databases, {move: source}, copy, based)[move]
            except BaseError as error:
                based.drop(move)
                copied = _hand_over(databases, {move: source}, copy, None)[move]
                return Copied(copied.rows, str(error))
        return _hand_over(databases, {move: source}, copy, None)[move]
    except ShardctlError as error:
        return error


def _hand_over(
    databases: Mapping[str, Engine], moves: Moves, copy: Copy, based: Bases | None
) -> dict[HandOver, Copied]:
    """The lanes are held from the start: of two that copy one slot, the second waits, finds it active and touches nothing. Else
    its deleting of leftovers would hit the rows that the new owner has written by then. Every view of a source begins after
    that. The fence is taken at the very end, so the destination's other slots are written to meanwhile.
    """
    (to,) = {move.to for move in moves}
    done = dict.fromkeys(moves, Copied(None))  # not to be handed over now, as the next look will show
    times_us: dict[int, int] = {}
    logged: list[int] = []
    with writing(databases[to.shard]) as into:
        destination_lanes = lanes.hold_all(into, [move.slot for move in moves], to.generation)
        due = [move for move in moves if (lane := destination_lanes.get(move.slot)) and lane.state == LaneState.DUE]
        for source in dict.fromkeys(moves[move] for move in due):
            coming = [move for move in due if moves[move] == source]
            with snapshot(databases[source.shard]) as out:
                if source.shard != to.shard:
                    # Invariant: a slot becomes active in another database only when all that its writes have emitted where it
                    # was is published. So what they emit here comes after it. All of it is in this view, since the lanes have
                    # left; rows of other slots that are no newer are waited for as well.
                    queue.wait_drained(databases[source.shard], queue.last(out), EVENTS_SECONDS)
                left = _left(out, coming, source)
                rows, logged_now = _bring_over(out, into, left, source, copy, based)
            bases.end(into, [move.slot for move in left], to.generation)
            done |= {move: Copied(count) for move, count in rows.items()}
            times_us |= {move.slot: lane.barrier_time_us or 0 for move, lane in left.items()}
            logged += logged_now
        if times_us:
            lanes.activate(into, times_us, to.generation, logged=logged)
    return done


def _left(out: Connection, moves: Sequence[HandOver], source: Place) -> dict[HandOver, Lane]:
    """Those that have left the source, each with its lane there."""
    seen = lanes.read(out, [move.slot for move in moves])
    there = {move: seen.get(lane_of(move.slot, source.generation)) for move in moves}
    return {
        move: lane
        for move, lane in there.items()
        if lane and lane.state == LaneState.LEFT and lane.barrier_time_us is not None
    }


def _bring_over(
    out: Connection, into: Connection, left: Mapping[HandOver, Lane], source: Place, copy: Copy, based: Bases | None
) -> tuple[dict[HandOver, int], list[int]]:
    """How many rows each slot took, and the slots whose changes are to be logged from now on.

    Those with a base take their last rounds. All others are copied together: most of a small copy's time goes into its
    statements, however few rows they bring.
    """
    rows, logged, whole = dict.fromkeys(left, 0), [], []
    for move in (move for move in left if move.to.shard != source.shard):
        with trouble_of_base():
            brought = based.finish(out, into, move, source, left[move]) if based else None
        if based is None or brought is None:
            whole.append(move)
        else:
            rows[move] = brought
            logged += [move.slot] if based.logs_from_now_on(into, move) else []
    if whole:
        rows[whole[0]] = copy(out, into, whole)
    return rows, logged


def row_copy(fleet: Fleet, cancelled: Callable[[], bool] = lambda: False, stopwatch: Stopwatch | None = None) -> Copy:
    """The real copy: every table of the types that the slot's shard takes, and shardctl's own. `stopwatch` runs meanwhile."""
    from shardctl.rebalance.rows.rowcopy import copy_slots

    def copy(source: Connection, destination: Connection, moves: Sequence[HandOver]) -> int:
        kinds, slots = kinds_of(fleet, moves[0].to.shard), tuple(move.slot for move in moves)
        with stopwatch.running() if stopwatch else nullcontext():
            return copy_slots(source, destination, kinds, slots, cancelled).total_rows

    return copy


def warm_up(fleet: Fleet, databases: Mapping[str, Engine], sessions: int) -> None:
    """Open the sessions that copies take, and look at their tables, before the first slot waits for it.

    Errors are left for the run to meet, and to report.
    """
    from shardctl.rebalance.rows.rowcopy import prepare

    ways = {(source.shard, move.to.shard) for move in hand_overs(fleet) for source in move.sources}
    with suppress(ShardctlError), ExitStack() as opened:
        for shard in {shard for way in ways if way[0] != way[1] for shard in way}:
            for _ in range(sessions):
                opened.enter_context(snapshot(databases[shard]))
    for source, destination in sorted(ways):
        if source != destination:
            with suppress(ShardctlError), snapshot(databases[source]) as out, snapshot(databases[destination]) as into:
                prepare(out, into, kinds_of(fleet, destination))
