"""Kubernetes quantities as exact numbers, and back. Rounded up: a cap that lacks a byte refuses a pod."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from math import ceil

_UNITS = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    **{unit: Fraction(1000**power) for power, unit in enumerate(("k", "M", "G", "T"), 1)},
    **{unit: Fraction(1024**power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), 1)},
}


@lru_cache(maxsize=256)
def read(text: str) -> Fraction:
    """`1.5Gi` as a number of bytes, `250m` as one of cores. Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text)
    if not match or match[2] not in _UNITS:
        raise ValueError(f"{text!r} isn't a quantity")
    return Fraction(match[1]) * _UNITS[match[2]]


def cores(amount: Fraction) -> str:
    """In whole cores where that is exact, else in thousandths."""
    thousandths = ceil(amount * 1000)
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def bytes_of(amount: Fraction) -> str:
    """In the largest binary unit that is exact."""
    number = ceil(amount)
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if number and number % int(_UNITS[unit]) == 0:
            return f"{number // int(_UNITS[unit])}{unit}"
    return str(number)


def whole(amount: Fraction) -> str:
    return str(ceil(amount))
