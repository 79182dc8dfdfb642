"""Keys, slots and sets of slots. Pure: no I/O, no clock.

A routing key hashes to a slot. People write a slot as a number, `341`; wires carry its `slot_bits` binary digits,
`"0101010101"`, so that a Pub/Sub filter can select a run of slots by prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Literal

MIN_SLOT_BITS, MAX_SLOT_BITS = 1, 16

TimeUnit = Literal["hour", "day", "week", "month"]

_RANGE = re.compile(r"\s*(0|[1-9][0-9]*)\s*(?:-\s*(0|[1-9][0-9]*)\s*)?")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_MAX_SLOT = (1 << MAX_SLOT_BITS) - 1


def slot_of(routing_key: str, slot_bits: int) -> int:
    """The slot of a routing key: the first `slot_bits` bits of SHA-256 over its UTF-8 text."""
    return int.from_bytes(sha256(routing_key.encode()).digest()[:2]) >> (MAX_SLOT_BITS - slot_bits)


@dataclass(frozen=True, slots=True)
class SlotRule:
    """How a fleet's routing keys find their slots: by hash alone, or, with a `modulo`, near what `key % modulo` was.

    With a modulo, each remainder has a run of slots, and the hash decides within it. So a fleet whose databases were chosen by
    remainder becomes shards whose rows already are in the right database, and whose slots can move from then on. Runs end on
    multiples of a fraction of the slots, which keeps filters short; the longest is a quarter longer than the shortest at most.
    """

    bits: int
    modulo: int = 0

    def slot_of(self, routing_key: str) -> int:
        """Raises ValueError where a modulo is set and the key isn't a whole number in plain decimal digits."""
        if not self.modulo:
            return slot_of(routing_key, self.bits)
        if not _NUMBER.fullmatch(routing_key):
            raise ValueError(
                f"the routing key {routing_key!r} isn't a whole number of up to 18 digits, without a zero before it"
            )
        first, end = self.run_of(int(routing_key) % self.modulo)
        return first + (int.from_bytes(sha256(routing_key.encode()).digest()[:4]) * (end - first) >> 32)

    def run_of(self, remainder: int) -> tuple[int, int]:
        """The first slot of a remainder, and the one after its last."""
        slots_a_grain = (1 << self.bits) // self.grains
        return (
            remainder * self.grains // self.modulo * slots_a_grain,
            (remainder + 1) * self.grains // self.modulo * slots_a_grain,
        )

    @property
    def grains(self) -> int:
        """Into how many equal pieces the slots are cut: four to eight a remainder."""
        return 4 << (self.modulo - 1).bit_length()


def bucket_of(moment: datetime, unit: TimeUnit) -> int:
    """The number of the UTC hour, day, ISO week or month that holds `moment`, counted from that of 1970-01-01.

    `moment` knows its time zone.
    """
    utc = moment.astimezone(UTC)
    if unit == "month":
        return (utc.year - 1970) * 12 + utc.month - 1
    hours = int(utc.timestamp() // 3600)
    if unit == "hour":
        return hours
    days = hours // 24
    return days if unit == "day" else (days + 3) // 7  # 1970-01-01 was a Thursday; ISO weeks begin on Monday


def slot_of_time(moment: datetime, unit: TimeUnit, slot_bits: int) -> int:
    """The slot of a time bucket: its number modulo the slot count, so a run of buckets is a run of slots."""
    return bucket_of(moment, unit) % (1 << slot_bits)


@lru_cache(maxsize=1 << MAX_SLOT_BITS)
def digits_of(slot: int, slot_bits: int) -> str:
    """A slot as wires carry it: exactly `slot_bits` binary digits."""
    return format(slot, f"0{slot_bits}b")


def slot_of_digits(digits: str, slot_bits: int) -> int | None:
    """The slot that binary digits name, or None where they are not exactly `slot_bits` digits 0 and 1."""
    if len(digits) != slot_bits or digits.strip("01"):
        return None
    return int(digits, 2)


def lane_of(slot: int, generation: int) -> int:
    """A slot in one generation of its shard as one number: what that generation's subscription carries of the slot."""
    return generation << MAX_SLOT_BITS | slot


def slot_of_lane(lane: int) -> int:
    return lane & _MAX_SLOT


def generation_of_lane(lane: int) -> int:
    return lane >> MAX_SLOT_BITS


@dataclass(frozen=True, slots=True)
class SlotSet:
    """A set of slots as sorted, disjoint, non-touching inclusive ranges. Equal sets are equal values."""

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, slots: Iterable[int]) -> SlotSet:
        return cls.of_ranges((slot, slot) for slot in slots)

    @classmethod
    def of_ranges(cls, ranges: Iterable[tuple[int, int]]) -> SlotSet:
        merged: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return cls(tuple(merged))

    @classmethod
    def all(cls, slot_bits: int) -> SlotSet:
        return cls(((0, (1 << slot_bits) - 1),))

    @classmethod
    def of_prefix(cls, prefix: str, slot_bits: int) -> SlotSet:
        """The slots whose digits begin with `prefix`; none when it is longer than `slot_bits`."""
        free = slot_bits - len(prefix)
        if free < 0:
            return cls()
        first = int(prefix or "0", 2) << free
        return cls(((first, first + (1 << free) - 1),))

    @classmethod
    def parse(cls, text: str) -> SlotSet:
        """Read `"0-341, 500"`. Raises ValueError naming the part at fault, ranges that overlap included."""
        ranges = []
        for part in text.split(","):
            match = _RANGE.fullmatch(part)
            if not match:
                raise ValueError(f"{part.strip()[:40]!r} is neither a slot number nor a range such as 0-341")
            if max(len(match[1]), len(match[2] or "")) > len(str(_MAX_SLOT)):
                raise ValueError(f"{part.strip()[:40]} goes beyond {_MAX_SLOT}, the last slot of the largest fleet")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ValueError(f"the range {part.strip()} runs backwards")
            ranges.append((first, last))
        slots = cls.of_ranges(ranges)
        if len(slots) != sum(last - first + 1 for first, last in ranges):
            raise ValueError(f"{text[:80]!r} names a slot twice")
        return slots

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.ranges)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def __contains__(self, slot: int) -> bool:
        return any(first <= slot <= last for first, last in self.ranges)

    def __or__(self, other: SlotSet) -> SlotSet:
        return SlotSet.of_ranges((*self.ranges, *other.ranges))

    def __and__(self, other: SlotSet) -> SlotSet:
        common: list[tuple[int, int]] = []
        index, other_index = 0, 0
        while index < len(self.ranges) and other_index < len(other.ranges):
            first = max(self.ranges[index][0], other.ranges[other_index][0])
            last = min(self.ranges[index][1], other.ranges[other_index][1])
            if first <= last:
                common.append((first, last))
            if self.ranges[index][1] < other.ranges[other_index][1]:
                index += 1
            else:
                other_index += 1
        return SlotSet(tuple(common))

    def __sub__(self, other: SlotSet) -> SlotSet:
        remaining: list[tuple[int, int]] = []
        for own_range in self.ranges:
            first, last = own_range
            for taken_first, taken_last in other.ranges:
                if taken_last < first or last < taken_first:
                    continue
                if first < taken_first:
                    remaining.append((first, taken_first - 1))
                first = taken_last + 1
            if first <= last:
                remaining.append((first, last))
        return SlotSet(tuple(remaining))

    def prefixes(self, slot_bits: int) -> tuple[str, ...]:
        """The fewest digit prefixes that select exactly these slots, in ascending order.

        Each range is cut into the largest aligned blocks, as a CIDR aggregation cuts address ranges.
        """
        prefixes = []
        for start, last in self.ranges:
            first = start
            while first <= last:
                align = first & -first if first else 1 << slot_bits
                size = min(align, 1 << ((last - first + 1).bit_length() - 1))
                free = size.bit_length() - 1
                prefixes.append(digits_of(first >> free, slot_bits - free) if free < slot_bits else "")
                first += size
        return tuple(prefixes)
