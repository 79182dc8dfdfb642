"""The fewest slots moved that bring each shard's count within its quota and each filter within its bytes. Pure.

A shard over its quota must give, one under it must take, so no plan moves less than the larger of the two sums. The
search allows just that sum first. Where no way fits the filters, `_spread` soon finds one that may move many more, by
handing on what is owed from shard to shard; what lies between the two is halved, round by round, until the effort is
spent. A last round looks for a way that moves no more and whose filters take malformed slots too.

Each round is a beam search (B. Lowerre, 1976): a step moves one run of slots between two shards, and the states that
grow filters least for each slot moved go on. After the first round a shard may pass its bound a little in a step, and so
give or take a rounder run, whose prefix is shorter: a later step brings it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import nsmallest

from shardctl.fleet.filters import MAX_FILTER_BYTES
from shardctl.fleet.keyspace import SlotSet
from shardctl.rebalance.planning.board import Board, Run, Sets, State, Step, least_moved
from shardctl.rebalance.planning.quotas import Quota
from shardctl.rebalance.planning.room import FilterRoom
from shardctl.rebalance.planning.runs import amounts, end_runs, every_run, round_runs

BEAM = 24  # states that go on, divided among the shards
PARTNERS = 6  # shards with room in their filters that one tries to give to or take from in a step
EVERY_RUN = 64  # up to so many slots, every run of them is tried; of more, those with a round end
REPAIRS = 4  # moves, after the last that a quota asks for, to shorten filters that are too long
LAST_ROUND = 2_000  # steps, for complete filters
CLOSE = 32  # the part of the least that isn't worth another round
BEYOND = 1 / 6  # of a bound: by so much a shard may pass it for a while
FIRST_TRY = 16  # the part of the effort that goes into complete filters among many shards
A_MOVE = 32  # what a move costs beside the growth of filters, in bytes
NO_LIMIT = 1 << 32


class Search:
    """Shards that take the same types, one quota each; `room` measures their filters.

    `effort` bounds the steps looked at in all rounds, and again in spreading; a filter may have `limit` bytes.
    """

    def __init__(
        self,
        sets: Sequence[SlotSet],
        quotas: Sequence[Quota],
        room: FilterRoom,
        effort: int,
        limit: float = MAX_FILTER_BYTES,
    ) -> None:
        self._board, self._quotas, self._room = Board(sets, quotas, room, limit), quotas, room
        self._width = max(1, BEAM // len(sets))
        self._every_run = sum(map(len, sets)) <= EVERY_RUN
        self._effort, self._effort_to_spread = effort, effort
        self._spreading = False
        self._beyond = 0.0  # BEYOND once more than the least may move

    def fewest(self) -> Sets | None:
        """The sets after the moves, in the order of those before; None where no way was found.

        Of ways that move as much, one whose filters take malformed slots too.
        """
        least = least_moved(self._quotas)
        if best := self._within(least):
            return best.sets
        best = self._spread()
        self._beyond, self._effort = BEYOND, min(self._effort, self._effort_to_spread // 2)
        low, high = least, best.moved if best else sum(map(len, self._board.sets))
        while high - low > max(1, least // CLOSE) and self._effort > 0:
            middle = (low + high) // 2
            if fewer := self._round(middle, 0):
                best, high = fewer, fewer.moved
            else:
                low = middle
        return (self._completed(best) or best).sets if best else None

    def _within(self, most: int) -> State | None:
        """The best way found that moves `most` slots or fewer; with complete filters, where there is one."""
        for length, effort in self._lengths():
            self._board.bytes = length
            if state := self._round(most, self._effort - effort):
                return state
        return None

    def _completed(self, best: State) -> State | None:
        """A way that moves no more, with complete filters, where there is one."""
        if self._width == 1 or all(self._room.padded(slots) <= self._board.limit for slots in best.sets):
            return None
        self._board.bytes, self._effort = self._room.padded, self._effort + LAST_ROUND
        return self._round(best.moved, 0)

    def _lengths(self) -> Iterator[tuple[Callable[[SlotSet], int], int]]:
        """What to call a filter's length, and the effort to spend: complete filters first, among many shards not for long."""
        yield self._room.padded, self._effort // FIRST_TRY if self._width == 1 else self._effort
        yield self._room.longest, self._effort

    def _round(self, most: int, effort_left: int) -> State | None:
        """The best way found that moves `most` slots or fewer, before so much effort is left."""
        beam = [self._board.start()]
        if beam[0].settled:
            return beam[0]
        repairs = 0
        while beam and repairs <= REPAIRS and self._effort > effort_left:
            repairs += all(state.settled for state in beam)
            steps: dict[int, Step] = {}
            for state in beam:
                for step in self._steps(state, most):
                    if step.excess and self._width == 1:  # many shards: a state that doesn't fit isn't worth repairing
                        continue
                    steps.setdefault(step.key, step)
            ended = [step for step in steps.values() if step.ends]
            if ended:
                return self._board.after(min(ended, key=lambda step: (step.moved, step.growth)))
            beam = [self._board.after(step) for step in nsmallest(self._width, steps.values(), key=_rank)]
        return None

    def _spread(self) -> State | None:
        """Soon found, but not the fewest: who owes most settles part of it with a shard that may then owe as well.

        Each step lowers the sum of the squares of what is owed, so it ends. It has an effort of its own.
        """
        self._spreading, effort, self._effort = True, self._effort, self._effort_to_spread
        try:
            return self._handed_on()
        finally:
            self._spreading, self._effort = False, effort

    def _handed_on(self) -> State | None:
        state = self._board.start()
        while not state.settled:
            steps = [(step, self._board.eased(step)) for step in self._steps(state, NO_LIMIT) if not step.excess]
            ranked = [
                ((max(0, step.growth - state.growth) + A_MOVE) / eased, at)
                for at, (step, eased) in enumerate(steps)
                if eased > 0
            ]
            if not ranked or self._effort <= 0:
                return None
            state = self._board.after(steps[min(ranked)[1]][0])
        return state

    def _steps(self, state: State, most: int) -> Iterator[Step]:
        """Moves of the shard that owes most; where none owes, moves that may shorten a filter that is too long."""
        if not state.settled:
            who = max(range(len(state.owed)), key=lambda number: abs(state.owed[number]))
            ways = [(who, state.owed[who] > 0)]
        else:
            changed = (number for number, slots in enumerate(state.sets) if slots is not self._board.sets[number])
            who = max(changed, key=lambda number: self._board.bytes(state.sets[number]))
            ways = [(who, True), (who, False)]
        for who, giving in ways:
            helped = 0
            for other in self._partners(state, who, giving=giving):
                giver, taker = (who, other) if giving else (other, who)
                steps = [self._board.step(state, giver, taker, run) for run in self._runs(state, giver, taker, most)]
                self._effort -= len(steps)
                yield from steps
                helped += any(step.excess <= state.excess for step in steps)
                if helped >= PARTNERS or self._effort <= 0:
                    break

    def _partners(self, state: State, who: int, *, giving: bool) -> list[int]:
        """Those who can help: first those who must themselves, then those beside it, then those who can most."""
        beside = self._board.beside(state.sets[who])
        ranked = []
        for number, owed in enumerate(state.owed):
            can = 0 if number == who else self._can(state, *((who, number) if giving else (number, who)))
            if can > 0:
                ranked.append((min(0, owed if giving else -owed), number not in beside, -can, number))
        return [number for *_, number in sorted(ranked)]

    def _runs(self, state: State, giver: int, taker: int, most: int) -> Iterator[Run]:
        can = self._can(state, giver, taker)
        allowed = self._allowed(state, giver, taker, most - state.moved, can)
        if self._every_run:
            return every_run(state.sets[giver], allowed)
        must = max(0, state.owed[giver]), max(0, -state.owed[taker])
        parts = [part // share for part in must for share in ((1, 2, 4, 8) if self._spreading else (1,))]
        choose = end_runs if self._width == 1 or self._spreading else round_runs
        return choose(state.sets[giver], amounts(allowed, *parts), allowed)

    def _can(self, state: State, giver: int, taker: int) -> int:
        """The most that one may give another: as far as their bounds, or beyond where a chain of moves is thinkable."""
        (low, high), (_, taker_high) = self._board.bounds[giver], self._board.bounds[taker]
        if self._spreading:
            return (state.have[giver] - min(1, high)) * (taker_high > 0)
        one_way = self._every_run or self._width == 1 or not self._beyond
        if one_way and not (self._quotas[giver].gives and self._quotas[taker].takes):
            return 0
        if self._every_run:
            return state.have[giver] - min(1, low)
        if not one_way:
            low, taker_high = low - int(low * self._beyond), taker_high + int(taker_high * self._beyond)
        return min(state.have[giver] - low, taker_high - state.have[taker])

    def _allowed(self, state: State, giver: int, taker: int, spare: int, can: int) -> int:
        """The most slots of one move, up to `can`, after which `spare` more in all may still be enough."""
        low, high = 0, can
        while low < high:  # what is needed in all never falls as the amount grows
            middle = (low + high + 1) // 2
            needed = middle + max(self._board.owed_after(state, giver, taker, middle))
            low, high = (middle, high) if needed <= spare else (low, middle - 1)
        return low


def _rank(step: Step) -> tuple[float, ...]:
    return step.excess, step.growth / step.moved, -step.moved
