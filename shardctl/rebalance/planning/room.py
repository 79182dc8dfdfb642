"""How much room a set of slots takes in its shard's filters, fast enough to ask for thousands of sets. Pure.

Write s' for slot s without its lowest binary 1. In a filter that takes malformed slots too (see `filters`) each prefix,
plain or under NOT, begins at a slot s where the shard owns one of s and s' but not both. A set that is the range from a
to the end has such slots at a, a + lowbit(a), and so on: the path of an update in a Fenwick tree (P. Fenwick, 1994).
Every set of ranges is the symmetric difference of such ends, so its prefixes are that of their paths.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from shardctl.fleet.filters import MAX_FILTER_BYTES, compile_filter
from shardctl.fleet.keyspace import SlotSet, digits_of
from shardctl.fleet.spec import Fleet, Shard

_OR, _AND_NOT, _PARENTHESES = len(" OR "), len(" AND NOT "), len("()")

_Term = tuple[int, bool]  # the length of a term that OR joins, and whether it holds an AND


@dataclass(frozen=True, slots=True)
class _Block:
    """Slots from `first` on that share `digits` leading digits; one subscription has one such block, or two."""

    first: int
    digits: int


@dataclass(frozen=True, slots=True)
class _Shortest:
    """The shortest terms of a subtree; how many prefixes its holes take, and their bytes."""

    joined: int  # the bytes of the terms as OR joins them, with an OR each
    terms: int
    alone: int  # the bytes of the term where it is the only one
    holes: tuple[int, int]


_NONE = (0, 0)


class FilterRoom:
    """The filters of shards that take the same message types as `like`, in bytes."""

    def __init__(self, fleet: Fleet, like: Shard) -> None:
        self._bits = fleet.routing.slot_bits
        self._topic_bits = fleet.routing.topic_bits
        self._types, self._except = like.types, like.except_types
        self._names = fleet.routing.attributes.in_filters
        slot = SlotSet(((0, 0),))
        atom = compile_filter(slot, 1, names=self._names).text
        typed = compile_filter(slot, 1, types=self._types, except_types=self._except, names=self._names).text
        self._atom = len(atom.encode()) - 1
        self._type_clause = len(typed.encode()) - len(atom.encode())
        self._padded: dict[SlotSet, tuple[int, int]] = {SlotSet(): (0, 0)}
        self._longest: dict[SlotSet, int] = {}
        self._subtrees: dict[tuple[int, ...], _Shortest] = {}

    def padded(self, slots: SlotSet) -> int:
        """The longest of the filters that take malformed slots too, though it may not fit."""
        return self._measured(slots)[0]

    def cost(self, slots: SlotSet) -> int:
        """A measure of how far a set is from a simple one: the bytes of those filters, and as much again a subscription."""
        return self._measured(slots)[1]

    def longest(self, slots: SlotSet) -> int:
        """The longest of the filters that `compile_filter` gives, which leaves malformed slots out where it must."""
        if self.padded(slots) <= MAX_FILTER_BYTES:
            return self.padded(slots)
        if slots not in self._longest:
            self._longest[slots] = max(
                length
                if (length := self._padded_length(here, blocks)) <= MAX_FILTER_BYTES
                else self._shortest_length(here, within)
                for here, within, blocks in self._on(slots)
            )
        return self._longest[slots]

    def _measured(self, slots: SlotSet) -> tuple[int, int]:
        if slots not in self._padded:
            lengths = [self._padded_length(here, blocks) for here, _, blocks in self._on(slots)]
            self._padded[slots] = max(lengths), sum(lengths) + MAX_FILTER_BYTES * len(lengths)
        return self._padded[slots]

    def _on(self, slots: SlotSet) -> Iterator[tuple[SlotSet, str, tuple[_Block, ...]]]:
        """The slots on each topic they touch, the digits that topic's slots begin with, and the blocks of its filter."""
        if not self._topic_bits:
            yield slots, "", (_Block(0, 1), _Block(1 << (self._bits - 1), 1))
            return
        free = self._bits - self._topic_bits
        topics = {number for first, last in slots.ranges for number in range(first >> free, (last >> free) + 1)}
        for topic in sorted(topics):
            within = digits_of(topic, self._topic_bits)
            here = slots & SlotSet.of_prefix(within, self._bits)
            yield here, within, (_Block(topic << free, self._topic_bits),)

    def _shortest_length(self, slots: SlotSet, within: str) -> int:
        ends = sorted(end for first, last in slots.ranges for end in (first, last + 1))
        shortest = self._shortest(ends, int(within or "0", 2) << (self._bits - len(within)), len(within))
        return self._with_types(shortest.alone if shortest.terms == 1 else shortest.joined - _OR, shortest.terms)

    def _shortest(self, ends: list[int], first: int, digits: int) -> _Shortest:
        """The best of a subtree, as `filters` finds it, in lengths alone. `ends` alternate: from here owned, from here not."""
        size, term = 1 << (self._bits - digits), self._atom + digits
        low, high = bisect_right(ends, first), bisect_left(ends, first + size)
        if low == high and digits:
            return _Shortest(term + _OR, 1, term, _NONE) if low % 2 else _Shortest(0, 0, 0, (1, term))
        # Subtrees are alike where what is owned lies alike in them.
        alike = digits, low % 2, *(end - first for end in ends[low:high])
        if alike not in self._subtrees:
            self._subtrees[alike] = self._shorter(ends, first, digits)
        return self._subtrees[alike]

    def _shorter(self, ends: list[int], first: int, digits: int) -> _Shortest:
        """The better of what the two halves need, and of the whole without its holes."""
        size, term = 1 << (self._bits - digits), self._atom + digits
        left, right = (self._shortest(ends, begin, digits + 1) for begin in (first, first + size // 2))
        holes = left.holes[0] + right.holes[0], left.holes[1] + right.holes[1]
        joined, terms = left.joined + right.joined, left.terms + right.terms
        if holes[0]:
            prefix = term if digits else 2 * (term + 1) + _OR + _PARENTHESES
            inside = holes[1] + _OR * (holes[0] - 1) + (_PARENTHESES if holes[0] > 1 else 0)
            carved = prefix + _AND_NOT + inside
            if carved + _PARENTHESES + _OR < joined:
                return _Shortest(carved + _PARENTHESES + _OR, 1, carved, holes)
        return _Shortest(joined, terms, left.alone + right.alone, holes)

    def _padded_length(self, slots: SlotSet, blocks: tuple[_Block, ...]) -> int:
        terms = [term for block in blocks for term in self._terms(slots, block)]
        length, _ = _any(terms)
        return self._with_types(length, len(terms))

    def _with_types(self, length: int, terms: int) -> int:
        return length + self._type_clause + (_PARENTHESES if self._type_clause and terms > 1 else 0)

    def _terms(self, slots: SlotSet, block: _Block) -> list[_Term]:
        size = 1 << (self._bits - block.digits)
        begins: set[int] = set()
        for first, last in slots.ranges:
            if first <= block.first <= last:
                begins ^= {0}
            for end in (first - block.first, last + 1 - block.first):
                if 0 < end < size:
                    begins ^= set(_path(end, size))
        # Prefixes nest as their blocks do; each waits with the terms found inside it until the block is behind us.
        waiting: list[tuple[int, int, list[_Term]]] = [(size, 0, [])]
        for begin in (*sorted(begins), size):
            while len(waiting) > 1 and waiting[-1][0] <= begin:
                _, prefix, holes = waiting.pop()
                waiting[-1][2].append(_and_not(prefix, holes))
            if begin < size:
                width = begin & -begin or size
                waiting.append((begin + width, self._atom + self._bits - width.bit_length() + 1, []))
        return waiting[0][2]


def _path(end: int, size: int) -> Iterator[int]:
    while end < size:
        yield end
        end += end & -end


def _and_not(prefix: int, holes: list[_Term]) -> _Term:
    if not holes:
        return prefix, False
    length, binds = _any(holes)
    return prefix + _AND_NOT + length + (_PARENTHESES if binds or len(holes) > 1 else 0), True


def _any(terms: list[_Term]) -> _Term:
    if len(terms) == 1:
        return terms[0]
    return sum(length + (_PARENTHESES if binds else 0) for length, binds in terms) + _OR * (len(terms) - 1), False
