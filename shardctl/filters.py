"""Pub/Sub filter text: the shortest that selects a set of slots and message types. Pure.

Only `hasPrefix` selects slots, never equality: a malformed slot that begins like a real one then reaches a shard, which sets
it aside with a reason, instead of matching no filter and being dropped by the service in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from shardctl.keyspace import SlotSet

MAX_FILTER_BYTES = 256


@dataclass(frozen=True)
class FilterAttributes:
    """The names of the two attributes that filters read. Names outside `[A-Za-z0-9_-]` are quoted."""

    slot: str = "slot"
    message_type: str = "message_type"

    @cached_property
    def slot_path(self) -> str:
        return _path(self.slot)

    @cached_property
    def type_path(self) -> str:
        return _path(self.message_type)


@dataclass(frozen=True, slots=True)
class _Clause:
    """Filter text and how it binds: `atom` needs no parentheses anywhere, `and` needs them under OR, `or` under AND."""

    text: str
    kind: str  # atom | and | or

    def under(self, operator: str) -> str:
        return self.text if self.kind in ("atom", operator) else f"({self.text})"


def shard_filter(
    slots: SlotSet,
    slot_bits: int,
    *,
    within: str = "",
    types: Sequence[str] = (),
    except_types: Sequence[str] = (),
    names: FilterAttributes = FilterAttributes(),  # noqa: B008 - frozen
) -> str:
    """The filter of a shard's subscription on the topic whose slots begin with `within`.

    Takes messages whose slot is in `slots` and whose type is one of `types` (any when empty) and none of `except_types`.
    """
    clauses = [_slots_clause(slots, slot_bits, within, names)]
    if types:
        clauses.append(_any(_equals(names, name) for name in types))
    clauses += [_Clause(f"{names.type_path}!={_quoted(name)}", "atom") for name in except_types]
    return _all(clauses).text


def strays_filter(
    short_slots: Sequence[str],
    *,
    within: str = "",
    types: Sequence[str] = (),
    names: FilterAttributes = FilterAttributes(),  # noqa: B008 - frozen
) -> str:
    """The complement of every shard's filter on one topic: what no shard takes.

    That is any slot that doesn't begin as this topic's do, each of `short_slots` (digits too short for any shard's prefix)
    and, where no shard takes every type, any type but the known `types`.
    """
    known = _any(_prefix(names, prefix) for prefix in ([within] if within else ["0", "1"]))
    clauses = [_not(known)]
    if types:
        clauses.append(_not(_any(_equals(names, name) for name in types)))
    clauses += [_Clause(f"{names.slot_path}={_quoted(digits)}", "atom") for digits in short_slots]
    return _any(clauses).text


def too_short(prefixes: Sequence[str], within: str = "") -> tuple[str, ...]:
    """The digit strings below `within` that no prefix takes because they are too short: each proper beginning of a prefix.

    Shortest first. A producer that forgets to pad a slot with zeros sends such strings.
    """
    found = {prefix[:length] for prefix in prefixes for length in range(max(1, len(within)), len(prefix))}
    return tuple(sorted(found, key=lambda digits: (len(digits), digits)))


def _slots_clause(slots: SlotSet, slot_bits: int, within: str, names: FilterAttributes) -> _Clause:
    """The shortest clause among ORs of `prefix` and `prefix AND NOT (…)`, found bottom-up over the digit tree.

    A subtree is chosen by its length as an OR term, so parentheses at the very top may cost up to two bytes over the optimum.
    """

    def shortest(prefix: str) -> list[_Clause]:
        """The OR terms for the slots under `prefix`."""
        universe = SlotSet.of_prefix(prefix, slot_bits)
        wanted = slots & universe
        if not wanted.ranges:
            return []
        whole = [_prefix(names, prefix)] if prefix else [_prefix(names, "0"), _prefix(names, "1")]
        if wanted == universe:
            return whole
        split = shortest(prefix + "0") + shortest(prefix + "1")
        missing = [_prefix(names, hole) for hole in (universe - wanted).prefixes(slot_bits)]
        carved = [_all([_any(whole), _not(_any(missing))])]
        return min(split, carved, key=_or_length)

    return _any(shortest(within))


def _or_length(terms: Sequence[_Clause]) -> int:
    return sum(len(term.under("or")) + len(" OR ") for term in terms)


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
    plain = attribute.replace("-", "").replace("_", "")
    return f"attributes.{attribute}" if plain.isascii() and plain.isalnum() else f"attributes.{_quoted(attribute)}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
