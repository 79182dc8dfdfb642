"""Fewer hot shards by measured rates. Pure.

Like Slicer's weighted-move (A. Adya et al., OSDI 2016): while a shard is outside its bounds, move the run of slots that corrects
most from the shard furthest over its target to the one furthest under it, and stop where a move gains too little. It is greedy:
which slots to move for a balance of unequal rates is bin packing, and rates change before an optimum would be found.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from heapq import nlargest, nsmallest
from itertools import accumulate

from shardctl.fleet.filters import MAX_FILTER_BYTES
from shardctl.fleet.keyspace import SlotSet
from shardctl.rebalance.planning.board import Run
from shardctl.rebalance.planning.quotas import Quota
from shardctl.rebalance.planning.room import FilterRoom

TAKERS = 6  # tried for each giver, the emptiest first
HOTTEST = 4  # slots of each range that may go alone
TRIED = 24  # runs between two shards, the best first
BLOCKS = 64  # aligned blocks of each range and size that may go
ROUNDING = 1e-9


def lightest(
    sets: Sequence[SlotSet],
    quotas: Sequence[Quota],
    rates: Sequence[float],  # of each slot
    room: FilterRoom,
    min_gain: float,
    effort: int,
) -> tuple[SlotSet, ...] | None:
    """The sets after the moves; None where a shard that must give everything finds no room."""
    planner = _Planner(sets, quotas, rates, room, min_gain, effort)
    for giver, quota in enumerate(quotas):
        if quota.high == 0 and not planner.empty(giver):
            return None
    while planner.effort > 0 and planner.improve():
        pass
    return tuple(planner.sets)


def least_moved(sets: Sequence[SlotSet], quotas: Sequence[Quota], rates: Mapping[int, float]) -> int:
    """What no plan can stay under: each shard over its bound gives its hottest slots, and no more than it must."""
    least = 0
    for slots, quota in zip(sets, quotas, strict=True):
        if quota.high == 0:
            least += len(slots)
        elif quota.gives and quota.must_give > 0:
            falling = accumulate(sorted((rates.get(slot, 0.0) for slot in slots), reverse=True))
            least += 1 + sum(given < quota.must_give - ROUNDING for given in falling)
    return least


class _Planner:
    def __init__(
        self,
        sets: Sequence[SlotSet],
        quotas: Sequence[Quota],
        rates: Sequence[float],
        room: FilterRoom,
        min_gain: float,
        effort: int,
    ) -> None:
        self.sets = list(sets)
        self._quotas, self._rates, self._room, self._min_gain = quotas, rates, room, min_gain
        self.effort = effort  # filters measured, before what was found must do
        self._sums = [0.0, *accumulate(rates)]
        self._loads = [quota.have for quota in quotas]
        self._vain: dict[tuple[int, int], tuple[SlotSet, SlotSet]] = {}  # between whom nothing is to be moved

    def improve(self) -> bool:
        """Make the best move there is; False where none is worth it."""
        givers = [number for number, quota in enumerate(self._quotas) if quota.gives and len(self.sets[number]) > 1]
        takers = [number for number, quota in enumerate(self._quotas) if quota.takes]
        wanting = any(self._loads[number] < self._quotas[number].low - ROUNDING for number in takers)
        for giver in sorted(givers, key=lambda number: (-self._level(number), number)):
            if not wanting and self._loads[giver] <= self._quotas[giver].high + ROUNDING:
                return False
            others = (number for number in takers if number != giver and self._level(number) < self._level(giver))
            for taker in nsmallest(TAKERS, others, key=lambda number: (self._level(number), number)):
                sets = self.sets[giver], self.sets[taker]
                if self._vain.get((giver, taker)) == sets:
                    continue
                if run := self._best(giver, taker):
                    self._move(giver, taker, run)
                    return True
                self._vain[giver, taker] = sets
        return False

    def empty(self, giver: int) -> bool:
        """Give all that a shard has to the emptiest others; False where their filters have no room for it."""
        while self.sets[giver].ranges:
            takers = [number for number, quota in enumerate(self._quotas) if quota.takes and number != giver]
            for taker in sorted(takers, key=lambda number: (self._level(number), number)):
                can = max(0.0, self._quotas[taker].high - self._loads[taker])
                runs = [(first, last) for first, last in self.sets[giver].ranges]
                runs += [run for first, last in runs for run in self._cuts(first, last, can / 2, can)]
                runs.sort(
                    key=lambda run: (abs(min(self._load(run), can) - self._load(run)) > ROUNDING, -_length(run), run)
                )
                fitting = next((run for run in runs if self._fits(self.sets[taker] | SlotSet((run,)))), None)
                if fitting:
                    self._move(giver, taker, fitting)
                    break
            else:
                return False
        return True

    def _level(self, number: int) -> float:
        return self._loads[number] / self._quotas[number].fair if self._quotas[number].fair else 0.0

    def _load(self, run: Run) -> float:
        return self._sums[run[1] + 1] - self._sums[run[0]]

    def _fits(self, slots: SlotSet) -> bool:
        self.effort -= 1
        return self._room.longest(slots) <= MAX_FILTER_BYTES

    def _move(self, giver: int, taker: int, run: Run) -> None:
        slots, load = SlotSet((run,)), self._load(run)
        self.sets[giver], self.sets[taker] = self.sets[giver] - slots, self.sets[taker] | slots
        self._loads[giver] -= load
        self._loads[taker] += load

    def _best(self, giver: int, taker: int) -> Run | None:
        """Of the runs that gain enough and fit, the one that corrects most; of those alike, the shortest, then the roundest."""
        source, sink = self._quotas[giver], self._quotas[taker]
        can = min(self._loads[giver] - source.low, sink.high - self._loads[taker])
        need = max(self._loads[giver] - source.high, sink.low - self._loads[taker])
        need = min(need, can)
        lengths = len(self.sets[giver])
        candidates = []
        for run in set(self._runs(giver, need, can)):
            load = self._load(run)
            alone = run[0] == run[1] and not self.sets[taker].ranges  # a hot slot may get a shard of its own
            if load <= 0 or _length(run) >= lengths or (load > can + ROUNDING and not alone):
                continue
            if self._gain(giver, taker, load) >= self._min_gain:
                corrected = round(min(load, need) / need, 1) if need > 0 else 0.0
                candidates.append((-corrected, _length(run), -_roundness(run), run))
        for *_, run in nsmallest(TRIED, candidates):
            slots = SlotSet((run,))
            if self._fits(self.sets[taker] | slots) and self._fits(self.sets[giver] - slots):
                return run
        return None

    def _gain(self, giver: int, taker: int, load: float) -> float:
        """The part that the move takes off the higher of the two levels."""
        peak = max(self._level(giver), self._level(taker))
        after_giver = (self._loads[giver] - load) / self._quotas[giver].fair
        after_taker = (self._loads[taker] + load) / self._quotas[taker].fair
        return 1 - max(after_giver, after_taker) / peak if peak else 0.0

    def _runs(self, giver: int, need: float, can: float) -> Iterator[Run]:
        for first, last in self.sets[giver].ranges:
            yield first, last
            yield from self._cuts(first, last, need, can)
            for slot in nlargest(HOTTEST, range(first, last + 1), key=lambda slot: (self._rates[slot], -slot)):
                yield slot, slot
            for free in range(1, (last - first + 1).bit_length()):
                begin, end = -(-first >> free), (last + 1) >> free
                if end - begin <= BLOCKS:
                    yield from ((block << free, (block + 1 << free) - 1) for block in range(begin, end))

    def _cuts(self, first: int, last: int, need: float, can: float) -> Iterator[Run]:
        """The beginning and the end of a range whose load lies between two bounds, cut where it is shortest and roundest."""
        sums = self._sums
        low = bisect_left(sums, sums[first] + need - ROUNDING, first + 1, last + 1)
        high = bisect_right(sums, sums[first] + can + ROUNDING, first, last + 1) - 1
        for cut in {low, high, _roundest(low, high)}:
            if first < cut <= last:
                yield first, cut - 1
        low = bisect_left(sums, sums[last + 1] - can - ROUNDING, first, last + 1)
        high = bisect_right(sums, sums[last + 1] - need + ROUNDING, first, last + 1) - 1
        for cut in {low, high, _roundest(low, high)}:
            if first < cut <= last:
                yield cut, last


def _length(run: Run) -> int:
    return run[1] - run[0] + 1


def _roundness(run: Run) -> int:
    return (run[0] & -run[0] or 1 << 16) + (run[1] + 1 & -(run[1] + 1))


def _roundest(low: int, high: int) -> int:
    """The number that the highest power of two divides, of those from `low` to `high`."""
    if high <= low:
        return low
    free = ((low - 1) ^ high).bit_length() - 1 if low else 0
    return high >> free << free
