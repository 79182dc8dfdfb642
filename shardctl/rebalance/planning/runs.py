"""Which runs of slots are worth a try: few, and such as make short filters. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shardctl.fleet.keyspace import SlotSet
from shardctl.rebalance.planning.board import Run


def every_run(slots: SlotSet, most: int) -> Iterator[Run]:
    """Every run of up to `most` slots."""
    for first, last in slots.ranges:
        for begin in range(first, last + 1):
            yield from ((begin, end) for end in range(begin, min(last, begin + most - 1) + 1))


def round_runs(slots: SlotSet, amounts: Iterable[int], most: int) -> Iterator[Run]:
    """Runs of so many slots that begin or end where a range does or at a round number, and whole ranges up to `most`."""
    for first, last in slots.ranges:
        length = last - first + 1
        fitting = {amount for amount in amounts if amount <= length} | ({length} if length <= most else set())
        yield from sorted((begin, begin + amount - 1) for amount in fitting for begin in _begins(first, last, amount))


def end_runs(slots: SlotSet, amounts: Iterable[int], most: int) -> Iterator[Run]:
    """Runs of about so many slots from either end of a range, which leave one range behind; and whole ranges up to `most`."""
    for first, last in slots.ranges:
        length = last - first + 1
        runs = {(first, last)} if length <= most else set()
        for amount in amounts:
            if amount < length:
                grain = 1 << max(0, amount.bit_length() - 2)
                cuts = first + amount, (first + amount) // grain * grain
                runs |= {(first, cut - 1) for cut in cuts if cut > first}
                cuts = last + 1 - amount, -(-(last + 1 - amount) // grain) * grain
                runs |= {(cut, last) for cut in cuts if cut <= last}
        yield from sorted(runs)


def amounts(most: int, *wanted: int) -> set[int]:
    """Some amounts up to `most`: what is wanted, all, and rounder ones."""
    offered = {amount for amount in (most, *(min(most, amount) for amount in wanted)) if amount > 0}
    for amount in tuple(offered):
        top = 1 << (amount.bit_length() - 1)
        offered |= {top, amount & (top | top >> 1)}
        if 2 * top <= most:
            offered.add(2 * top)
    return offered


def _begins(first: int, last: int, amount: int) -> set[int]:
    """Where a run of `amount` slots may begin between two slots."""
    end = last - amount + 1
    free = (first ^ last).bit_length() - 1 if first < last else 0
    roundest = last >> free << free
    grain = 1 << (amount - 1).bit_length()
    upwards, downwards = -(-first // grain) * grain, (last + 1) // grain * grain - amount
    return {begin for begin in (first, end, roundest, roundest - amount, upwards, downwards) if first <= begin <= end}
