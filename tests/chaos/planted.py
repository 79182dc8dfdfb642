"""Programs of ours with one mistake each: a campaign is worth something only while it finds them.

    python tests/chaos/planted.py no_hold consumer --config FILE
    python tests/chaos/planted.py inbox_not_copied shardctl rebalance run

A mistake is made by replacing a function in that process alone, so it lies in what runs and not in the judge.
"""

from __future__ import annotations

import dataclasses
import runpy
import sys
from collections.abc import Callable
from pathlib import Path


def inbox_not_copied() -> None:
    """What came before a slot moved is written again when it comes again."""
    from shardctl.rebalance.rows import rowcopy

    whole = rowcopy.pairs_of
    rowcopy.pairs_of = lambda *arguments: [pair for pair in whole(*arguments) if pair.name != "shardctl_inbox"]


def no_hold() -> None:
    """A slot that is due counts as active: two databases write."""
    from consumer.store import fence
    from shardctl.shard.schema import LaneState

    whole = fence._lanes

    def lanes_of(version, lanes):
        active = {LaneState.DUE: LaneState.ACTIVE}
        seen = {lane: dataclasses.replace(row, state=active.get(row.state, row.state)) for lane, row in lanes.items()}
        return whole(version, seen)

    fence._lanes = lanes_of


def ack_while_due() -> None:
    """What came behind the barrier is taken for the old owner's."""
    from consumer.store import fence
    from shardctl.shard.schema import LaneState

    whole = fence._lanes

    def lanes_of(version, lanes):
        arriving = {LaneState.DUE: LaneState.ARRIVING}
        seen = {lane: dataclasses.replace(row, state=arriving.get(row.state, row.state)) for lane, row in lanes.items()}
        return whole(version, seen)

    fence._lanes = lanes_of


def left_acks_all() -> None:
    """What comes late, behind the barrier that was published after it, is taken for done."""
    from consumer.store import Store

    whole = Store._elsewhere
    Store._elsewhere = lambda *arguments: dataclasses.replace(whole(*arguments), again=())


def activate_before_copy() -> None:
    """The new owner writes already while rows come, and these wipe out what it wrote."""
    from shardctl.fleet.keyspace import lane_of
    from shardctl.rebalance import copying, run
    from shardctl.shard import lanes
    from shardctl.shard.database import snapshot, writing
    from shardctl.shard.schema import LaneState

    whole = copying.hand_over

    def hand_over(databases, moves, copy, based):
        if len(moves) > 1:
            return {move: hand_over(databases, {move: source}, copy, based)[move] for move, source in moves.items()}
        ((move, source),) = moves.items()
        with snapshot(databases[source.shard]) as out:
            left = lanes.read(out, (move.slot,)).get(lane_of(move.slot, source.generation))
        if left and left.state == LaneState.LEFT and source.shard != move.to.shard:
            with writing(databases[move.to.shard]) as into:
                lanes.activate(into, {move.slot: left.barrier_time_us}, move.to.generation)
            with writing(databases[move.to.shard]) as into, snapshot(databases[source.shard]) as out:
                from shardctl.rebalance.rows import rowcopy

                rowcopy._check_nobody_writes = lambda *_: None
                return {move: copying.Copied(copy(out, into, (move,)))}
        return whole(databases, moves, copy, based)

    run.hand_over = hand_over


def rows_not_copied() -> None:
    """The slot's new owner begins with nothing."""
    from shardctl.rebalance.rows import rowcopy

    whole = rowcopy.pairs_of
    rowcopy.pairs_of = lambda *arguments: [pair for pair in whole(*arguments) if pair.name.startswith("shardctl_")]


MISTAKES: dict[str, Callable[[], None]] = {
    plant.__name__: plant
    for plant in (inbox_not_copied, rows_not_copied, no_hold, ack_while_due, left_acks_all, activate_before_copy)
}


def command(mistake: str, program: str) -> tuple[str, ...]:
    """What runs `program`, "consumer" or "shardctl", with the mistake in it."""
    return sys.executable, str(Path(__file__).resolve()), mistake, program


def main() -> int:
    _, mistake, program, *arguments = sys.argv
    MISTAKES[mistake]()
    sys.argv = [program, *arguments]
    if program == "shardctl":
        from shardctl.cli import main as shardctl

        return shardctl()
    runpy.run_module(program, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules aren't meant for those programs
    sys.exit(main())
