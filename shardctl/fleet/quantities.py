"""Kubernetes quantities as exact numbers, and back. Rounded up: a cap that lacks a byte refuses a pod."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from math import ceil

_BINARY = {unit: Fraction(1024**power) for power, unit in enumerate(("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))}
_DECIMAL = {
    unit: Fraction(1000) ** power for power, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
}
_UNITS = _BINARY | _DECIMAL


@lru_cache(maxsize=256)
def read(text: str) -> Fraction:
    """`1.5Gi` as a number of bytes, `250m` as one of cores. Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text)
    if not match or match[2] not in _UNITS:
        raise ValueError(f"{text!r} isn't a quantity")
    return Fraction(match[1]) * _UNITS[match[2]]


def canonical(text: str) -> str:
    """As the API server writes it: `1536Mi` for `1.5Gi`, `1k` for `1000`. Raises ValueError as `read` does.

    The rules are those of Kubernetes' resource.Quantity: the largest unit that leaves a whole number, and no binary unit for less
    than 1024 or a part of a byte.
    """
    amount = read(text)
    if text.endswith("i") and amount >= 1024 and amount.denominator == 1:
        return _in_largest(amount, _BINARY)
    return _in_largest(amount, _DECIMAL)


def cores(amount: Fraction) -> str:
    """In whole cores where that is exact, else in thousandths."""
    thousandths = ceil(amount * 1000)
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def bytes_of(amount: Fraction) -> str:
    """In the largest binary unit that is exact."""
    return _in_largest(Fraction(ceil(amount)), _BINARY)


def whole(amount: Fraction) -> str:
    return str(ceil(amount))


def _in_largest(amount: Fraction, units: dict[str, Fraction]) -> str:
    """In the largest of these units, which are in rising order, that leaves a whole number; else rounded up in the smallest."""
    smallest = next(iter(units))
    exact = (unit for unit in reversed(units) if amount and (amount / units[unit]).denominator == 1)
    unit = next(exact, smallest if amount else "")
    return f"{ceil(amount / units[unit])}{unit}"
