"""Pub/Sub filter text that selects a set of slots and message types. Pure.

Only `hasPrefix` selects slots, never equality, and a filter takes malformed slots too: `0101` (not padded), `12` (a
decimal number) or `01x` would otherwise match no filter, and the service would drop it without a trace. The rule: pad the
leading digits of a malformed slot that begins with 0 or 1 with zeros; the message goes to the shard of that slot. So the
filters of shards that divide the slots also divide all malformed texts, each to exactly one shard, and that shard
dead-letters the message with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from shardctl.fleet.keyspace import SlotSet

MAX_FILTER_BYTES = 256
_OPERATORS = frozenset({"AND", "OR", "NOT"})
# Each range adds a prefix of 20 bytes or more to any form: what has more ranges than this can't fit, so don't search.
_MAX_RANGES = MAX_FILTER_BYTES // 20


@dataclass(frozen=True)
class FilterAttributes:
    """The names of the two attributes that filters read. Names that the grammar can't take bare are quoted."""

    slot: str = "slot"
    message_type: str = "message_type"

    @cached_property
    def slot_path(self) -> str:
        return _path(self.slot)

    @cached_property
    def type_path(self) -> str:
        return _path(self.message_type)


_DEFAULT_NAMES = FilterAttributes()


@dataclass(frozen=True, slots=True)
class Selection:
    """Texts that begin with one of `prefixes` and that none of `holes` takes."""

    prefixes: tuple[str, ...]
    holes: tuple[Selection, ...] = ()

    def takes(self, text: str) -> bool:
        return text.startswith(self.prefixes) and not any(hole.takes(text) for hole in self.holes)


@dataclass(frozen=True, slots=True)
class ShardFilter:
    """A shard's filter on one topic. `padded`: whether it takes malformed slots by the rule above."""

    text: str
    padded: bool
    selections: tuple[Selection, ...]

    def takes_slot(self, slot: str) -> bool:
        """Whether a message of a type this shard takes would get through with that text for a slot."""
        return any(selection.takes(slot) for selection in self.selections)


@dataclass(frozen=True, slots=True)
class _Clause:
    """Filter text and how it binds: `atom` needs no parentheses, `and` needs them under OR, `or` under AND."""

    text: str
    kind: str  # atom | and | or

    def under(self, operator: str) -> str:
        return self.text if self.kind in ("atom", operator) else f"({self.text})"


# A shard's filter is asked for when the file is checked, when it is rendered, and for its consumer.
@lru_cache(maxsize=32_768)
def compile_filter(
    slots: SlotSet,
    slot_bits: int,
    *,
    within: str = "",
    types: tuple[str, ...] = (),
    except_types: tuple[str, ...] = (),
    names: FilterAttributes = _DEFAULT_NAMES,
) -> ShardFilter:
    """The filter of a shard's subscription on the topic whose slots begin with `within`.

    Takes messages whose slot is in `slots` and whose type is one of `types` (any when empty) and none of
    `except_types`. Malformed slots are divided by the padding rule where that fits into 256 bytes; else the text is the
    shortest that selects the well-formed ones, and may itself be too long.
    """
    of_type = [_any(_equals(names, name) for name in types)] if types else []
    of_type += [_Clause(f"{names.type_path}!={_quoted(name)}", "atom") for name in except_types]

    def compiled(selections: Sequence[Selection], *, padded: bool) -> ShardFilter:
        chosen = _any(_selecting(names, selection) for selection in selections)
        return ShardFilter(_all([chosen, *of_type]).text, padded, tuple(selections))

    if len(slots.ranges) > _MAX_RANGES:
        return compiled([Selection((prefix,)) for prefix in slots.prefixes(slot_bits)], padded=False)
    padded = compiled(_padded(slots, slot_bits, within), padded=True)
    if len(padded.text.encode()) <= MAX_FILTER_BYTES:
        return padded
    return compiled(_shortest(slots, slot_bits, within, names), padded=False)


def shard_filter(
    slots: SlotSet,
    slot_bits: int,
    *,
    within: str = "",
    types: Sequence[str] = (),
    except_types: Sequence[str] = (),
    names: FilterAttributes = _DEFAULT_NAMES,
) -> str:
    """The text of `compile_filter`."""
    return compile_filter(
        slots, slot_bits, within=within, types=tuple(types), except_types=tuple(except_types), names=names
    ).text


def strays_filter(
    malformed: Sequence[str] = (),
    *,
    within: str = "",
    types: Sequence[str] = (),
    names: FilterAttributes = _DEFAULT_NAMES,
) -> str:
    """The complement of every shard's filter on one topic: what no shard takes.

    That is any slot that doesn't begin as this topic's do, each of `malformed` (which shards' filters leave out) and,
    where no shard takes every type, any type but the known `types`.
    """
    clauses = [_not(_any(_prefix(names, prefix) for prefix in ([within] if within else ["0", "1"])))]
    if types:
        clauses.append(_not(_any(_equals(names, name) for name in types)))
    clauses += [_Clause(f"{names.slot_path}={_quoted(digits)}", "atom") for digits in malformed]
    return _any(clauses).text


def beginnings(prefixes: Iterable[str], within: str = "") -> tuple[str, ...]:
    """Each proper beginning, from `within` on, of a prefix: where a slot may break off that no single shard owns.

    Shortest first. Any other text that begins with 0 or 1 goes on from one of `prefixes`.
    """
    shorter = {prefix[:length] for prefix in prefixes for length in range(max(1, len(within)), len(prefix))}
    return tuple(sorted(shorter, key=lambda digits: (len(digits), digits)))


def _padded(slots: SlotSet, slot_bits: int, within: str) -> list[Selection]:
    """The selections of `slots` and of the malformed texts that padding with zeros turns into one of them."""

    def taken(prefix: str, wanted: SlotSet, rest: SlotSet) -> list[Selection]:
        """What `wanted` selects under `prefix`, where `wanted` and `rest` together hold its slots."""
        if not wanted.ranges:
            return []
        if not rest.ranges:
            return [Selection((prefix,))]
        if wanted.ranges[0][0] < rest.ranges[0][0]:  # the first slot is `prefix` padded with zeros
            return [Selection((prefix,), tuple(children(prefix, rest, wanted)))]
        return children(prefix, wanted, rest)

    def children(prefix: str, wanted: SlotSet, rest: SlotSet) -> list[Selection]:
        selections: list[Selection] = []
        for child in (prefix + "0", prefix + "1"):
            universe = SlotSet.of_prefix(child, slot_bits)
            selections += taken(child, wanted & universe, rest & universe)
        return selections

    universe = SlotSet.of_prefix(within, slot_bits)
    wanted, rest = slots & universe, universe - slots
    # A slot that is missing, or begins with neither digit, belongs to no shard: without a topic prefix the root isn't taken.
    return taken(within, wanted, rest) if within else children(within, wanted, rest)


def _shortest(slots: SlotSet, slot_bits: int, within: str, names: FilterAttributes) -> list[Selection]:
    """The shortest among ORs of `prefix` and `prefix AND NOT (…)`, found bottom-up over the digit tree.

    A subtree is chosen by its length as an OR term; where a single term is left, its parentheses fall away, so the
    whole may be up to two bytes over the optimum.
    """

    def shortest(prefix: str, wanted: SlotSet) -> list[Selection]:
        universe = SlotSet.of_prefix(prefix, slot_bits)
        if not wanted.ranges:
            return []
        roots = (prefix,) if prefix else ("0", "1")
        if wanted == universe:
            return [Selection((root,)) for root in roots]
        split: list[Selection] = []
        for child in (prefix + "0", prefix + "1"):
            split += shortest(child, wanted & SlotSet.of_prefix(child, slot_bits))
        holes = (universe - wanted).prefixes(slot_bits)
        carved = [Selection(roots, tuple(Selection((hole,)) for hole in holes))]
        return min(split, carved, key=lambda terms: sum(_or_length(names, term) for term in terms))

    return shortest(within, slots & SlotSet.of_prefix(within, slot_bits))


def _or_length(names: FilterAttributes, selection: Selection) -> int:
    return len(_selecting(names, selection).under("or")) + len(" OR ")


def _selecting(names: FilterAttributes, selection: Selection) -> _Clause:
    whole = _any(_prefix(names, prefix) for prefix in selection.prefixes)
    if not selection.holes:
        return whole
    return _all([whole, _not(_any(_selecting(names, hole) for hole in selection.holes))])


def _any(clauses: Iterable[_Clause]) -> _Clause:
    terms = list(clauses)
    return terms[0] if len(terms) == 1 else _Clause(" OR ".join(term.under("or") for term in terms), "or")


def _all(clauses: Sequence[_Clause]) -> _Clause:
    return clauses[0] if len(clauses) == 1 else _Clause(" AND ".join(term.under("and") for term in clauses), "and")


def _not(clause: _Clause) -> _Clause:
    return _Clause(f"NOT {clause.under('not')}", "atom")


def _prefix(names: FilterAttributes, digits: str) -> _Clause:
    return _Clause(f'hasPrefix({names.slot_path},"{digits}")', "atom")


def _equals(names: FilterAttributes, message_type: str) -> _Clause:
    return _Clause(f"{names.type_path}={_quoted(message_type)}", "atom")


def _path(attribute: str) -> str:
    bare = attribute.replace("-", "a").replace("_", "a")
    bare_enough = bare.isascii() and bare.isalnum() and (attribute[0].isalpha() or attribute[0] == "_")
    return f"attributes.{attribute if bare_enough and attribute not in _OPERATORS else _quoted(attribute)}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
