"""Where a search for moves stands: who holds which slots, who owes how many, and how long the filters have grown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardctl.fleet.filters import MAX_FILTER_BYTES
from shardctl.fleet.keyspace import SlotSet
from shardctl.rebalance.planning.quotas import Quota
from shardctl.rebalance.planning.room import FilterRoom

Sets = tuple[SlotSet, ...]
Run = tuple[int, int]  # slots from the first to the last


@dataclass(frozen=True, slots=True)
class State:
    sets: Sets
    have: tuple[int, ...]
    owed: tuple[int, ...]  # what each must give still or, below zero, take
    to_give: int
    to_take: int
    moved: int = 0
    growth: int = 0  # of the filters' cost
    excess: float = 0  # bytes over what a filter may take
    key: int = 0  # the same for the same sets

    @property
    def settled(self) -> bool:
        return not (self.to_give or self.to_take)


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of `state` when one run moves: cheap to make, since most are thrown away."""

    state: State
    giver: int
    taker: int
    given: SlotSet
    taken: SlotSet
    to_give: int
    to_take: int
    moved: int
    growth: int
    excess: float
    key: int

    @property
    def ends(self) -> bool:
        return not (self.excess or self.to_give or self.to_take)


class Board:
    """Shards that take the same message types, by number, with a quota each. `room` measures their filters."""

    def __init__(
        self, sets: Sequence[SlotSet], quotas: Sequence[Quota], room: FilterRoom, limit: float = MAX_FILTER_BYTES
    ) -> None:
        self.sets, self.quotas, self.room, self.limit = tuple(sets), tuple(quotas), room, limit
        self.bounds = [(int(quota.low), int(quota.high)) for quota in quotas]
        self.bytes: Callable[[SlotSet], int] = room.padded  # what counts as a filter's length
        self._owners = {end: number for number, slots in enumerate(sets) for run in slots.ranges for end in run}

    def start(self) -> State:
        have = tuple(map(len, self.sets))
        owed = tuple(owes(own, *bounds) for own, bounds in zip(have, self.bounds, strict=True))
        return State(self.sets, have, owed, sum(max(0, own) for own in owed), sum(max(0, -own) for own in owed))

    def beside(self, slots: SlotSet) -> set[int]:
        """The shards that owned a slot next to one of these before anything moved."""
        ends = (end for first, last in slots.ranges for end in (first - 1, last + 1))
        return {self._owners[end] for end in ends if end in self._owners}

    def owed_after(self, state: State, giver: int, taker: int, amount: int) -> tuple[int, int]:
        """What must be given and taken in all after one move."""
        to_give, to_take = state.to_give, state.to_take
        for number, change in ((giver, -amount), (taker, amount)):
            was, will = state.owed[number], owes(state.have[number] + change, *self.bounds[number])
            to_give += max(0, will) - max(0, was)
            to_take += max(0, -will) - max(0, -was)
        return to_give, to_take

    def step(self, state: State, giver: int, taker: int, run: Run) -> Step:
        slots, amount = SlotSet((run,)), run[1] - run[0] + 1
        given, taken = state.sets[giver] - slots, state.sets[taker] | slots
        growth, excess, key = state.growth, state.excess, state.key
        for number, change, before, after in (
            (giver, -amount, state.sets[giver], given),
            (taker, amount, state.sets[taker], taken),
        ):
            key ^= hash((number, before)) ^ hash((number, after))
            if self.bounds[number][1] == 0:  # it is going: no filter is made of what it has left
                continue
            growth += self.room.cost(after) - self.room.cost(before)
            # What nothing has touched may be as long as it is, and what must still give may get shorter.
            if before is not self.sets[number] and state.owed[number] <= 0:
                excess -= max(0, self.bytes(before) - self.limit)
            if owes(state.have[number] + change, *self.bounds[number]) <= 0:
                excess += max(0, self.bytes(after) - self.limit)
        to_give, to_take = self.owed_after(state, giver, taker, amount)
        return Step(state, giver, taker, given, taken, to_give, to_take, state.moved + amount, growth, excess, key)

    def eased(self, step: Step) -> int:
        """By how much a step lowers the sum of the squares of what is owed."""
        amount, state = step.moved - step.state.moved, step.state
        will = {step.giver: state.have[step.giver] - amount, step.taker: state.have[step.taker] + amount}
        return sum(state.owed[number] ** 2 - owes(have, *self.bounds[number]) ** 2 for number, have in will.items())

    def after(self, step: Step) -> State:
        sets, have, owed = list(step.state.sets), list(step.state.have), list(step.state.owed)
        for number, slots in ((step.giver, step.given), (step.taker, step.taken)):
            sets[number], have[number] = slots, len(slots)
            owed[number] = owes(have[number], *self.bounds[number])
        rest = step.to_give, step.to_take, step.moved, step.growth, step.excess, step.key
        return State(tuple(sets), tuple(have), tuple(owed), *rest)


def least_moved(quotas: Sequence[Quota]) -> int:
    """What no plan can stay under, whatever the filters."""
    return int(max(sum(quota.must_give for quota in quotas), sum(quota.must_take for quota in quotas)))


def owes(have: int, low: int, high: int) -> int:
    return have - high if have > high else min(0, have - low)
