"""How much each shard should hold after a change. Pure arithmetic; a share is a count of slots or a sum of rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """What a shard holds, its part by weight, and the bounds between which the share it ends with counts as balanced."""

    have: float
    fair: float
    low: float
    high: float
    gives: bool = True
    takes: bool = True

    @property
    def must_give(self) -> float:
        return max(0.0, self.have - self.high)

    @property
    def must_take(self) -> float:
        return max(0.0, self.low - self.have)


def fair_parts(have: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Each one's part of the whole, in proportion to the weights."""
    whole, weight = sum(have), sum(weights)
    return [whole * own / weight for own in weights]


def drained(have: Sequence[float], weights: Sequence[float], amount: float) -> list[float]:
    """The level, for each, that the fullest sink to when `amount` is taken from them. Who holds less keeps it."""
    return _levelled(have, weights, -amount)


def filled(have: Sequence[float], weights: Sequence[float], amount: float) -> list[float]:
    """The level, for each, that the emptiest rise to when `amount` is given to them. Who holds more keeps it."""
    return _levelled(have, weights, amount)


def _levelled(have: Sequence[float], weights: Sequence[float], amount: float) -> list[float]:
    levels = sorted(((own / weight, weight) for own, weight in zip(have, weights, strict=True)), reverse=amount < 0)
    weight = total = line = 0.0
    for number, (own, own_weight) in enumerate(levels):
        weight += own_weight
        total += own * own_weight
        line = (total + amount) / weight
        beyond = levels[number + 1][0] if number + 1 < len(levels) else math.copysign(math.inf, amount)
        if (line <= beyond) if amount >= 0 else (line >= beyond):
            break
    return [line * own for own in weights]


def bounds(target: float, tolerance: float, *, whole: bool) -> tuple[float, float]:
    """The least and the most that count as `target`. For counts the whole numbers beside it always do."""
    low, high = target * (1 - tolerance), target * (1 + tolerance)
    if not whole:
        return low, high
    target = round(target, 6)  # so that 3.0000000001 slots are 3
    return min(math.ceil(round(low, 6)), math.floor(target)), max(math.floor(round(high, 6)), math.ceil(target))
